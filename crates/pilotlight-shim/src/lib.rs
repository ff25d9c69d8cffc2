//! The shim: a small process that stays the parent of one CLI and leaves nothing of it behind.
//!
//! The server starts a shim for every CLI and holds the other end of its control socket, the **lifeline**. The
//! shim becomes session leader and subreaper, starts the CLI with its limits, and waits. When the CLI ends, when
//! it is told to, or when the lifeline breaks (the server stopped, crashed or was killed), it kills everything
//! that descends from the CLI, by the cgroup where there is one and by walking its own children until there are
//! none. Being a process of its own is what makes this safe: the big multi-threaded server never forks, the
//! parent-death signal has one thread to refer to, and every orphan of the tree is handed to the shim.
//!
//! It must not know the runtime, sessions, or the CLI's protocol: it copies no data and parses no output. It has
//! one thread, allocates almost nothing and wakes only when something happens.
//!
//! Descriptors on entry: 0 = the stream socket that becomes stdin of the CLI, 1 = the control socket, on which the
//! pipe that becomes its stdout is waiting, 2 = stderr. Environment and working directory are inherited by the CLI as they are.

use std::{
    ffi::OsStr,
    sync::atomic::{AtomicBool, Ordering},
};

pub mod args;
pub mod cgroup;
mod contain;
pub mod family;
pub mod handover;
mod isolate;
mod kill;
mod privilege;
pub mod report;
mod sys;

/// The first argument that makes a program act as the shim, see [`run_if_asked`].
pub const SHIM_ARG: &str = "pilotlight-shim";

/// Whether this program can be started as its own shim.
static CAN_BE_SHIM: AtomicBool = AtomicBool::new(false);

/// Acts as the shim and never returns if the program was started as one, else returns at once.
///
/// An embedding program that does not ship the `pilotlight-shim` binary calls this first thing in `main`, before
/// it starts any thread or opens any file; pilotlight then starts the program itself as the parent of each CLI.
pub fn run_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() == Some(OsStr::new(SHIM_ARG)) {
        std::process::exit(contain::run(args));
    }
    CAN_BE_SHIM.store(true, Ordering::Relaxed);
}

/// The whole of the `pilotlight-shim` program.
pub fn main() -> ! {
    std::process::exit(contain::run(std::env::args_os().skip(1)))
}

/// Whether [`run_if_asked`] was called in this process, so that its own executable may serve as the shim.
pub fn can_be_shim() -> bool {
    CAN_BE_SHIM.load(Ordering::Relaxed)
}
