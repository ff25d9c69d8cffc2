//! Processes as `/proc` shows them.

use std::collections::HashMap;

use rustix::process::{Pid, Signal, kill_process};

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    pub pid: i32,
    started: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub id: Id,
    pub parent: i32,
    /// It has ended and waits to be reaped.
    pub zombie: bool,
}

/// All processes, by number.
pub fn table() -> HashMap<i32, Line> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, line(pid)?))).collect()
}

/// Signals exactly this process; whether it was there.
pub fn signal(id: Id, signal: Signal) -> bool {
    let is_it = line(id.pid).is_some_and(|line| line.id == id && !line.zombie);
    is_it && kill_process(Pid::from_raw(id.pid).unwrap(), signal).is_ok()
}

pub fn is_alive(id: Id) -> bool {
    line(id.pid).is_some_and(|line| line.id == id && !line.zombie)
}

/// For messages.
pub fn describe(id: Id) -> String {
    let command = String::from_utf8_lossy(&read(id.pid, "cmdline")).replace('\0', " ");
    format!("{} {}", id.pid, command.chars().take(160).collect::<String>())
}

pub fn is_shim(pid: i32) -> bool {
    contains(&read(pid, "cmdline"), b"--term-grace-ms")
}

pub fn is_cli(pid: i32) -> bool {
    let command = read(pid, "cmdline");
    contains(&command, b"--output-format") && !contains(&command, b"--term-grace-ms")
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}

pub fn read(pid: i32, what: &str) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default()
}

fn line(pid: i32) -> Option<Line> {
    let text = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Some(Line {
        id: Id { pid, started: fields.get(19)?.parse().ok()? },
        parent: fields.get(1)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
    })
}
