//! What the demo runs on: a directory of its own, a configuration, the whole server, and a client of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotlight::Config;
use pilotlight::adapter::Dirs;
use pilotlight::server::{ServeError, Server};
use pilotlight::system::probe::{ProbeError, Probed, probe, version};
use tokio::time::{Instant, sleep};

use super::alone::Alone;
use super::client::Client;
use super::process::{MARK, Process, started_here};
use super::show::Problem;

/// Short, so that an eviction can be watched; longer than any pause that must not cause one, on a slow machine too.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Memory is measured this often: the demo wants figures at its end.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// The simulation does nothing for this long when it starts. The real CLI needs about as much.
pub(super) const SIMULATED_START: Duration = Duration::from_millis(450);
/// How often something is looked at that nothing announces.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the server may take to call itself ready: it starts the CLI once for that.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Nothing runs any more when the server is stopped, or its user has lost patience.
const DRAIN: Duration = Duration::from_secs(1);
/// How long after the end of the server anything of it may be there.
const GONE_WITHIN: Duration = Duration::from_secs(2);

/// The demo could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum CannotBegin {
    #[error("cannot make a temporary directory: {0}")]
    Directory(std::io::Error),
    #[error(transparent)]
    Cli(#[from] ProbeError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the server does not become ready: {0}")]
    NotReady(String),
}

/// Before the server runs.
pub(super) struct Ground {
    pub(super) place: Place,
    pub(super) config: Config,
    pub(super) program: PathBuf,
    pub(super) version: Option<String>,
    pub(super) probed: Probed,
    mark: String,
}

/// The running system.
pub(super) struct Stage {
    pub(super) ground: Ground,
    pub(super) client: Client,
    server: Server,
}

/// What was there before the server was stopped, and after it.
pub(super) struct Ended {
    pub(super) before: usize,
    pub(super) left: Vec<Process>,
    pub(super) took: Duration,
}

impl Ground {
    /// Makes the directory and finds out about the CLI by starting it once.
    pub(super) async fn prepare(config: Config, keep: bool) -> Result<Self, CannotBegin> {
        let place = Place::new(keep).map_err(CannotBegin::Directory)?;
        let mark = uuid::Uuid::new_v4().to_string();
        let config = demo_config(config, &place.path, &mark);
        let (program, version) = version(&config, &place.path).await.map_err(ProbeError::from)?;
        let probed = probe(&config, &place.path.join("trial")).await?;
        Ok(Self { place, config, program, version, probed, mark })
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.config.cli.program == SIMULATION
    }

    /// The CLI without the server, with directories of its own.
    pub(super) fn alone(&self) -> std::io::Result<Alone<'_>> {
        let root = self.place.path.join("alone");
        let dirs = Dirs { work: root.join("work"), home: root.join("home"), tmp: root.join("tmp") };
        for dir in [&dirs.work, &dirs.home, &dirs.tmp] {
            private_directory(dir)?;
        }
        let session_id = uuid::Uuid::new_v4().to_string();
        let program = self.program.clone();
        Ok(Alone { config: &self.config, program, dirs, session_id, mark: &self.mark })
    }
}

impl Stage {
    /// Starts the server.
    pub(super) async fn set(ground: Ground) -> Result<Self, CannotBegin> {
        let server = Server::start(ground.config.clone()).await?;
        let client = Client::new(server.http(), server.admin(), &ground.config.metrics.prefix);
        let client = client.map_err(|problem| CannotBegin::NotReady(problem.to_string()))?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match client.not_ready().await {
                Ok(None) => return Ok(Self { ground, client, server }),
                Ok(Some(why)) if Instant::now() >= deadline => return Err(CannotBegin::NotReady(why)),
                Err(problem) => return Err(CannotBegin::NotReady(problem.to_string())),
                Ok(Some(_)) => sleep(LOOK_EVERY).await,
            }
        }
    }

    pub(super) fn http(&self) -> SocketAddr {
        self.server.http()
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.server.admin()
    }

    /// Kills the process of a user as the kernel's memory killer would: without a warning.
    pub(super) async fn kill(&self, user: &str) -> Result<i32, Problem> {
        let pid = self.client.pid(user).await?;
        let process = Process::of(pid).ok_or_else(|| Problem::seen(format!("there is no process {pid}")))?;
        let mark = self.ground.mark.clone();
        let killed = tokio::task::spawn_blocking(move || process.kill(&mark)).await;
        killed.map_err(|error| Problem::seen(error.to_string()))?.map_err(Problem::Seen)?;
        Ok(pid)
    }

    /// Stops the server in order, then looks for anything that it has left.
    pub(super) async fn strike(self) -> (Ground, Ended) {
        let mark = self.ground.mark.clone();
        let before = started_here(&mark);
        let begin = Instant::now();
        self.server.shutdown(DRAIN).await;
        let took = begin.elapsed();
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let mut left = started_here(&mark);
            // Also what is no longer a descendant, and has cleared its environment.
            left.extend(
                before
                    .iter()
                    .filter(|process| process.is_alive())
                    .filter(|process| !left.contains(process))
                    .collect::<Vec<_>>(),
            );
            if left.is_empty() || Instant::now() >= deadline {
                return (self.ground, Ended { before: before.len(), left, took });
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Repeats a look until it finds something.
pub(super) async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Problem>,
) -> Result<T, Problem> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Problem::seen(format!("not within {} s: {what}", within.as_secs())));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The built-in simulation, as a program name.
pub(super) const SIMULATION: &str = "sim";

/// What was asked for, with what the demo needs.
fn demo_config(mut config: Config, place: &Path, mark: &str) -> Config {
    config.data_dir = place.join("data");
    config.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.admin.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.session.idle_timeout = IDLE_TIMEOUT;
    config.metrics.sample_interval = SAMPLE_INTERVAL;
    // The pieces of an answer are what the demo measures by.
    config.cli.partial_messages = true;
    config.cli.env.insert(MARK.to_owned(), mark.to_owned());
    if config.cli.program == SIMULATION {
        let start = format!("slow-start={}", SIMULATED_START.as_millis());
        config.cli.args.extend(["--fault".to_owned(), start]);
    }
    config
}

/// A directory of our own, removed at the end.
pub(super) struct Place {
    pub(super) path: PathBuf,
    keep: bool,
}

impl Place {
    fn new(keep: bool) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("pilotlight-demo-{}", uuid::Uuid::new_v4().simple()));
        private_directory(&path)?;
        Ok(Self { path, keep })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the temporary directory was not removed");
        }
    }
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
