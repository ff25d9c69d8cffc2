//! The process table as an outsider sees it.

use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process {
    pub pid: i32,
    started: u64,
}

impl Process {
    /// The living process with this number; a dead one that nobody has reaped is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = stat(pid)?;
        (!matches!(stat.state, 'Z' | 'X')).then_some(Self { pid, started: stat.started })
    }

    /// A child that nobody has reaped: it is in the table, alive or not.
    pub fn unreaped(child: &std::process::Child) -> Self {
        let pid = child.id().cast_signed();
        let stat = stat(pid).expect("a child that is not reaped is in the process table");
        Self { pid, started: stat.started }
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    pub fn parent(self) -> Option<i32> {
        stat(self.pid).map(|stat| stat.parent)
    }

    /// SIGKILL; nothing happens if it is gone already.
    pub fn kill(self) {
        self.signal(Signal::KILL);
    }

    pub fn signal(self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), Pid::from_raw(self.pid)) {
            // It may have ended between the look and the call.
            kill_process(pid, signal).ok();
        }
    }

    /// The program that it runs.
    pub fn program(self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    pub fn arguments(self) -> Vec<String> {
        split(&read(self.pid, "cmdline"))
    }

    /// Whether it was started with this entry (`NAME=value`) in its environment.
    pub fn was_given(self, entry: &str) -> bool {
        read(self.pid, "environ").split(|byte| *byte == 0).any(|given| given == entry.as_bytes())
    }

    /// The processor time of all its threads until now, in ticks of a hundredth of a second. 0 if it is gone.
    pub fn ticks(self) -> u64 {
        stat(self.pid).map_or(0, |stat| stat.ticks)
    }

    /// For messages: number, parent and command line.
    pub fn describe(self) -> String {
        format!("{} (parent {:?}): {}", self.pid, self.parent(), self.arguments().join(" "))
    }
}

/// All living processes.
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("a process table");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Process::of(name.parse().ok()?)).collect()
}

/// All living processes that have `ancestor` among their parents.
pub fn descendants(ancestor: i32) -> Vec<Process> {
    let all = all();
    let mut family = vec![ancestor];
    let mut found = Vec::new();
    loop {
        let is_new = |process: &&Process| {
            process.parent().is_some_and(|parent| family.contains(&parent)) && !family.contains(&process.pid)
        };
        let next: Vec<_> = all.iter().filter(is_new).copied().collect();
        if next.is_empty() {
            return found;
        }
        family.extend(next.iter().map(|process| process.pid));
        found.extend(next);
    }
}

struct Stat {
    state: char,
    parent: i32,
    started: u64,
    ticks: u64,
}

/// The fields of `/proc/PID/stat` behind the command's name, which may itself contain blanks and brackets.
fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

fn read(pid: i32, what: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default()
}

fn split(zero_ended: &[u8]) -> Vec<String> {
    let entries = zero_ended.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    entries.map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
}
