//! The system calls of the shim that have no safe form. The only unsafe code of the crate.
//!
//! The shim has a single thread, which is what makes most of this simple: nothing else can hold a lock, own a
//! descriptor or change a signal while these functions run.

use std::{
    ffi::{CString, c_char},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::{
    pipe::PipeFlags,
    process::{Pid, WaitOptions, waitpid},
    stdio,
};

use super::isolate::ForCli;

/// Forgets inherited signal settings, holds every signal back and returns a descriptor that becomes readable
/// when a child ends.
///
/// Held back, not ignored: what ends a terminal's foreground group or an operator's `kill` must not end the one
/// process that cleans up. A host that ignores SIGCHLD would hand this down and make children vanish unseen.
#[expect(unsafe_code, reason = "rustix has no signal masks and no signalfd")]
pub(crate) fn take_over_signals() -> io::Result<OwnedFd> {
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

/// Whether this process began the session it is in.
#[expect(
    unsafe_code,
    reason = "rustix takes the session's number for positive, which it is not in a PID namespace \
    when its leader is outside"
)]
pub(crate) fn leads_session(me: Pid) -> bool {
    // SAFETY: getsid(2) touches no memory and has no effect.
    unsafe { libc::getsid(0) == me.as_raw_pid() }
}

/// Closes every descriptor from 3 up. What a host left inheritable must reach neither the CLI nor live on here.
#[expect(unsafe_code, reason = "rustix has no close_range, and closing what nobody owns is unsafe by nature")]
pub(crate) fn close_inherited() {
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

/// Starts the CLI on descriptors 0, `output` and 2, as a member of `group` from its first instruction if that can be.
/// Whether it could: an empty group does not say so, for the CLI may have ended already.
///
/// Not by the standard library: its `execvp` hands a file of unknown format to `/bin/sh` instead of reporting it, and
/// it cannot fork into a group. Joining one afterwards makes the kernel wait for a grace period of all processors,
/// 10 to 20 ms of every start.
pub(crate) fn spawn(
    argv: &[CString],
    output: BorrowedFd<'_>,
    before: &ForCli,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<(Pid, bool)> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // Closed by a successful exec; otherwise the child writes there why it failed.
    let (failure, write_failure) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (forked, is_member) = fork_into(group)?;
    let Some(cli) = forked else {
        let error = become_cli(&pointers, output, before);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // If even this cannot be told, the exit is.
        let _told = rustix::io::write(write_failure, &errno.to_ne_bytes());
        leave();
    };
    drop(write_failure);
    let mut errno = [0; size_of::<i32>()];
    match rustix::io::retry_on_intr(|| rustix::io::read(&failure, &mut errno)) {
        Ok(length) if length == errno.len() => {
            let _reaped = waitpid(Some(cli), WaitOptions::empty());
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
        _ => Ok((cli, is_member)),
    }
}

/// clone(2), from linux/sched.h; the constant of the libc crate does not fit into its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks; `None` in the child. Without a group, or where the kernel or the rights do not allow it, a plain fork. With
/// whether the child is in the group.
#[expect(unsafe_code, reason = "rustix has no stable fork, and the standard library none into a group")]
fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<(Option<Pid>, bool)> {
    if let Some(group) = group {
        // SAFETY: all zeros are valid values of this plain structure.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
        // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of everything. This process has one
        // thread, so no lock of the C library, the allocator's included, can be held by another one that is not
        // copied. The structure outlives the call, and its size is told.
        let forked =
            unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        if forked >= 0 {
            return Ok((i32::try_from(forked).ok().and_then(Pid::from_raw), true));
        }
    }
    // SAFETY: as above, for a process with one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((Pid::from_raw(pid), false)),
    }
}

/// What the child does until it is the CLI. Returns only on failure.
#[expect(unsafe_code, reason = "there is no safe exec of a prepared argument list")]
fn become_cli(argv: &[*const c_char], output: BorrowedFd<'_>, before: &ForCli) -> io::Error {
    let prepared = stdio::dup2_stdout(output).map_err(io::Error::from).and_then(|()| before.apply());
    if let Err(error) = prepared {
        return error;
    }
    let_signals_through();
    let program = argv.first().copied().unwrap_or(std::ptr::null());
    // SAFETY: `argv` is a null-terminated array of pointers to NUL-terminated strings that the caller owns.
    unsafe { libc::execv(program, argv.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the child without running anything that belongs to the shim.
#[expect(unsafe_code, reason = "std::process::exit runs handlers that are not the child's")]
fn leave() -> ! {
    // SAFETY: it only ends the process.
    unsafe { libc::_exit(127) }
}
