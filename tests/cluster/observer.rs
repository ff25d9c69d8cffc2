//! The outside observer: looks at the process table the whole time, for users with children of two nodes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::asker::now;
use crate::common::layout;
use crate::common::place::MARK;
use crate::common::process::Process;
use crate::nodes::Nodes;

/// Interval of looking.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Looks after which a process is what it is: at first it is what has forked it.
const SETTLED: u32 = 25;

/// A user's child on a node.
#[derive(Debug, Clone)]
pub struct Seen {
    pub user: String,
    /// Mark of the node's place.
    pub mark: String,
    pub first: Instant,
    pub last: Instant,
    process: Process,
    is_alive: bool,
}

/// Looks until it is dropped or asked.
pub struct Observer {
    end: Arc<AtomicBool>,
    seen: Arc<Mutex<HashMap<i32, Seen>>>,
    looking: Option<JoinHandle<Vec<String>>>,
}

impl Observer {
    /// `users`: those who talk, each with the names of its conversations.
    pub fn start<'a>(cluster: &Nodes, users: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let sessions =
            users.into_iter().map(|(user, conversation)| (user.to_owned(), conversation.to_owned()));
        let data = cluster.nodes.iter().map(|node| (node.place().id().to_owned(), node.place().data_dir()));
        let (end, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let looking = Looking {
            names: Names { sessions: sessions.collect(), data: data.collect(), known: HashMap::new() },
            others: HashMap::new(),
            seen: Arc::clone(&seen),
            overlaps: Vec::new(),
        };
        let stop = Arc::clone(&end);
        let looking = std::thread::spawn(move || looking.run(&stop));
        Self { end, seen, looking: Some(looking) }
    }

    /// When the last child of a node was seen that began before a moment.
    pub fn last_of(&self, mark: &str, before: Instant) -> Option<Instant> {
        let seen = self.seen.lock().unwrap();
        seen.values().filter(|it| it.mark == mark && it.first < before).map(|it| it.last).max()
    }

    /// Number of children of a node that live.
    pub fn alive(&self, mark: &str) -> usize {
        self.seen.lock().unwrap().values().filter(|it| it.mark == mark && it.is_alive).count()
    }

    /// The shims of a node's children that live.
    pub fn shims(&self, mark: &str) -> Vec<Process> {
        let seen = self.seen.lock().unwrap();
        let children = seen.values().filter(|it| it.mark == mark && it.process.is_alive());
        children.filter_map(|it| Process::of(it.process.parent()?)).collect()
    }

    /// Ends the observation: there were children, and never two of a user on different nodes.
    pub fn check(mut self) {
        self.end.store(true, Ordering::Release);
        let overlaps = self.looking.take().unwrap().join().expect("the observer looks on");
        assert!(!self.seen.lock().unwrap().is_empty(), "no child was seen");
        assert!(overlaps.is_empty(), "users with children of two nodes: {overlaps:#?}");
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
    }
}

/// Directories of sessions have names that do not tell whose they are; the records of a node do.
struct Names {
    sessions: Vec<(String, String)>,
    data: HashMap<String, PathBuf>,
    known: HashMap<String, String>,
}

impl Names {
    /// The user of a process. Its node may have a disk of its own, which the parent of the process sees.
    fn user(&mut self, pid: i32, mark: &str, directory: &str) -> Option<String> {
        if !self.known.contains_key(directory) {
            let shim = Process::of(pid)?.parent()?;
            let data = self.data.get(mark)?.strip_prefix("/").ok()?;
            let data = PathBuf::from(format!("/proc/{shim}/root")).join(data);
            for (user, conversation) in &self.sessions {
                let found = layout::session_dir(&data, user, conversation);
                let name = found.file_name().unwrap().to_str().unwrap().to_owned();
                self.known.insert(name, user.clone());
            }
        }
        self.known.get(directory).cloned()
    }
}

struct Looking {
    names: Names,
    /// Looks at processes that are no children.
    others: HashMap<i32, u32>,
    seen: Arc<Mutex<HashMap<i32, Seen>>>,
    overlaps: Vec<String>,
}

impl Looking {
    fn run(mut self, end: &AtomicBool) -> Vec<String> {
        let began = now();
        while !end.load(Ordering::Acquire) {
            self.look(began);
            #[expect(clippy::disallowed_methods, reason = "no event announces a process")]
            std::thread::sleep(LOOK_EVERY);
        }
        self.overlaps
    }

    fn look(&mut self, began: Instant) {
        let entries = std::fs::read_dir("/proc").expect("a process table").flatten();
        let pids: HashSet<i32> = entries.filter_map(|it| it.file_name().to_str()?.parse().ok()).collect();
        self.others.retain(|pid, _| pids.contains(pid));
        let mut seen = self.seen.lock().unwrap();
        for pid in pids {
            if seen.get(&pid).is_some_and(|it| it.is_alive)
                || self.others.get(&pid).is_some_and(|it| *it >= SETTLED)
            {
                continue;
            }
            match child(pid, &mut self.names) {
                Some((user, mark)) => {
                    let Some(process) = Process::of(pid) else { continue };
                    let (first, last) = (now(), now());
                    seen.insert(pid, Seen { user, mark, first, last, process, is_alive: true });
                }
                None => *self.others.entry(pid).or_default() += 1,
            }
        }
        let mut nodes: BTreeMap<&str, Vec<(&str, i32, Instant)>> = BTreeMap::new();
        for (pid, child) in seen.iter_mut().filter(|(_, child)| child.is_alive) {
            // By the time of its start as well: its number may be another's by now.
            child.is_alive = child.process.is_alive();
            if child.is_alive {
                child.last = now();
                nodes.entry(&child.user).or_default().push((&child.mark, *pid, child.first));
            }
        }
        for (user, children) in nodes {
            let is_one = children.windows(2).all(|pair| pair[0].0 == pair[1].0);
            if !is_one && self.overlaps.len() < 100 {
                let at = began.elapsed();
                let ages: Vec<_> = children
                    .iter()
                    .map(|(mark, pid, first)| format!("{pid} of {mark}, {:?} old", first.elapsed()))
                    .collect();
                self.overlaps.push(format!("{user} at {at:?}: {ages:?}"));
            }
        }
    }
}

/// User and place of a CLI that serves a session.
fn child(pid: i32, names: &mut Names) -> Option<(String, String)> {
    let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).ok();
    let command = read("cmdline")?;
    let command = String::from_utf8_lossy(&command);
    if !command.contains("--output-format") || command.contains("--term-grace-ms") {
        return None;
    }
    let environment = read("environ")?;
    let value = |name: &str| {
        let entry = environment
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        entry.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let (directory, mark) = (value("PILOTLIGHT_SESSION")?, value(MARK)?);
    Some((names.user(pid, &mark, &directory)?, mark))
}
