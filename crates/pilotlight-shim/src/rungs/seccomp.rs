//! A seccomp filter: refuses system calls that no CLI and no tool needs, and that have led out of containers before.
//!
//! The refusal is EPERM, which programs handle; an unknown call would be ENOSYS. The filter knows the machine's own
//! system calls only: a program for another one is killed at its first call.

use std::{collections::BTreeMap, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use crate::isolation::{Isolation, Network};

/// Refused whatever their arguments.
const REFUSED: &[c_long] = &[
    // Memory and descriptors of other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Keyrings belong to the user, not to the session.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Large parts of the kernel that no tool needs.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    // The machine.
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// Numbers that the libc crate lacks, the second on some machines only.
const OPEN_TREE_ATTR: c_long = 467;
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;

/// Direct access to devices, and calls that nothing has used for decades.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_nfsservctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[libc::SYS_nfsservctl];

/// Ways of execution that programs ask for: the usual one, that of 32 bits, each with the old kernel's version number, and
/// the question which one it is. The others switch off what makes exploits harder, or lead to rarely used code.
const PERSONALITIES: [i32; 5] = [0, 8, 0x0002_0000, 0x0002_0008, -1];

/// New namespaces: in a user namespace a process has capabilities, hence reaches far more of the kernel.
const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// For unshare(2) only: in clone(2) the bit is a part of the exit signal.
const NEW_TIME: i32 = 0x80;

/// Socket families of ordinary programs. The others, from AF_ALG to AF_VSOCK, are refused.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Types and protocols that Landlock's rules for TCP do not cover.
const OTHER_TYPES: [i32; 5] =
    [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET, libc::SOCK_DCCP];
const SOCKET_TYPE_MASK: u64 = 0xf;

/// Installs the filter for this process and everything that it starts. It needs `no_new_privs`.
pub(crate) fn restrict(isolation: &Isolation) -> io::Result<()> {
    let program = program(&isolation.network).ok_or(io::ErrorKind::Unsupported);
    let program = program.map_err(|_| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    })
}

/// The filter; `None` on a machine that it does not support.
fn program(network: &Network) -> Option<BpfProgram> {
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let machine = std::env::consts::ARCH.try_into().ok()?;
    let filter = SeccompFilter::new(rules(network).ok()?, SeccompAction::Allow, refuse, machine).ok()?;
    let refused: BpfProgram = filter.try_into().ok()?;
    Some(prelude().into_iter().chain(refused).collect())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(network: &Network) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    let new_namespaces = |bits: &[i32]| -> Result<Vec<_>, _> {
        bits.iter().map(|bit| SeccompRule::new(vec![has_bit(0, *bit)?])).collect()
    };
    rules.insert(libc::SYS_clone, new_namespaces(&NEW_NAMESPACES)?);
    rules.insert(libc::SYS_unshare, new_namespaces(&[&NEW_NAMESPACES[..], &[NEW_TIME]].concat())?);

    // Limits of another process: with none on open files, a server stops serving. Landlock has no rule for it.
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![not(0, 0)?])?]);

    let other = PERSONALITIES.into_iter().map(|usual| not(0, usual)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(other)?]);

    let mut sockets = vec![
        SeccompRule::new(FAMILIES.into_iter().map(|family| not(0, family)).collect::<Result<_, _>>()?)?,
        // Addresses and routes are all that programs need of the kernel's sockets.
        SeccompRule::new(vec![is(0, libc::AF_NETLINK)?, not(2, libc::NETLINK_ROUTE)?])?,
    ];
    if let Network::Ports(_) = network {
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in OTHER_TYPES {
                let kind = condition(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), kind)?;
                sockets.push(SeccompRule::new(vec![is(0, family)?, kind])?);
            }
            // Multipath TCP and SCTP connect anywhere.
            sockets.push(SeccompRule::new(vec![
                is(0, family)?,
                not(2, libc::IPPROTO_IP)?,
                not(2, libc::IPPROTO_TCP)?,
            ])?);
        }
        // These connect as they send, past the rule for connect(2).
        for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
            rules.insert(call, vec![SeccompRule::new(vec![has_bit(flags, libc::MSG_FASTOPEN)?])?]);
        }
    }
    rules.insert(libc::SYS_socket, sockets);
    Ok(rules)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Dword, operator, u64::from(value.cast_unsigned()))
}

fn is(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn not(argument: u8, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::Ne, value)
}

fn has_bit(argument: u8, bit: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(u64::from(bit.cast_unsigned())), bit)
}

/// Two checks that seccompiler cannot express, ahead of its program. Both are answered by ENOSYS: as on a kernel
/// without the call.
///
/// clone3(2) passes its flags in memory, where a filter cannot read them; the C library then uses clone(2). On x86-64 a
/// bit of the number selects the x32 table, whose calls would pass a filter of plain numbers.
fn prelude() -> [sock_filter; 4] {
    const X32_BIT: u32 = 0x4000_0000;
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    let step = |code: u32, jt: u8, jf: u8, k: u32| {
        // The codes of classic BPF have 16 bits.
        sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
    };
    [
        // The number is the first field of the data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, 0, X32_BIT),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, clone3),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
    ]
}

#[cfg(test)]
mod tests;
