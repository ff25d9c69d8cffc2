//! The process table, watched by a thread of its own for as long as a run lasts. It sees what an outsider sees: which
//! process is whose child, what its command line is, and which session its environment names.
//!
//! A **tree** is a shim and everything that was ever seen below it. It is over when its shim or its CLI is gone; what
//! is left of it after that has to go within a bound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::process::{Id, Line, describe, is_alive, is_cli, is_shim, read, signal, table};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(12);

/// What is left of a tree that is over may take this time: the shim's own sweep, or the reaper's where the shim itself was
/// killed, on a machine that is busy with twenty others.
const LEFTOVERS_GO_WITHIN: Duration = Duration::from_secs(4);

/// Maximum time until an ended process is reaped.
const REAPED_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Tree {
    /// The directory of the session that it serves.
    session: String,
    cli: Option<Id>,
    /// Alive when last looked at.
    members: Vec<Id>,
    over_since: Option<Instant>,
    shim_alive: bool,
}

#[derive(Default)]
struct Seen {
    trees: HashMap<Id, Tree>,
    zombies: HashMap<Id, Instant>,
    violations: Vec<String>,
    clis: u64,
    looks: u64,
    longest_leftover: Duration,
}

/// See the module.
pub struct Table {
    seen: Arc<Mutex<Seen>>,
    /// The server; 0: none.
    host: Arc<AtomicI32>,
    stop: Option<SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    paused: Arc<AtomicBool>,
}

impl Table {
    pub fn watch() -> Self {
        let (seen, host) = (Arc::<Mutex<Seen>>::default(), Arc::new(AtomicI32::new(0)));
        let paused = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = sync_channel(1);
        let (theirs, server, rests) = (seen.clone(), host.clone(), paused.clone());
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                if !rests.load(Ordering::Relaxed) {
                    look(&theirs, server.load(Ordering::Relaxed));
                }
            }
        });
        Self { seen, host, stop: Some(stop), thread: Some(thread), paused }
    }

    /// The server is this process from now on.
    pub fn set_host(&self, pid: i32) {
        self.host.store(pid, Ordering::Relaxed);
    }

    /// The rules that were seen broken.
    pub fn violations(&self) -> Vec<String> {
        self.seen.lock().unwrap().violations.clone()
    }

    /// Looks now, and counts how many processes of all trees are alive.
    pub fn alive(&self) -> Vec<Id> {
        self.alive_except(&[])
    }

    /// The same without the trees in these directories.
    pub fn alive_except(&self, directories: &[String]) -> Vec<Id> {
        look(&self.seen, self.host.load(Ordering::Relaxed));
        let seen = self.seen.lock().unwrap();
        let counted = || seen.trees.iter().filter(|(_, tree)| !directories.contains(&tree.session));
        let shims = counted().filter(|(_, tree)| tree.shim_alive).map(|(shim, _)| *shim);
        shims.chain(counted().flat_map(|(_, tree)| tree.members.iter().copied())).collect()
    }

    /// The CLI that serves a session now.
    pub fn cli(&self, session: &str) -> Option<Id> {
        let seen = self.seen.lock().unwrap();
        let current = seen.trees.values().filter(|tree| tree.session == session && tree.over_since.is_none());
        current.filter_map(|tree| tree.cli).next()
    }

    /// The shim above it.
    pub fn shim(&self, session: &str) -> Option<Id> {
        let seen = self.seen.lock().unwrap();
        let current =
            seen.trees.iter().filter(|(_, tree)| tree.session == session && tree.over_since.is_none());
        current.map(|(shim, _)| *shim).next()
    }

    /// CLIs seen so far, looks so far, and the longest that anything outlived its tree.
    pub fn totals(&self) -> (u64, u64, Duration) {
        let seen = self.seen.lock().unwrap();
        (seen.clis, seen.looks, seen.longest_leftover)
    }

    /// Ends everything that is left, so that a failed run leaves nothing.
    pub fn end_all(&self) {
        self.paused.store(true, Ordering::Relaxed);
        for id in self.alive() {
            signal(id, Signal::KILL);
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn look(seen: &Mutex<Seen>, host: i32) {
    let mut seen = seen.lock().unwrap();
    // After the wait for the lock.
    let now = Instant::now();
    let table = table();
    seen.looks += 1;
    find_shims(&mut seen, &table, host);
    // Also what descends from a member whose shim is gone.
    let known = seen.trees.iter().flat_map(|(shim, tree)| tree.members.iter().map(|id| (*id, *shim)));
    let known: HashMap<Id, Id> = known.chain(seen.trees.keys().map(|shim| (*shim, *shim))).collect();
    let mut below: HashMap<Id, Vec<Line>> = HashMap::new();
    for line in table.values().filter(|line| !line.zombie) {
        if let Some(shim) = shim_above(&known, &table, line) {
            below.entry(shim).or_default().push(*line);
        }
    }
    let mut found = 0;
    let mut late = Vec::new();
    let mut longest = Duration::ZERO;
    for (shim, tree) in &mut seen.trees {
        tree.shim_alive = table.get(&shim.pid).is_some_and(|line| line.id == *shim && !line.zombie);
        // Also what was seen below before and has another parent now.
        tree.members.retain(|id| table.get(&id.pid).is_some_and(|line| line.id == *id && !line.zombie));
        for line in below.remove(shim).unwrap_or_default() {
            if !tree.members.contains(&line.id) {
                tree.members.push(line.id);
            }
            if tree.cli.is_none() && line.parent == shim.pid && is_cli(line.id.pid) {
                tree.cli = Some(line.id);
                found += 1;
            }
        }
        let cli_gone = tree.cli.is_some_and(|cli| !tree.members.contains(&cli));
        if !tree.shim_alive || cli_gone {
            let since = *tree.over_since.get_or_insert(now);
            let over = now - since;
            if !tree.members.is_empty() {
                longest = longest.max(over);
            }
            if !tree.members.is_empty() && over > LEFTOVERS_GO_WITHIN {
                late.extend(tree.members.iter().map(|id| describe(*id)));
                tree.members.clear();
            }
        }
    }
    seen.clis += found;
    seen.longest_leftover = seen.longest_leftover.max(longest);
    if !late.is_empty() {
        seen.violations.push(format!("left behind for {LEFTOVERS_GO_WITHIN:?}: {late:?}"));
    }
    seen.trees.retain(|_, tree| tree.shim_alive || !tree.members.is_empty());
    find_doubles(&mut seen);
    find_zombies(&mut seen, &table, host, now);
}

fn find_shims(seen: &mut Seen, table: &HashMap<i32, Line>, host: i32) {
    let children = table.values().filter(|line| line.parent == host && !line.zombie && host != 0);
    for line in children {
        if seen.trees.contains_key(&line.id) || !is_shim(line.id.pid) {
            continue;
        }
        let environ = read(line.id.pid, "environ");
        let session = environ.split(|byte| *byte == 0).find_map(|it| it.strip_prefix(b"PILOTLIGHT_SESSION="));
        let Some(session) = session else { continue };
        let session = String::from_utf8_lossy(session).into_owned();
        seen.trees.insert(line.id, Tree { session, shim_alive: true, ..Tree::default() });
    }
}

fn shim_above(known: &HashMap<Id, Id>, table: &HashMap<i32, Line>, line: &Line) -> Option<Id> {
    let mut at = table.get(&line.parent)?;
    loop {
        if let Some(shim) = known.get(&at.id) {
            return Some(*shim);
        }
        at = table.get(&at.parent).filter(|above| above.id.pid > 1)?;
    }
}

/// At most one CLI per session. Two in one look may have lived one after the other: both must still be alive after it.
fn find_doubles(seen: &mut Seen) {
    let mut of: HashMap<&str, Vec<Id>> = HashMap::new();
    for tree in seen.trees.values() {
        let alive = tree.cli.filter(|cli| tree.members.contains(cli));
        of.entry(&tree.session).or_default().extend(alive);
    }
    let doubles = of.into_iter().filter(|(_, clis)| clis.len() > 1);
    let doubles: Vec<String> = doubles
        .filter_map(|(session, clis)| {
            let alive: Vec<_> = clis.into_iter().filter(|cli| is_alive(*cli)).collect();
            let described: Vec<_> = alive.iter().map(|cli| describe(*cli)).collect();
            (alive.len() > 1)
                .then(|| format!("{} children of session {session} at once: {described:?}", alive.len()))
        })
        .collect();
    seen.violations.extend(doubles);
}

fn find_zombies(seen: &mut Seen, table: &HashMap<i32, Line>, host: i32, now: Instant) {
    let ours = |line: &&Line| {
        let parent_is_shim = || table.get(&line.parent).is_some_and(|it| seen.trees.contains_key(&it.id));
        line.zombie && ((host != 0 && line.parent == host) || parent_is_shim())
    };
    let zombies: Vec<Id> = table.values().filter(ours).map(|line| line.id).collect();
    seen.zombies.retain(|id, _| zombies.contains(id));
    for id in zombies {
        let since = *seen.zombies.entry(id).or_insert(now);
        if now - since > REAPED_WITHIN {
            let line = table.values().find(|line| line.id == id);
            let parent = line.and_then(|line| table.get(&line.parent)).map(|parent| {
                let waits_in = std::fs::read_to_string(format!("/proc/{}/wchan", parent.id.pid));
                format!("{} in {waits_in:?}", describe(parent.id))
            });
            seen.violations.push(format!("a zombie that nobody reaps: {} of {parent:?}", id.pid));
            seen.zombies.insert(id, now + Duration::from_secs(3600));
        }
    }
}
