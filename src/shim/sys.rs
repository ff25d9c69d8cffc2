//! The system calls of the shim that have no safe form. The only unsafe code of the crate.
//!
//! The shim has a single thread, which is what makes most of this simple: nothing else can hold a lock, own a
//! descriptor or change a signal while these functions run.

use std::{
    ffi::{CString, OsStr, c_char},
    io,
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    process::{Command, Stdio},
};

use rustix::{process::Pid, stdio};

use super::isolate::ForCli;

/// Forgets inherited signal settings, holds every signal back and returns a descriptor that becomes readable
/// when a child ends.
///
/// Held back, not ignored: what ends a terminal's foreground group or an operator's `kill` must not end the one
/// process that cleans up. A host that ignores SIGCHLD would hand this down and make children vanish unseen.
#[expect(unsafe_code, reason = "rustix has no signal masks and no signalfd")]
pub(super) fn take_over_signals() -> io::Result<OwnedFd> {
    // SAFETY: both sets are initialised by sigemptyset/sigfillset before any other use, all pointers are to
    // locals that outlive the calls, SIG_DFL installs no handler, and the descriptor returned by signalfd is new
    // and owned by nobody else.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut children = std::mem::zeroed();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const children, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// In the CLI before it runs: it inherits the mask, and would never see a SIGTERM.
#[expect(unsafe_code, reason = "rustix has no signal masks")]
fn let_signals_through() {
    // SAFETY: the set is initialised by sigemptyset, all pointers are to locals that outlive the calls. It
    // cannot fail: the only error is an unknown first argument.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Closes every descriptor from 3 up. What a host left inheritable must reach neither the CLI nor live on here.
#[expect(unsafe_code, reason = "rustix has no close_range, and closing what nobody owns is unsafe by nature")]
pub(super) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: runs before the shim opens anything, so no owner of such a descriptor exists in this process.
    // Called by number because older C libraries lack the function; the kernel says ENOSYS if it lacks the call.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) } == 0;
    if closed {
        return;
    }
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= FIRST.cast_signed()) {
        // SAFETY: as above; the descriptor of the directory itself is closed already, so this one only says EBADF.
        unsafe { libc::close(fd) };
    }
}

/// Starts the CLI on descriptors 0 (also as its stdout) and 2.
///
/// The program is executed here and not by the standard library, whose `execvp` hands a file of unknown format
/// to `/bin/sh` instead of reporting it.
#[expect(unsafe_code, reason = "what only the CLI may have has to be applied between fork and exec")]
pub(super) fn spawn(argv: Vec<CString>, mut before: ForCli) -> io::Result<Pid> {
    let program = argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(OsStr::from_bytes(program.as_bytes()));
    command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
    command.stdout(Stdio::from(stdio::stdin().as_fd().try_clone_to_owned()?));
    // A group of its own: a CLI that signals its whole group must not hit the shim.
    command.process_group(0);
    if let Some((uid, gid)) = before.owner() {
        command.uid(uid).gid(gid);
    }
    let execute = move || -> io::Result<()> {
        before.apply()?;
        let_signals_through();
        let mut pointers: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
        pointers.push(std::ptr::null());
        let program = pointers.first().copied().unwrap_or(std::ptr::null());
        // SAFETY: `pointers` is a null-terminated array of pointers to NUL-terminated strings owned by `argv`,
        // both alive until the call, which returns only on failure.
        unsafe { libc::execv(program, pointers.as_ptr()) };
        Err(io::Error::last_os_error())
    };
    // SAFETY: the closure runs in the forked child of a single-threaded process: no other thread can have held a
    // lock, the allocator's included, at the time of the fork.
    unsafe { command.pre_exec(execute) };
    let child = command.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
