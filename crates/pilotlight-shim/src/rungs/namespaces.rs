//! Namespaces: the CLI sees its own processes, files and network only, and nothing of it outlives its init process.
//!
//! The shim stays outside, invisible to the CLI. It forks a builder, which enters the namespaces, forks two siblings,
//! hence children of the shim, and exits. The first is the init process of the PID namespace. The second becomes the CLI,
//! when the root and the network are ready. When the init process ends, the kernel kills every process of the namespace.
//!
//! The init process reaps orphans and ends with the shim. In its namespace it has no visible parent, so the usual check of
//! the parent-death signal is not possible. It therefore waits on a pipe whose other end only the shim keeps: however
//! early the shim ends, the wait does too.
//!
//! Without CAP_SYS_ADMIN, a user namespace gives the capabilities for all this. It maps the user to itself.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        DumpableBehavior, Pid, Signal, WaitOptions, chdir, getgid, getpid, getuid, set_dumpable_behavior,
        umask, wait, waitpid,
    },
    stdio,
    thread::{CapabilitySet, UnshareFlags, capabilities},
};

use super::{Refusal, network, root};
use crate::{
    descendants,
    isolation::{Isolation, Network, Rung},
    launch::{Start, Started, become_cli},
    progress::Progress,
    sys::{self, Forked},
};

/// The host's name is not the session's business; this one resolves everywhere.
const HOST_NAME: &[u8] = b"localhost";

/// The PID namespace of a CLI, as the shim holds it.
pub(crate) struct Namespace {
    pub(crate) init: Pid,
    /// Its end also ends the init process.
    _lifeline: OwnedFd,
}

/// Starts the CLI in new namespaces. On an error no process is left.
pub(crate) fn spawn(start: &Start<'_>) -> Result<Started, Refusal> {
    let (progress, report) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let (alive, lifeline) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let work = std::env::current_dir().map_err(Refusal::of(Rung::Namespaces))?;
    let (forked, is_member) = sys::fork_into(start.group)?;
    let Forked::Parent(builder) = forked else {
        drop(progress);
        if let Err(refusal) = build(start, &work, &report, alive) {
            Progress::Refused(refusal).send(&report);
        }
        sys::exit_child();
    };
    drop((report, alive));
    match follow(&progress, builder) {
        Ok((init, cli)) => {
            Ok(Started { cli, is_member, namespace: Some(Namespace { init, _lifeline: lifeline }) })
        }
        Err(refusal) => {
            drop(lifeline);
            kill_all_children();
            Err(refusal)
        }
    }
}

/// Follows the start to its end, which is the execution of the CLI. Reaps the builder.
fn follow(progress: &OwnedFd, builder: Pid) -> Result<(Pid, Pid), Refusal> {
    let (mut init, mut cli) = (None, None);
    loop {
        match Progress::receive(progress)? {
            Some(Progress::Init(pid)) => init = Some(pid),
            Some(Progress::Cli(pid)) => {
                cli = Some(pid);
                // It was its last word. The execution may take seconds on a busy machine.
                let _reaped = rustix::io::retry_on_intr(|| waitpid(Some(builder), WaitOptions::empty()));
            }
            Some(Progress::Refused(refusal)) => return Err(refusal),
            None => {
                let lost = || Refusal { rung: Some(Rung::Namespaces), errno: libc::EIO };
                return init.zip(cli).ok_or_else(lost);
            }
        }
    }
}

/// Kills and reaps until no child is left. A killed builder cannot add siblings.
fn kill_all_children() {
    let mut children = Vec::new();
    loop {
        descendants::children(getpid().as_raw_pid(), &mut children);
        for child in children.iter().filter_map(|child| Pid::from_raw(*child)) {
            let _ended = rustix::process::kill_process(child, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Enters the namespaces and starts both processes in them. Runs in a child of the shim.
fn build(start: &Start<'_>, work: &Path, report: &OwnedFd, alive: OwnedFd) -> Result<(), Refusal> {
    let namespaces = Refusal::of(Rung::Namespaces);
    // They name paths of the host, and the CLI sees the init process. Later `/proc` is no longer in its place.
    sys::forget_arguments().map_err(&namespaces)?;
    enter(start)?;
    // The change of the root moves both, but a working directory only if it is the root.
    chdir("/").map_err(io::Error::from).map_err(&namespaces)?;
    // First: it keeps a copy of this process's memory, which grows with the root.
    match sys::fork_sibling().map_err(&namespaces)? {
        Forked::Child => become_init(start, report, alive),
        Forked::Parent(init) => Progress::Init(init).send(report),
    }
    drop(alive);
    // The directories of the new root are for everybody in it.
    let restrictive = umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    root::build(start.before.isolation).map_err(&namespaces)?;
    umask(restrictive);
    rustix::system::sethostname(HOST_NAME).map_err(io::Error::from).map_err(&namespaces)?;
    if let Network::Private { port } = start.before.isolation.network {
        network::open(port).map_err(&namespaces)?;
    }
    match sys::fork_sibling().map_err(&namespaces)? {
        Forked::Child => {
            let settled = root::settle(work).map_err(&namespaces);
            let refusal = settled.map_or_else(|refusal| refusal, |()| become_cli(start, true));
            Progress::Refused(refusal).send(report);
            sys::exit_child()
        }
        Forked::Parent(cli) => Progress::Cli(cli).send(report),
    }
    Ok(())
}

fn enter(start: &Start<'_>) -> Result<(), Refusal> {
    let namespaces = Refusal::of(Rung::Namespaces);
    let held = capabilities(None).map_err(io::Error::from).map_err(&namespaces)?;
    let is_privileged = held.effective.contains(CapabilitySet::SYS_ADMIN);
    if !is_privileged {
        // The user namespace can only map the user that makes it.
        start.before.change_user().map_err(Refusal::of(Rung::Uid))?;
        // The change of user has taken the files below /proc/self away.
        set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(io::Error::from).map_err(&namespaces)?;
    }
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    sys::unshare(flags(start.before.isolation, is_privileged)).map_err(&namespaces)?;
    if !is_privileged {
        // A process that may drop groups could gain access by it, so the kernel wants this first.
        fs::write("/proc/self/setgroups", "deny").map_err(&namespaces)?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).map_err(&namespaces)?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).map_err(&namespaces)?;
    }
    start.before.die_with_shim().map_err(&namespaces)
}

fn flags(isolation: &Isolation, is_privileged: bool) -> UnshareFlags {
    let mut flags = UnshareFlags::NEWPID | UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    flags.set(UnshareFlags::NEWNET, matches!(isolation.network, Network::Private { .. }));
    flags.set(UnshareFlags::NEWUSER, !is_privileged);
    flags
}

/// The init process. It is the CLI's user without capabilities, and ends with the shim.
fn become_init(start: &Start<'_>, report: &OwnedFd, alive: OwnedFd) -> ! {
    if let Err(refusal) = start.before.as_init() {
        Progress::Refused(refusal).send(report);
        sys::exit_child();
    }
    // As descriptor 0 it stays; everything else is closed, last the report by which the shim sees that all is done.
    if stdio::dup2_stdin(&alive).is_ok() {
        sys::close_from(1);
        wait_for_end();
    }
    sys::exit_child()
}

/// Waits for the end of the pipe's only other holder.
fn wait_for_end() {
    let pipe = stdio::stdin();
    while let Ok(0) | Err(Errno::INTR) = poll(&mut [PollFd::new(&pipe, PollFlags::empty())], None) {}
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    /// A slow execution of the CLI leaves no zombie meanwhile.
    #[test]
    #[expect(clippy::zombie_processes, reason = "what is tested reaps it")]
    #[expect(
        clippy::disallowed_methods,
        reason = "no event announces that another thread has reaped a process"
    )]
    fn builder_is_reaped_before_the_cli_is_executed() {
        let (progress, report) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let builder = Command::new("true").spawn().unwrap();
        let builder = Pid::from_raw(builder.id().cast_signed()).unwrap();
        let (init, cli) = (Pid::from_raw(4).unwrap(), Pid::from_raw(5).unwrap());
        let (ended, end) = mpsc::channel();
        let following = std::thread::spawn(move || {
            let found = follow(&progress, builder);
            ended.send(()).unwrap();
            found
        });
        Progress::Init(init).send(&report);
        Progress::Cli(cli).send(&report);
        let is_reaped = || {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            matches!(waitid(WaitId::Pid(builder), look), Err(Errno::CHILD))
        };
        let until = Instant::now() + Duration::from_secs(10);
        while !is_reaped() {
            assert!(Instant::now() < until, "the builder is a zombie");
            std::thread::sleep(Duration::from_millis(5));
        }
        end.try_recv().unwrap_err();
        // The execution closes it.
        drop(report);
        assert!(following.join().unwrap().is_ok_and(|found| found == (init, cli)));
    }
}
