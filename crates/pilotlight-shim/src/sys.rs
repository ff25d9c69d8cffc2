//! System calls without a safe interface: the only unsafe code of the crate.
//!
//! The shim has a single thread: nothing else can hold a lock, own a descriptor or change a signal meanwhile.

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

use super::isolate::PreExec;

/// Resets signal dispositions, blocks all signals and returns a descriptor that becomes readable when a child exits.
///
/// Neither a terminal's Ctrl-C nor an operator's `kill` may end the process that cleans up. A parent that ignores SIGCHLD
/// would pass this on, and the kernel would reap children unnoticed.
#[expect(unsafe_code, reason = "rustix has no signal masks and no signalfd")]
pub(crate) fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: sigemptyset/sigfillset initialise both sets before any other use. All pointers are to locals that outlive
    // the calls. SIG_DFL installs no handler. The descriptor from signalfd is new and has no other owner.
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

/// Unblocks all signals. Runs in the forked child, which inherits the mask and would never receive SIGTERM.
#[expect(unsafe_code, reason = "rustix has no signal masks")]
fn unblock_signals() {
    // SAFETY: sigemptyset initialises the set; all pointers are to locals that outlive the calls. The call cannot fail:
    // its only error is an unknown first argument.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Whether this process is the leader of its session.
#[expect(
    unsafe_code,
    reason = "rustix expects a positive session id, which is 0 if the leader is outside of the PID namespace"
)]
pub(crate) fn leads_session(me: Pid) -> bool {
    // SAFETY: getsid(2) touches no memory and has no effect.
    unsafe { libc::getsid(0) == me.as_raw_pid() }
}

/// Closes every descriptor from 3 up: neither the shim nor the CLI may keep inherited descriptors of the parent.
#[expect(
    unsafe_code,
    reason = "rustix has no close_range, and closing descriptors without an owner is unsafe"
)]
pub(crate) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: runs before the shim opens anything, so no owner of such a descriptor exists in this process.
    // Called by number, because older C libraries lack the function. Older kernels return ENOSYS.
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
        // SAFETY: as above. The descriptor of the directory itself is already closed and gives EBADF.
        unsafe { libc::close(fd) };
    }
}

/// Starts the CLI with descriptors 0, `output` and 2. Returns its pid, and whether it was forked into `group`.
///
/// The standard library is not sufficient: its `execvp` runs files of unknown format with `/bin/sh`, and it cannot fork
/// into a cgroup. A later move into the cgroup costs 10 to 20 ms, because the kernel waits for an RCU grace period.
pub(crate) fn spawn(
    argv: &[CString],
    output: BorrowedFd<'_>,
    before: &PreExec,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<(Pid, bool)> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // A successful exec closes it; else the child writes its errno.
    let (failure, write_failure) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (forked, is_member) = fork_into(group)?;
    let Some(cli) = forked else {
        let error = become_cli(&pointers, output, before);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // On a failed write the parent still sees the exit.
        let _written = rustix::io::write(write_failure, &errno.to_ne_bytes());
        exit_child();
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

/// Forks; the pid is `None` in the child. Also returns whether the child is in the group: without a group, or without
/// permission, this is a plain fork.
#[expect(unsafe_code, reason = "rustix has no stable fork, and the standard library none into a cgroup")]
fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<(Option<Pid>, bool)> {
    if let Some(group) = group {
        // SAFETY: all zeros are valid values of this plain structure.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
        // SAFETY: without CLONE_VM this is a fork: the child continues with a copy of the memory. This process has one
        // thread, so no other thread holds a lock of the C library or its allocator. The structure outlives the call,
        // and its size is passed.
        let forked =
            unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        if forked >= 0 {
            return Ok((i32::try_from(forked).ok().and_then(Pid::from_raw), true));
        }
    }
    // SAFETY: as above: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok((Pid::from_raw(pid), false)),
    }
}

/// Prepares the forked child and executes the CLI. Returns only on failure.
#[expect(unsafe_code, reason = "there is no safe exec of a prepared argument list")]
fn become_cli(argv: &[*const c_char], output: BorrowedFd<'_>, before: &PreExec) -> io::Error {
    let prepared = stdio::dup2_stdout(output).map_err(io::Error::from).and_then(|()| before.apply());
    if let Err(error) = prepared {
        return error;
    }
    unblock_signals();
    let program = argv.first().copied().unwrap_or(std::ptr::null());
    // SAFETY: `argv` is a null-terminated array of pointers to NUL-terminated strings that the caller owns.
    unsafe { libc::execv(program, argv.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the forked child without running the shim's exit handlers.
#[expect(unsafe_code, reason = "std::process::exit runs handlers that are not the child's")]
fn exit_child() -> ! {
    // SAFETY: _exit(2) only ends the process.
    unsafe { libc::_exit(127) }
}
