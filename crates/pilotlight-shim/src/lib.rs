//! The shim: a small process that is the parent of one CLI process and kills its whole process tree.
//!
//! The server starts one shim per CLI process and holds the other end of its control socket, the **lifeline**. The shim
//! becomes session leader and subreaper, starts the CLI with its limits, and waits. It kills all descendants of the CLI
//! when the CLI exits, when the server orders it, when the lifeline breaks because the server stopped or died, or when a
//! deadline passes that the server did not move ([`fence`]). The means are the cgroup, where one exists, and a repeated walk over its own children.
//!
//! A separate process makes this safe. The multi-threaded server never forks, the parent-death signal refers to a
//! process with one thread, and the kernel reparents every orphan of the tree to the shim.
//!
//! The shim has neither an async runtime, nor sessions, nor the CLI's protocol: it copies no data and parses no output.
//! It has one thread, allocates almost nothing and wakes only on events.
//!
//! # Isolation
//!
//! The CLI never has a capability, an inherited descriptor or a way to gain privileges. On request ([`isolation`]) it also
//! starts in namespaces, under Landlock and under a seccomp filter, in this order. The steps before
//! the filter need calls that it refuses. The program contains a self-test of what remains possible ([`probe`]).
//!
//! # Protocol
//!
//! | descriptor at start | use |
//! |---|---|
//! | 0 | the stream socket that becomes the CLI's stdin |
//! | 1 | the control socket; the pipe that becomes the CLI's stdout and the page of the deadline wait on it ([`fd_passing`]) |
//! | 2 | stderr of the shim and of the CLI |
//!
//! The server encodes the command line with [`args::encode`], reads [`report::Report`] lines from the control socket and
//! writes [`report::FREEZE`], [`report::THAW`], [`report::TERMINATE`] or [`report::KILL`] to it. The CLI inherits the environment and the working directory.

use std::{
    ffi::{OsStr, OsString},
    sync::atomic::{AtomicBool, Ordering},
};

pub mod args;
pub mod cgroup;
mod contain;
pub mod descendants;
pub mod fd_passing;
pub mod fence;
mod freeze;
mod isolate;
pub mod isolation;
mod kill;
mod launch;
mod privilege;
pub mod probe;
mod progress;
pub mod report;
mod rungs;
mod sys;

/// First argument that makes an embedding program run as the shim, see [`run_if_asked`].
pub const SHIM_ARG: &str = "pilotlight-shim";

/// Whether this program can be started as its own shim.
static CAN_BE_SHIM: AtomicBool = AtomicBool::new(false);

/// Runs as the shim and never returns if the first argument is [`SHIM_ARG`]; else returns at once.
///
/// An embedding program without the `pilotlight-shim` binary calls this first in `main`, before it starts a thread or
/// opens a file. pilotlight then starts the same program as the parent of each CLI process.
pub fn run_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new(SHIM_ARG)) {
        std::process::exit(run(args));
    }
    CAN_BE_SHIM.store(true, Ordering::Relaxed);
}

/// Entry point of the `pilotlight-shim` binary.
pub fn main() -> ! {
    std::process::exit(run(std::env::args_os().skip(1)))
}

fn run(args: impl Iterator<Item = OsString>) -> i32 {
    let mut args = args.peekable();
    match args.next_if(|first| first == probe::PROBE_ARG) {
        Some(_) => probe::run(args),
        None => contain::run(args),
    }
}

/// Whether this process called [`run_if_asked`], which lets its executable serve as the shim.
pub fn can_be_shim() -> bool {
    CAN_BE_SHIM.load(Ordering::Relaxed)
}
