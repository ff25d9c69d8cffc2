//! The program is executed by a small interpreter of classic BPF, so that every call can be tried, also those whose
//! effect on the test process would be lasting.

use super::*;

/// The call as the kernel passes it to a filter.
#[derive(Clone, Copy)]
struct Call {
    number: i64,
    arguments: [i64; 6],
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

#[cfg(target_arch = "x86_64")]
const MACHINE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const MACHINE: u32 = 0xc000_00b7;

fn word(call: Call, offset: u32) -> u32 {
    match offset {
        0 => u32::try_from(call.number).unwrap(),
        4 => MACHINE,
        16.. => {
            let argument = call.arguments[(offset as usize - 16) / 8].cast_unsigned();
            u32::try_from(if offset.is_multiple_of(8) { argument & 0xffff_ffff } else { argument >> 32 })
                .unwrap()
        }
        _ => panic!("reads the instruction pointer"),
    }
}

fn verdict(program: &[sock_filter], call: Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match u32::from(step.code) {
            0x20 => accumulator = word(call, step.k),
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn verdicts(network: &Network, calls: &[(i64, [i64; 3], u32)]) {
    let program = program(network).unwrap();
    for &(number, arguments, expected) in calls {
        let [first, second, third] = arguments;
        let found = verdict(&program, Call { number, arguments: [first, second, third, 0, 0, 0] });
        assert_eq!(found, expected, "call {number} with {arguments:x?} and {network:?}");
    }
}

#[test]
fn listed_calls_are_refused_whatever_their_arguments() {
    for call in REFUSED.iter().chain(REFUSED_HERE) {
        verdicts(&Network::Open, &[(*call, [0; 3], EPERM), (*call, [-1; 3], EPERM)]);
    }
}

/// What Docker's default profile keeps from a container without capabilities, as far as no rule on arguments decides. It
/// also refuses policies for a process's own memory (mbind, set_mempolicy), which reach nothing else.
#[test]
fn calls_that_docker_refuses_are_refused() {
    for call in [
        libc::SYS_acct,
        libc::SYS_add_key,
        libc::SYS_adjtimex,
        libc::SYS_bpf,
        libc::SYS_chroot,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_fanotify_init,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_init_module,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_io_uring_setup,
        libc::SYS_kcmp,
        KEXEC_FILE_LOAD,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_lookup_dcookie,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_move_pages,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_perf_event_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pivot_root,
        libc::SYS_process_madvise,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_reboot,
        libc::SYS_request_key,
        libc::SYS_setdomainname,
        libc::SYS_sethostname,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
        libc::SYS_umount2,
        libc::SYS_userfaultfd,
        libc::SYS_vhangup,
    ] {
        verdicts(&Network::Open, &[(call, [0; 3], EPERM)]);
    }
}

#[test]
fn only_usual_personalities_can_be_set() {
    let set = |personality, verdict| (libc::SYS_personality, [personality, 0, 0], verdict);
    let no_randomisation = 0x0004_0000;
    verdicts(
        &Network::Open,
        &[
            set(0, ALLOWED),
            set(0xffff_ffff, ALLOWED),
            set(8, ALLOWED),
            set(no_randomisation, EPERM),
            set(0x0040_0000, EPERM),
            set(1, EPERM),
        ],
    );
}

#[test]
fn ordinary_calls_pass() {
    for call in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_execve,
        libc::SYS_exit_group,
        libc::SYS_mmap,
        libc::SYS_futex,
        libc::SYS_kill,
        libc::SYS_connect,
        libc::SYS_socketpair,
        libc::SYS_memfd_create,
        libc::SYS_pidfd_open,
        libc::SYS_prctl,
        libc::SYS_clock_gettime,
        libc::SYS_epoll_pwait,
        libc::SYS_statx,
    ] {
        verdicts(&Network::Ports(vec![]), &[(call, [0; 3], ALLOWED), (call, [-1; 3], ALLOWED)]);
    }
}

#[test]
fn new_namespaces_are_refused_in_every_combination() {
    let thread = i64::from(
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD,
    );
    let fork = i64::from(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD);
    for flags in [0, thread, fork, i64::from(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD)] {
        verdicts(&Network::Open, &[(libc::SYS_clone, [flags, 0, 0], ALLOWED)]);
        for bit in NEW_NAMESPACES.map(|bit| i64::from(bit.cast_unsigned())) {
            let calls = [libc::SYS_clone, libc::SYS_unshare].map(|call| (call, [flags | bit, 0, 0], EPERM));
            verdicts(&Network::Open, &calls);
        }
    }
    let own_files = i64::from(libc::CLONE_FILES);
    verdicts(
        &Network::Open,
        &[
            (libc::SYS_unshare, [own_files, 0, 0], ALLOWED),
            (libc::SYS_unshare, [i64::from(NEW_TIME), 0, 0], EPERM),
            // The signal of a child is not a time namespace.
            (libc::SYS_clone, [i64::from(NEW_TIME), 0, 0], ALLOWED),
            // Only the lower half counts.
            (libc::SYS_clone, [i64::from(libc::CLONE_NEWNET) | 1 << 40, 0, 0], EPERM),
        ],
    );
}

#[test]
fn clone3_and_other_tables_do_not_exist() {
    verdicts(
        &Network::Open,
        &[
            (libc::SYS_clone3, [0; 3], ENOSYS),
            (0x4000_0000, [0; 3], ENOSYS),
            (0x4000_0000 | libc::SYS_ptrace, [0; 3], ENOSYS),
            (0x4000_0000 + 521, [0; 3], ENOSYS),
        ],
    );
}

#[test]
fn limits_of_others_are_out_of_reach() {
    let own = (libc::SYS_prlimit64, [0, 7, -1], ALLOWED);
    verdicts(
        &Network::Open,
        &[own, (libc::SYS_prlimit64, [1, 7, -1], EPERM), (libc::SYS_setrlimit, [7, 1, 0], ALLOWED)],
    );
}

#[test]
fn fast_open_is_refused_where_ports_are_ruled() {
    let flag = i64::from(libc::MSG_FASTOPEN);
    for (network, expected) in [(Network::Ports(vec![443]), EPERM), (Network::Open, ALLOWED)] {
        let program = program(&network).unwrap();
        for (number, index) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
            let mut arguments = [0; 6];
            assert_eq!(verdict(&program, Call { number, arguments }), ALLOWED);
            arguments[index] = flag | i64::from(libc::MSG_NOSIGNAL);
            assert_eq!(verdict(&program, Call { number, arguments }), expected, "{number} {network:?}");
        }
    }
}

#[test]
fn only_ordinary_sockets_can_be_made() {
    let [stream, datagram, raw] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW].map(i64::from);
    let flagged = stream | i64::from(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
    let socket = |family: i32, kind: i64, protocol: i64, verdict: u32| {
        (libc::SYS_socket, [i64::from(family), kind, protocol], verdict)
    };
    let networks = [Network::Open, Network::Ports(vec![443]), Network::Private { port: 1 }];
    for network in &networks {
        verdicts(
            network,
            &[
                socket(libc::AF_UNIX, stream, 0, ALLOWED),
                socket(libc::AF_UNIX, datagram, 0, ALLOWED),
                socket(libc::AF_INET, flagged, 0, ALLOWED),
                socket(libc::AF_INET6, flagged, i64::from(libc::IPPROTO_TCP), ALLOWED),
                socket(libc::AF_NETLINK, raw, i64::from(libc::NETLINK_ROUTE), ALLOWED),
                socket(libc::AF_NETLINK, raw, i64::from(libc::NETLINK_NETFILTER), EPERM),
                socket(libc::AF_ALG, i64::from(libc::SOCK_SEQPACKET), 0, EPERM),
                socket(libc::AF_VSOCK, stream, 0, EPERM),
                socket(libc::AF_PACKET, raw, 0, EPERM),
                socket(libc::AF_KEY, raw, 2, EPERM),
                socket(libc::AF_TIPC, stream, 0, EPERM),
                socket(-1, stream, 0, EPERM),
            ],
        );
        let elsewhere = if matches!(network, Network::Ports(_)) { EPERM } else { ALLOWED };
        for family in [libc::AF_INET, libc::AF_INET6] {
            verdicts(
                network,
                &[
                    socket(family, datagram, 0, elsewhere),
                    socket(family, datagram | i64::from(libc::SOCK_CLOEXEC), 17, elsewhere),
                    socket(family, raw, 1, elsewhere),
                    socket(family, stream, i64::from(libc::IPPROTO_MPTCP), elsewhere),
                    socket(family, stream, i64::from(libc::IPPROTO_SCTP), elsewhere),
                ],
            );
        }
    }
}
