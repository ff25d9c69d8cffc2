//! What the shim takes upon itself, and what it puts upon the CLI before it runs.
//!
//! What the CLI alone shall have (limits, the user, the parent-death signal) is applied in the forked child:
//! the shim needs free hands to clean up, and stays in the server's cgroup so that killing the CLI's spares it.

use std::{fs, io};

use rustix::{
    fs::Mode,
    process::{
        Gid, Pid, Resource, Rlimit, Signal, Uid, geteuid, getpid, getppid, getrlimit, set_child_subreaper,
        set_parent_process_death_signal, setpgid, setrlimit, setsid, umask,
    },
    thread::{set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid},
};

use super::{args::Limits, privilege};

/// Makes the process a shim.
///
/// It stays dumpable: a CLI of the same user could kill it anyhow, and a server without privilege could no longer
/// recognise a leftover shim by its environment.
pub(crate) fn myself() -> io::Result<()> {
    // A new session, away from the terminal of the server. It fails only for a group leader, which is as good.
    let _leads_its_group_already = setsid();
    // Every orphan of the tree comes to us: without this nothing holds, so failure is fatal.
    set_child_subreaper(Some(getpid()))?;
    // Inherited by the CLI, never to be undone.
    set_no_new_privs(true)?;
    umask(Mode::RWXG | Mode::RWXO);
    Ok(())
}

/// Holds the score of the process while the CLI is forked, and puts back the old one: the shim itself is small
/// and needed to the end.
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
        // Going back to what one had is always allowed; if not, the shim only dies earlier than it should.
        let _restored = self.0.take().map(|before| fs::write(OOM_SCORE_ADJ, before));
    }
}

/// What is applied to the CLI between fork and exec.
pub(crate) struct ForCli {
    shim: Pid,
    owner: Option<(u32, u32)>,
    nofile_soft: Option<u64>,
    limits: [(Resource, Option<u64>); 4],
}

impl ForCli {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            shim: getpid(),
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

    /// Runs in the child.
    pub(crate) fn apply(&self) -> io::Result<()> {
        // A group of its own: a CLI that signals its whole group must not hit the shim.
        setpgid(None, None)?;
        privilege::empty_bounding_set()?;
        if let Some((uid, gid)) = self.owner {
            if geteuid().is_root() {
                set_thread_groups(&[])?;
            }
            set_thread_gid(Gid::from_raw(gid))?;
            set_thread_uid(Uid::from_raw(uid))?;
        }
        // After the change of user, which needs some. Whatever the CLI cannot do without fails when it is tried, not before.
        privilege::drop_all()?;
        // After the change of user, which clears it. Should the shim be killed, the CLI goes with it. The shim has one thread, so the signal cannot come
        // from a thread that merely ended.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(self.shim) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if let Some(soft) = self.nofile_soft {
            setrlimit(Resource::Nofile, lower(soft, getrlimit(Resource::Nofile)))?;
        }
        for (resource, value) in &self.limits {
            if let Some(value) = value {
                setrlimit(*resource, clamp(*value, getrlimit(*resource)))?;
            }
        }
        Ok(())
    }
}

/// Never above what is allowed already: raising it is not ours to do, and would fail.
fn clamp(value: u64, now: Rlimit) -> Rlimit {
    let value = now.maximum.map_or(value, |maximum| value.min(maximum));
    Rlimit { current: Some(value), maximum: Some(value) }
}

/// The soft limit alone: the program may raise it again up to the hard one.
fn lower(soft: u64, now: Rlimit) -> Rlimit {
    Rlimit { current: Some(now.maximum.map_or(soft, |maximum| soft.min(maximum))), maximum: now.maximum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lowered_but_never_raised() {
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
