//! Descendants of a process, read from `/proc`.
//!
//! The source is the kernel's list of children of each thread. On a kernel without these lists, one pass over all
//! processes finds direct children only; deeper ones are reparented to the subreaper as their parents die.

use std::{
    fs::{self, File},
    io::{self, Read as _},
};

/// Maximum descendants found in one pass; a later pass finds the rest.
const MAX_FAMILY: usize = 65_536;

/// Appends the children of all threads of `pid`; `Err` without kernel lists or without the process.
fn children_of(pid: i32, text: &mut String, into: &mut Vec<i32>) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("children");
        text.clear();
        File::open(path)?.read_to_string(text)?;
        into.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    Ok(())
}

/// Whether the kernel lists the children of a thread.
pub fn kernel_lists_children() -> bool {
    std::path::Path::new("/proc/thread-self/children").exists()
}

/// Replaces the content of `into` with the children of `root`.
pub fn children(root: i32, into: &mut Vec<i32>) {
    into.clear();
    if children_of(root, &mut String::new(), into).is_err() {
        into.clear();
        let all = parents();
        into.extend(all.iter().filter(|(_, parent)| *parent == root).map(|(pid, _)| *pid));
    }
}

/// Appends all descendants of the processes in `family`, nearest first.
pub fn add_descendants(family: &mut Vec<i32>) {
    add_up_to(MAX_FAMILY, family);
}

/// The same, until the family has this size.
pub(crate) fn add_up_to(most: usize, family: &mut Vec<i32>) {
    let mut text = String::new();
    let mut next = 0;
    while let Some(&pid) = family.get(next).filter(|_| family.len() < most) {
        // If it has exited, its children were reparented to the subreaper; the next pass finds them there.
        let _gone = children_of(pid, &mut text, family);
        next += 1;
    }
}

/// All processes, each with its parent.
fn parents() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

/// Whether `pid` is a descendant of `root` at this moment.
pub(crate) fn is_descendant(root: i32, pid: i32) -> bool {
    /// Maximum length of a chain of parents; longer chains shorten as their upper part is killed.
    const MAX_CHAIN: usize = 1024;
    let mut at = pid;
    for _ in 0..MAX_CHAIN {
        match parent_of(at) {
            Some(parent) if parent == root => return true,
            Some(parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

fn parent_of(pid: i32) -> Option<i32> {
    stat(pid).and_then(|stat| field(&stat, 4)?.parse().ok())
}

/// Start time of `pid` in ticks since boot; together with the pid it identifies one process.
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).and_then(|stat| field(&stat, 22)?.parse().ok())
}

fn stat(pid: i32) -> Option<String> {
    // The process name in it may be any bytes.
    fs::read(format!("/proc/{pid}/stat")).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// A field by its number in proc(5), from the third on. The second, the name, may contain blanks and brackets.
fn field(stat: &str, number: usize) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn stat_fields_follow_any_process_name() {
        let stat = "42 (a) 1 (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10";
        assert_eq!(field(stat, 3), Some("S"));
        assert_eq!(field(stat, 4), Some("7"));
        assert_eq!(field(stat, 22), Some("98765"));
        assert_eq!(field("42 (broken", 4), None);
    }

    #[test]
    fn kernel_lists_and_full_scan_agree() {
        let mut child = Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn().unwrap();
        let pid = child.id().cast_signed();
        let me = std::process::id().cast_signed();
        let mut found = Vec::new();
        let deadline = std::time::Duration::from_secs(10);
        let begun = crate::kill::now();
        while found.is_empty() && begun.elapsed() < deadline {
            children(pid, &mut found);
        }
        let [grandchild] = found[..] else { panic!("expected one child, found {found:?}") };
        assert!(parents().contains(&(grandchild, pid)));
        let mut family = vec![pid];
        add_descendants(&mut family);
        assert_eq!(family, [pid, grandchild]);
        assert!(is_descendant(me, grandchild));
        assert!(!is_descendant(grandchild, pid));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(grandchild).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        child.wait().unwrap();
        assert!(!is_descendant(me, pid));
    }
}
