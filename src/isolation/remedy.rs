//! How to get a rung that is missing: one sentence each, shown by `pilotlight check`, the log and `/readyz`.

use crate::config::Rung;

/// What an operator can do.
pub(super) fn of(rung: Rung) -> &'static str {
    match rung {
        Rung::Landlock => {
            "needs a kernel from 5.13 with Landlock in its list of security modules (lsm=landlock,… on the kernel's \
             command line), and a container runtime whose seccomp profile allows landlock_* calls"
        }
        Rung::Seccomp => "needs a kernel with CONFIG_SECCOMP_FILTER",
        Rung::Namespaces => {
            "needs unprivileged user namespaces (user.max_user_namespaces > 0; on Ubuntu an AppArmor profile with userns or \
             kernel.apparmor_restrict_unprivileged_userns=0; in containers a seccomp profile that allows unshare and \
             mount) or root with CAP_SYS_ADMIN"
        }
        Rung::Uid => {
            "needs a server that runs as root, or with CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER \
             and CAP_KILL"
        }
        Rung::Cgroup => {
            "needs a cgroup of version 2 that is delegated to this service and holds no processes of others (in a systemd unit \
             Delegate=yes and DelegateSubgroup=server; in containers a writable /sys/fs/cgroup), or root with writable \
             hierarchies of version 1"
        }
    }
}
