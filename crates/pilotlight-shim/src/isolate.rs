//! Process attributes of the shim, and those of the CLI between fork and exec.
//!
//! Limits, user and parent-death signal apply to the forked child only: the shim needs its rights to kill the tree. It
//! also stays in the server's cgroup, so that a kill of the CLI's cgroup spares it.

use std::{fs, io};

use rustix::{
    fs::Mode,
    io::Errno,
    process::{
        DumpableBehavior, Gid, Pid, Resource, Rlimit, Signal, Uid, geteuid, getpid, getppid, getrlimit,
        set_child_subreaper, set_dumpable_behavior, set_parent_process_death_signal, setpgid, setrlimit,
        setsid, umask,
    },
    thread::{set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid},
};

use super::{
    args::ChildLimits,
    cgroup::Joined,
    isolation::{Isolation, Rung},
    privilege,
    rungs::{Refusal, landlock, seccomp},
    sys,
};

/// Makes this process a session leader and a subreaper without new privileges.
///
/// The shim stays dumpable: a CLI of the same user could kill it anyway, and an unprivileged server must be able to read
/// the environment of a leftover shim.
pub(crate) fn become_subreaper() -> io::Result<()> {
    // A new session has no controlling terminal. It fails only for a group leader, which is sufficient.
    let _leads_its_group_already = setsid();
    // Orphans of the tree are reparented to this process. All containment depends on it, so failure is fatal.
    set_child_subreaper(Some(getpid()))?;
    // Inherited by the CLI, irrevocable.
    set_no_new_privs(true)?;
    umask(Mode::RWXG | Mode::RWXO);
    Ok(())
}

/// OOM score adjustment during the fork of the CLI. Its drop restores the shim's own score.
pub(crate) struct OomScore(Option<Vec<u8>>);

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

impl OomScore {
    pub(crate) fn set(adj: Option<i32>) -> Self {
        let Some(adj) = adj else { return Self(None) };
        let before = fs::read(OOM_SCORE_ADJ).ok();
        if let Err(error) = fs::write(OOM_SCORE_ADJ, adj.to_string()) {
            eprintln!("pilotlight-shim: failed to set oom_score_adj {adj}: {error}");
        }
        Self(before)
    }
}

impl Drop for OomScore {
    fn drop(&mut self) {
        // The old value is always permitted; on a failure the shim is only a likelier victim of the OOM killer.
        let _restored = self.0.take().map(|before| fs::write(OOM_SCORE_ADJ, before));
    }
}

/// Attributes of the CLI, applied between fork and exec.
pub(crate) struct PreExec<'a> {
    shim: Pid,
    groups: &'a Joined,
    pub(crate) isolation: &'a Isolation,
    owner: Option<(u32, u32)>,
    nofile_soft: Option<u64>,
    limits: [(Resource, Option<u64>); 4],
}

impl<'a> PreExec<'a> {
    pub(crate) fn new(limits: &ChildLimits, isolation: &'a Isolation, groups: &'a Joined) -> Self {
        Self {
            shim: getpid(),
            groups,
            isolation,
            owner: limits.owner,
            nofile_soft: limits.nofile_soft,
            limits: [
                (Resource::Nofile, limits.nofile),
                (Resource::Nproc, limits.nproc),
                (Resource::Core, limits.core),
                (Resource::Fsize, limits.fsize),
            ],
        }
    }

    /// Applies them. Runs in the forked child; `inside` says whether it is in namespaces.
    pub(crate) fn apply(&self, inside: bool) -> Result<(), Refusal> {
        // A separate process group: a CLI that signals its group must not hit the shim.
        setpgid(None, None)?;
        self.groups.join().map_err(Refusal::of(Rung::Cgroup))?;
        self.become_owner()?;
        if inside {
            // Its parent is out of sight. The init process is not: it ends with the shim, and everything with it.
            set_parent_process_death_signal(Some(Signal::KILL))?;
        } else {
            self.die_with_shim()?;
        }
        for (resource, value) in &self.limits {
            if let Some(value) = value {
                setrlimit(*resource, clamp(*value, getrlimit(*resource)))?;
            }
        }
        // After the hard limit, which comes with a soft one.
        if let Some(soft) = self.nofile_soft {
            setrlimit(Resource::Nofile, lower(soft, getrlimit(Resource::Nofile)))?;
        }
        if self.isolation.landlock {
            landlock::restrict(self.isolation, inside).map_err(Refusal::of(Rung::Landlock))?;
        }
        // Last: it refuses calls of the steps above.
        if self.isolation.seccomp {
            seccomp::restrict(self.isolation).map_err(Refusal::of(Rung::Seccomp))?;
        }
        Ok(())
    }

    /// Attributes of the init process of namespaces.
    pub(crate) fn as_init(&self) -> Result<(), Refusal> {
        self.become_owner()?;
        // The CLI is the same user, and must not see what this process has left of the shim.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        sys::ignore_children();
        Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
    }

    /// Changes to the owner without capabilities.
    fn become_owner(&self) -> Result<(), Refusal> {
        privilege::empty_bounding_set()?;
        self.change_user().map_err(Refusal::of(Rung::Uid))?;
        // After the change of user, which needs capabilities.
        Ok(privilege::drop_all()?)
    }

    /// Has the kernel kill this process when the shim ends, which has only one thread. After a change of user, which
    /// clears it.
    pub(crate) fn die_with_shim(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(self.shim) { Ok(()) } else { Err(Errno::PIPE.into()) }
    }

    pub(crate) fn change_user(&self) -> io::Result<()> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        // A server with capabilities in place of root has groups too. In a user namespace they are gone already.
        if geteuid().is_root() || geteuid().as_raw() != uid {
            set_thread_groups(&[])?;
        }
        set_thread_gid(Gid::from_raw(gid))?;
        Ok(set_thread_uid(Uid::from_raw(uid))?)
    }
}

/// Both limits, at most the current hard limit: raising it would fail.
fn clamp(value: u64, now: Rlimit) -> Rlimit {
    let value = now.maximum.map_or(value, |maximum| value.min(maximum));
    Rlimit { current: Some(value), maximum: Some(value) }
}

/// The soft limit only; the program may raise it up to the hard limit.
fn lower(soft: u64, now: Rlimit) -> Rlimit {
    Rlimit { current: Some(now.maximum.map_or(soft, |maximum| soft.min(maximum))), maximum: now.maximum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_lowered_but_never_raised() {
        let lowered = clamp(10, Rlimit { current: Some(5), maximum: Some(20) });
        assert_eq!((lowered.current, lowered.maximum), (Some(10), Some(10)));
        let kept = clamp(30, Rlimit { current: Some(5), maximum: Some(20) });
        assert_eq!((kept.current, kept.maximum), (Some(20), Some(20)));
        let soft = lower(10, Rlimit { current: Some(20), maximum: Some(20) });
        assert_eq!((soft.current, soft.maximum), (Some(10), Some(20)));
        let free = clamp(30, Rlimit { current: None, maximum: None });
        assert_eq!((free.current, free.maximum), (Some(30), Some(30)));
    }
}
