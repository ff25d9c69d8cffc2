//! The nodes, etcd and the directory of all of them: what the demo starts, and ends.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::client::{Answer, Message};
use super::super::process::{Process, started_here};
use super::super::show::Problem;
use super::etcd::Etcd;
use super::guard::Guard;
use super::node::{Node, Shared, ended, terminate};
use crate::temp_dir::{TempDir, private_directory};

/// Names of the nodes.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Polling interval for states without a notification.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Maximum time from SIGTERM to the end of a node: `drain_timeout` and what it needs besides.
pub(super) const NODE_ENDS_WITHIN: Duration = Duration::from_secs(20);
const ETCD_ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Maximum time after that until no process is left.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// Dropped in this order: what runs ends before its directory is removed.
pub(super) struct Stage {
    nodes: Vec<Node>,
    etcd: Option<Etcd>,
    guard: Option<Guard>,
    keep: bool,
    program: PathBuf,
    mark: String,
    directory: TempDir,
}

/// Processes before and after the end.
pub(super) struct Ended {
    pub(super) before: usize,
    pub(super) left: Vec<Process>,
    /// Exit codes of the nodes that ran; `None` of one that was killed.
    pub(super) codes: Vec<Option<i32>>,
    pub(super) took: Duration,
}

impl Stage {
    /// Creates the directory. Nothing runs yet.
    pub(super) fn prepare(program: PathBuf, keep: bool) -> io::Result<Self> {
        let directory = TempDir::new("demo", keep)?;
        let mark = uuid::Uuid::new_v4().to_string();
        Ok(Self { nodes: Vec::new(), etcd: None, guard: None, keep, program, mark, directory })
    }

    /// Starts etcd and all nodes.
    pub(super) async fn start(&mut self) -> Result<(), Problem> {
        let directory = self.directory.path();
        private_directory(&directory.join("objects"))?;
        write_secret(&directory.join("secret"))?;
        self.guard = Some(Guard::start(directory, &self.mark, self.keep)?);
        let etcd = self.etcd.insert(Etcd::start(&self.program, directory, &self.mark)?);
        etcd.ready().await?;
        let shared = Shared { directory, etcd: &etcd.url, mark: &self.mark };
        for name in NAMES {
            self.nodes.push(Node::create(name, &shared)?);
        }
        let [a, b, c] = self.nodes.as_mut_slice() else { return Err(Problem::seen("there are three nodes")) };
        tokio::try_join!(a.start(), b.start(), c.start())?;
        Ok(())
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn etcd_program(&self) -> &Path {
        &self.program
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(super) fn node(&mut self, name: &str) -> Result<&mut Node, Problem> {
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.ok_or_else(|| Problem::seen(format!("no node {name:?}")))
    }

    /// The nodes that run.
    pub(super) fn running(&self) -> Vec<&Node> {
        self.nodes.iter().filter(|node| node.is_running()).collect()
    }

    /// Asks at one node.
    pub(super) async fn ask(&self, at: &Node, user: &str, message: &Message) -> Result<Answer, Problem> {
        let answer = at.client()?.ask(user, message).await?;
        if answer.is_ok() { Ok(answer) } else { Err(Problem::Seen(answer.seen())) }
    }

    /// The processes of a user on all nodes.
    pub(super) async fn pids(&self, user: &str) -> Result<Vec<i32>, Problem> {
        let mut pids = Vec::new();
        for node in self.running() {
            let session = node.client()?.session_stats(user).await?;
            pids.extend(session.and_then(|session| session.pid));
        }
        Ok(pids)
    }

    /// Ends the nodes in order, then etcd, and searches for leftover processes. Also what has not started whole.
    pub(super) async fn strike(&mut self) -> Ended {
        let before = started_here(&self.mark);
        let begin = Instant::now();
        let running = self.nodes.iter_mut().filter(|node| node.is_running());
        let running: Vec<_> = running.inspect(|node| node.terminate()).collect();
        let mut codes = Vec::new();
        for node in running {
            codes.push(node.ended(NODE_ENDS_WITHIN.saturating_sub(begin.elapsed())).await);
        }
        let took = begin.elapsed();
        if let Some(mut etcd) = self.etcd.take() {
            terminate(Some(&etcd.child));
            ended(&mut etcd.child, ETCD_ENDS_WITHIN).await;
        }
        if let Some(guard) = self.guard.take() {
            guard.dismiss().await;
        }
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let mut left = started_here(&self.mark);
            // Includes processes that are no longer descendants and have cleared their environment.
            let hidden = before.iter().filter(|process| process.is_alive() && !left.contains(process));
            left.extend(hidden.copied().collect::<Vec<_>>());
            if left.is_empty() || Instant::now() >= deadline {
                return Ended { before: before.len(), left, codes, took };
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The secret that the nodes share.
fn write_secret(path: &Path) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    file.write_all(halves.map(|half| half.simple().to_string()).concat().as_bytes())
}
