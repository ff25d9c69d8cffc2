//! System calls without a safe interface: the only unsafe code of the crate.
//!
//! The shim has a single thread: nothing else can hold a lock, own a descriptor or change a signal meanwhile. The clock and
//! the mapping of a word are the server's too.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::{
    mount::MountAttrFlags,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::Pid,
    thread::UnshareFlags,
};

use super::launch::Argv;

pub(crate) mod word;

/// The time since the boot, suspensions included.
#[expect(unsafe_code, reason = "rustix finds the kernel's shared code by itself, once more in each shim")]
pub(crate) fn boot_time() -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure outlives the call, which cannot fail: every supported kernel has the clock.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now
}

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
pub(crate) fn unblock_signals() {
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
pub(crate) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    close_from(FIRST);
}

/// Closes every descriptor from this one up. The caller owns none of them any more, or never returns.
#[expect(
    unsafe_code,
    reason = "rustix has no close_range, and closing descriptors without an owner is unsafe"
)]
pub(crate) fn close_from(first: libc::c_uint) {
    // SAFETY: the shim calls this before it opens anything, its init process when it uses no other descriptor any more.
    // Called by number, because older C libraries lack the function. Older kernels return ENOSYS.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } == 0;
    if closed {
        return;
    }
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= first.cast_signed()) {
        // SAFETY: as above. The descriptor of the directory itself is already closed and gives EBADF.
        unsafe { libc::close(fd) };
    }
}

/// The side of a fork on which it returns.
pub(crate) enum Forked {
    /// The process that forked, with the pid of the new one.
    Parent(Pid),
    /// The new process.
    Child,
}

impl Forked {
    fn new(result: i64) -> io::Result<Self> {
        match result {
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw).map_or(Self::Child, Self::Parent)),
        }
    }
}

/// clone(2), from linux/sched.h; the constant of the libc crate does not fit into its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks. Also returns whether the child is in the group: without a group, or without permission, this is a plain fork.
#[expect(unsafe_code, reason = "rustix has no stable fork, and the standard library none into a cgroup")]
pub(crate) fn fork_into(group: Option<BorrowedFd<'_>>) -> io::Result<(Forked, bool)> {
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
            return Ok((Forked::new(forked)?, true));
        }
    }
    // SAFETY: as above: this process has one thread.
    Ok((Forked::new(unsafe { libc::fork() }.into())?, false))
}

/// Forks a sibling: a child of this process's parent, which is sent its signal as of this process.
#[expect(unsafe_code, reason = "neither rustix nor the C library forks for another parent")]
pub(crate) fn fork_sibling() -> io::Result<Forked> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: as in `fork_into`. The remaining arguments are unused with these flags; their order differs by machine.
    Forked::new(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

/// Executes the CLI. Returns only on failure.
#[expect(unsafe_code, reason = "there is no safe exec of a prepared argument list")]
pub(crate) fn execute(argv: &Argv<'_>) -> io::Error {
    let pointers = argv.pointers();
    let program = pointers.first().copied().unwrap_or(std::ptr::null());
    // SAFETY: the array ends with a null pointer, the others point to NUL-terminated strings that it borrows.
    unsafe { libc::execv(program, pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the forked child without running the shim's exit handlers.
#[expect(unsafe_code, reason = "std::process::exit runs handlers that are not the child's")]
pub(crate) fn exit_child() -> ! {
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

/// Moves this process into new namespaces.
#[expect(unsafe_code, reason = "rustix has no safe unshare, because of shared descriptor tables")]
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: this process has one thread, so no other one could miss descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Adds attributes to a mount, with `below` also to those below it, and makes their events private.
#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
pub(crate) fn restrict_mount(mount: &OwnedFd, attributes: MountAttrFlags, below: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes.bits().into(),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if below { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the structure outlive the call, and the size of the structure is passed.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings the loopback interface of this network namespace up.
#[expect(unsafe_code, reason = "rustix has no requests to interfaces")]
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all zeros are valid values of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or_default();
    // SAFETY: the request reads the name and the flags from the structure, which outlives the call.
    // Called by number, because C libraries differ in the type of the request.
    match unsafe {
        libc::syscall(libc::SYS_ioctl, socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Empties the arguments of this process, as `/proc/PID/cmdline` shows them to everybody who sees the process.
#[expect(unsafe_code, reason = "the kernel shows the memory of the arguments itself")]
pub(crate) fn forget_arguments() -> io::Result<()> {
    // Fields of proc(5), from the state on: it follows the name, which may contain anything.
    const ARG_START: usize = 48 - 3;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' '));
    let mut ends = fields.into_iter().flatten().skip(ARG_START).map(|field| field.trim().parse::<usize>());
    let (Some(Ok(start)), Some(Ok(end))) = (ends.next(), ends.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // A kernel that does not tell where they are says 0; then they stay.
    if start == 0 {
        return Ok(());
    }
    let bytes = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: the kernel has put the argument strings there, on the writable stack. No reference to them exists: the
    // standard library copies arguments, and this process reads them no more.
    unsafe { std::ptr::write_bytes(bytes, 0, end.saturating_sub(start)) };
    Ok(())
}

/// Has the kernel reap the children of this process.
#[expect(unsafe_code, reason = "rustix has no signal dispositions")]
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN installs no handler. The call cannot fail for this signal.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
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
