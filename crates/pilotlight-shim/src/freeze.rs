//! Freezing the process tree of an idle CLI, so that it uses no processor time, and thawing it.
//!
//! A cgroup freezes as a whole, concurrent forks included. Without one, SIGSTOP goes to every process of the tree: pass
//! after pass, because a process that is not stopped yet may fork. A frozen tree is killed as any other: SIGKILL and
//! `cgroup.kill` need no thaw.

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::{cgroup::Group, descendants};

/// Passes over the tree. An idle CLI forks nothing; a tree that forks faster than this stays partly awake, which harms
/// nothing but the saving.
const MAX_PASSES: usize = 8;

/// Freezes the tree.
pub(crate) fn freeze(group: Option<&Group>) {
    if group.is_some_and(|group| group.freeze(true).is_ok()) {
        return;
    }
    let mut before = Vec::new();
    for _ in 0..MAX_PASSES {
        let family = signal_all(Signal::STOP);
        if family.iter().all(|pid| before.contains(pid)) {
            return;
        }
        before = family;
    }
}

/// Thaws the tree, however it was frozen. Does nothing to a tree that is not frozen.
pub(crate) fn thaw(group: Option<&Group>) {
    // Both: a group that was removed and made again freezes nothing, but its processes may have been stopped before.
    let _not_frozen = group.map(|group| group.freeze(false));
    signal_all(Signal::CONT);
}

/// Sends a signal to all descendants; returns them.
fn signal_all(signal: Signal) -> Vec<i32> {
    let me = getpid().as_raw_pid();
    let mut family = Vec::new();
    descendants::children(me, &mut family);
    descendants::add_descendants(&mut family);
    for &raw in &family {
        let Some(pid) = Pid::from_raw(raw) else { continue };
        // The pidfd is opened before the check of the ancestry, so the check cannot be about a reused pid.
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            && descendants::is_descendant(me, raw)
        {
            let _ended = pidfd_send_signal(pidfd, signal);
        }
    }
    family
}
