//! System calls without a safe interface: the only unsafe code of the crate.
//!
//! The shim has a single thread: nothing else can hold a lock, own a descriptor or change a signal meanwhile.

use std::{
    ffi::{CString, c_char},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, WaitOptions, waitpid},
    stdio,
};

use super::{isolate::PreExec, progress::Progress, rungs::Refusal};

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
    before: &PreExec<'_>,
    group: Option<BorrowedFd<'_>>,
) -> Result<(Pid, bool), Refusal> {
    let mut pointers: Vec<*const c_char> = argv.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // A successful exec closes it.
    let (progress, report) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let (forked, is_member) = fork_into(group)?;
    let Some(cli) = forked else {
        Progress::Refused(become_cli(&pointers, output, before)).send(report);
        exit_child();
    };
    drop(report);
    match Progress::receive(&progress) {
        Ok(Some(Progress::Refused(refusal))) => {
            let _reaped = waitpid(Some(cli), WaitOptions::empty());
            Err(refusal)
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
fn become_cli(argv: &[*const c_char], output: BorrowedFd<'_>, before: &PreExec<'_>) -> Refusal {
    let redirected = stdio::dup2_stdout(output).map_err(Refusal::from);
    if let Err(refusal) = redirected.and_then(|()| before.apply()) {
        return refusal;
    }
    unblock_signals();
    let program = argv.first().copied().unwrap_or(std::ptr::null());
    // SAFETY: `argv` is a null-terminated array of pointers to NUL-terminated strings that the caller owns.
    unsafe { libc::execv(program, argv.as_ptr()) };
    io::Error::last_os_error().into()
}

/// Ends the forked child without running the shim's exit handlers.
#[expect(unsafe_code, reason = "std::process::exit runs handlers that are not the child's")]
fn exit_child() -> ! {
    // SAFETY: _exit(2) only ends the process.
    unsafe { libc::_exit(127) }
}

/// Attaches to a process as its tracer, and detaches.
#[expect(unsafe_code, reason = "rustix has no ptrace")]
pub(crate) fn trace(pid: Pid) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: neither request touches memory of this process.
    let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw_pid(), none, none) };
    if traced != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above. It fails, because the process was not stopped; the exit of this process detaches it.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid.as_raw_pid(), none, none) };
    Ok(())
}

/// Moves this process into a new user namespace.
#[expect(unsafe_code, reason = "rustix has no safe unshare, because of shared descriptor tables")]
pub(crate) fn unshare_user() -> io::Result<()> {
    // SAFETY: the call changes credentials only.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }.map_err(Into::into)
}

/// Looks up the session's keyring.
#[expect(unsafe_code, reason = "rustix has no keyrings")]
pub(crate) fn session_keyring() -> io::Result<()> {
    const GET_KEYRING_ID: libc::c_long = 0;
    const SESSION_KEYRING: libc::c_long = -3;
    // SAFETY: this operation takes numbers only.
    match unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
