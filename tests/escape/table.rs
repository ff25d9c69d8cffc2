//! The promises: what a hostile tool must not reach, and which rungs keep it out of reach.
//!
//! Pure data. A promise without rungs is held by what every child has (`base`). `docs/security.md` shows this table.

use crate::rungs::Term::{self, Landlock, Namespaces, Root, Seccomp, Uid, Unprivileged};

pub(crate) struct Promise {
    pub(crate) name: &'static str,
    /// What the tool attempts.
    pub(crate) attack: &'static str,
    /// Alternatives, each of which holds the promise alone if all of its terms are met.
    pub(crate) held_by: &'static [&'static [Term]],
}

const fn promise(
    name: &'static str,
    attack: &'static str,
    held_by: &'static [&'static [Term]],
) -> Promise {
    Promise { name, attack, held_by }
}

/// Files of other owners and other directories.
const WALLED: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid]];
/// The server of root has capabilities that its children lack.
const WALLED_OR_ROOT: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid], &[Root]];
const TRACED: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid], &[Seccomp]];
const TRACED_OR_ROOT: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid], &[Seccomp], &[Root]];
/// No rule of Landlock covers it.
const OTHER_WORLD: &[&[Term]] = &[&[Namespaces], &[Uid], &[Seccomp]];
const NETWORK: &[&[Term]] = &[&[Landlock], &[Namespaces]];
/// Landlock has rules for TCP by connect(2) and bind(2) alone; seccomp refuses the other ways to a connection.
const OTHER_WAYS: &[&[Term]] = &[&[Namespaces], &[Landlock, Seccomp]];
/// Files of the host's root.
const HOST: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid], &[Unprivileged]];

pub(crate) const TABLE: &[Promise] = &[
    promise("session-read", "read files of another session", WALLED),
    promise("session-list", "list the names of the sessions", WALLED),
    promise("session-write", "change, create and remove files of another session", WALLED),
    promise("session-link", "take a hard link to a file of another session", WALLED),
    promise("record-read", "read records of the server", WALLED),
    promise("record-write", "change records of the server", WALLED),
    promise("keys-read", "read the key file and the file of user credentials", WALLED),
    promise("keys-write", "change the key file and the file of user credentials", WALLED),
    promise("server-environ", "read the server's environment, memory and descriptors in /proc", WALLED_OR_ROOT),
    promise("server-vm", "read the server's memory by process_vm_readv", TRACED_OR_ROOT),
    promise("server-trace", "trace the server", TRACED_OR_ROOT),
    promise("server-stop", "signal the server and shims", WALLED),
    promise("server-limit", "change resource limits of the server", OTHER_WORLD),
    promise("child-environ", "read environment, memory, directory and descriptors of another session's processes", WALLED),
    promise("child-vm", "read memory of another session's processes by process_vm_readv", TRACED),
    promise("child-trace", "trace processes of another session", TRACED),
    promise("child-stop", "signal processes of another session", WALLED),
    promise("child-limit", "change priority and resource limits of another session's processes", OTHER_WORLD),
    promise("others-visible", "see command lines of others in /proc", &[&[Namespaces]]),
    promise("public-listener", "connect to the public listener", NETWORK),
    promise("admin-listener", "connect to the admin listener", NETWORK),
    promise("other-address", "connect to another address and another port", NETWORK),
    promise("other-ways", "the same by MPTCP and TCP Fast Open", OTHER_WAYS),
    promise("offered-port", "offer a port on loopback", NETWORK),
    promise("udp", "send UDP, as DNS does", &[&[Namespaces]]),
    promise("abstract-socket", "connect to an abstract Unix socket", NETWORK),
    promise("path-socket", "connect to a Unix socket of the server's user (docker.sock)", &[&[Namespaces], &[Uid]]),
    promise("set-uid", "gain rights by a set-uid program", &[&[]]),
    promise("user-namespace", "create a user namespace", &[&[Seccomp]]),
    promise("mount", "mount a file system", &[&[Seccomp], &[Landlock]]),
    promise("leave-group", "move itself to another cgroup", HOST),
    promise("host-setting", "change settings of the kernel (sysctl, as core_pattern)", HOST),
    promise("sysrq", "write to /proc/sysrq-trigger", HOST),
    promise("keyring", "read a key that another session has in the kernel's keyring", &[
        &[Seccomp],
        &[Uid],
        &[Namespaces, Unprivileged],
    ]),
];

/// The row with this name.
pub(crate) fn promise_named(name: &str) -> &'static Promise {
    TABLE.iter().find(|promise| promise.name == name).unwrap_or_else(|| panic!("{name} is not in the table"))
}

#[test]
fn table_names_are_unique_and_attempted() {
    for (index, row) in TABLE.iter().enumerate() {
        assert!(TABLE[..index].iter().all(|earlier| earlier.name != row.name), "{} is there twice", row.name);
        assert!(!row.attack.is_empty() && !row.held_by.is_empty(), "{}", row.name);
    }
}
