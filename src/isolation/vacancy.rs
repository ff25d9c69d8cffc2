//! User ids of spares of which a process may be left. Each is looked for in the process table again and again, and given back
//! once no process has it. Blocking.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::{fs, io};

use rustix::thread::{CapabilitySet, capabilities};

use crate::support::lock::MutexExt;
use crate::workspace::Owner;

/// Ids that are looked for. More would be given back by the next start alone; a spare fails ever more seldom.
const MOST: usize = 256;

/// An id that may still have processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    owner: Owner,
    /// The shim that may not have started its child yet.
    shim: u32,
}

/// The ids that may still have processes.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<Vec<Doubt>>);

impl Doubts {
    /// Adds an id; false: there are too many.
    pub(super) fn add(&self, owner: Owner, shim: u32) -> bool {
        let mut doubts = self.0.lock_unpoisoned();
        let has_room = doubts.len() < MOST;
        if has_room {
            doubts.push(Doubt { owner, shim });
        }
        has_room
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock_unpoisoned().len()
    }

    /// Takes out the ids that no process has any more.
    pub(super) fn resolved(&self) -> io::Result<Vec<Owner>> {
        self.resolved_by(|| Seen::now(Path::new("/proc")))
    }

    fn resolved_by(&self, look: impl FnOnce() -> io::Result<Seen>) -> io::Result<Vec<Owner>> {
        // One that comes later may have a process that began behind the look.
        let asked = self.0.lock_unpoisoned().clone();
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let seen = look()?;
        let mut doubts = self.0.lock_unpoisoned();
        let is_gone = |doubt: &Doubt| asked.contains(doubt) && !seen.has(doubt);
        let (gone, left) = doubts.iter().copied().partition(is_gone);
        *doubts = left;
        Ok(gone.into_iter().map(|doubt: Doubt| doubt.owner).collect())
    }
}

/// Whether the process table shows the processes of all users. Where it does not, an id with processes looks free.
pub(super) fn shows_all() -> bool {
    let may_trace = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE));
    may_trace || fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| !hides_others(&mounts))
}

/// Whether `/proc` hides the processes of other users (`hidepid`; `ProtectProc=` of a systemd unit).
fn hides_others(mounts: &str) -> bool {
    let options = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        (mount.split(' ').nth(4)? == "/proc").then(|| system.split(' ').nth(2).map(str::to_owned))?
    };
    // What was mounted last lies on top.
    let options = mounts.lines().filter_map(options).next_back().unwrap_or_default();
    let mut modes = options.split(',').filter_map(|option| option.strip_prefix("hidepid="));
    modes.any(|mode| !matches!(mode, "0" | "off"))
}

/// What lives on the machine.
#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<u32>,
    /// Own children, shims among them: a pid is not used again while its process is not reaped.
    children: HashSet<u32>,
}

impl Seen {
    fn now(proc: &Path) -> io::Result<Self> {
        let mut seen = Self::default();
        for entry in fs::read_dir(proc)? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match fs::read_to_string(entry.path().join("status")) {
                Ok(status) => seen.note(pid, &status),
                // It has ended meanwhile.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    }

    fn note(&mut self, pid: u32, status: &str) {
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        // It runs no more, and holds nothing.
        if line("State:").is_some_and(|state| state.starts_with(['Z', 'X'])) {
            return;
        }
        // Real, effective, saved, of the file system.
        let ids = line("Uid:").into_iter().flat_map(str::split_whitespace);
        self.ids.extend(ids.filter_map(|id| id.parse::<u32>().ok()));
        if line("PPid:").and_then(|parent| parent.parse().ok()) == Some(std::process::id()) {
            self.children.insert(pid);
        }
    }

    fn has(&self, doubt: &Doubt) -> bool {
        self.ids.contains(&doubt.owner.uid) || self.children.contains(&doubt.shim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, parent: u32, ids: &str) -> String {
        format!("Name:\tsleep\nState:\t{state}\nPid:\t9\nPPid:\t{parent}\nUid:\t{ids}\nGid:\t0\t0\t0\t0\n")
    }

    fn doubt(uid: u32, shim: u32) -> Doubt {
        Doubt { owner: Owner { uid, gid: uid }, shim }
    }

    #[test]
    fn id_is_free_once_no_process_and_no_shim_has_it() {
        let own = std::process::id();
        let mut seen = Seen::default();
        seen.note(10, &status("S (sleeping)", 1, "200\t201\t202\t203"));
        seen.note(11, &status("Z (zombie)", 1, "204\t204\t204\t204"));
        seen.note(12, &status("D (disk sleep)", own, "0\t0\t0\t0"));
        seen.note(13, &status("S (sleeping)", 1, "0\t0\t0\t0"));
        for uid in 200..204 {
            assert!(seen.has(&doubt(uid, 99)), "{uid}");
        }
        assert!(!seen.has(&doubt(204, 99)), "a zombie does nothing");
        assert!(seen.has(&doubt(205, 12)), "its shim may still start a child");
        assert!(!seen.has(&doubt(205, 13)), "another process has the pid");
    }

    #[test]
    fn own_id_is_seen_and_a_strange_one_is_given_back() {
        let doubts = Doubts::default();
        let own = rustix::process::geteuid().as_raw();
        assert!(doubts.add(doubt(own, u32::MAX).owner, u32::MAX));
        assert!(doubts.add(doubt(1_987_654_321, 0).owner, u32::MAX));
        let given_back: Vec<_> = doubts.resolved().unwrap().into_iter().map(|owner| owner.uid).collect();
        assert_eq!((given_back, doubts.count()), (vec![1_987_654_321], 1));
    }

    /// The process of an id that came during the look may have begun behind it.
    #[test]
    fn doubt_that_comes_during_a_look_waits_for_the_next() {
        let doubts = Doubts::default();
        let (first, second) = (doubt(200, 10), doubt(201, 11));
        assert!(doubts.add(first.owner, first.shim));
        let look = || {
            assert!(doubts.add(second.owner, second.shim));
            Ok(Seen::default())
        };
        assert_eq!(doubts.resolved_by(look).unwrap(), [first.owner]);
        assert_eq!(doubts.resolved_by(|| Ok(Seen::default())).unwrap(), [second.owner]);
    }

    #[test]
    fn hidden_processes_are_noticed() {
        let line = |options: &str| format!("41 25 0:37 / /proc rw,nosuid,noexec - proc proc {options}\n");
        for (options, is_hidden) in [
            ("rw", false),
            ("rw,hidepid=0", false),
            ("rw,hidepid=off", false),
            ("rw,hidepid=2", true),
            ("rw,gid=9,hidepid=invisible", true),
            ("rw,hidepid=ptraceable,subset=pid", true),
        ] {
            assert_eq!(hides_others(&line(options)), is_hidden, "{options}");
        }
        let [shown, hidden] = ["rw", "rw,hidepid=2"].map(line);
        assert!(hides_others(&format!("{shown}{hidden}")) && !hides_others(&format!("{hidden}{shown}")));
        assert!(!hides_others(&hidden.replace(" /proc ", " /srv/proc ")), "another mount");
    }

    #[test]
    fn doubts_are_bounded() {
        let doubts = Doubts::default();
        let added = (0..2 * MOST).filter(|_| doubts.add(Owner { uid: 1, gid: 1 }, 1)).count();
        assert_eq!(added, MOST);
    }
}
