//! The promises: what a hostile tool must not reach, and which rungs keep it out of reach.
//!
//! Pure data. An empty alternative is what every child has. `docs/security.md` shows this table.

use crate::rungs::Term::{self, Cgroup, Landlock, Namespaces, Root, Seccomp, Uid, Unprivileged};

pub(crate) struct Promise {
    pub(crate) name: &'static str,
    /// What the tool attempts.
    pub(crate) attack: &'static str,
    /// Alternatives, each of which holds the promise alone if all of its terms are met.
    pub(crate) held_by: &'static [&'static [Term]],
}

const fn promise(name: &'static str, attack: &'static str, held_by: &'static [&'static [Term]]) -> Promise {
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
/// Landlock restricts what is opened, not what is done by name only.
const SEPARATED: &[&[Term]] = &[&[Namespaces], &[Uid]];
const NETWORK: &[&[Term]] = &[&[Landlock], &[Namespaces]];
/// Landlock has rules for TCP by connect(2) and bind(2) alone; seccomp refuses the other ways to a connection.
const OTHER_WAYS: &[&[Term]] = &[&[Namespaces], &[Landlock, Seccomp]];
/// Files of the host's root.
const HOST: &[&[Term]] = &[&[Landlock], &[Namespaces], &[Uid], &[Unprivileged]];

/// Promises that the same tests attack.
pub(crate) struct Group {
    pub(crate) tests: &'static [&'static str],
    pub(crate) promises: &'static [Promise],
}

pub(crate) const TABLE: &[Group] = &[
    Group {
        tests: &["escape_files_of_others_are_out_of_reach", "escape_files_by_the_real_cli"],
        promises: &[
            promise("session-read", "read files of another session", WALLED),
            promise("session-list", "list the names of the sessions", WALLED),
            promise("session-write", "change, create and remove files of another session", WALLED),
            promise("session-link", "take a hard link to a file of another session", WALLED),
            promise("session-watch", "watch by inotify which files another session creates", SEPARATED),
            promise("file-modes", "change modes of files of the server and of other sessions", SEPARATED),
            promise("shared-directory", "read what another session keeps in /tmp and /dev/shm", WALLED),
            promise("record-read", "read records of the server", WALLED),
            promise("record-write", "change records of the server", WALLED),
            promise("keys-read", "read the key file and the file of user credentials", WALLED),
            promise(
                "environment-read",
                "read the file of the server's environment in /etc/pilotlight",
                WALLED,
            ),
            promise("keys-write", "change the key file and the file of user credentials", WALLED),
        ],
    },
    Group {
        tests: &["escape_processes_of_others_are_out_of_reach", "escape_processes_by_the_real_cli"],
        promises: &[
            promise(
                "server-environ",
                "read the server's environment, memory and descriptors in /proc",
                WALLED_OR_ROOT,
            ),
            promise("server-vm", "read the server's memory by process_vm_readv", TRACED_OR_ROOT),
            promise("server-trace", "trace the server", TRACED_OR_ROOT),
            promise("server-stop", "signal the server and shims", WALLED),
            promise("server-limit", "change resource limits of the server", OTHER_WORLD),
            promise(
                "child-environ",
                "read environment, memory, directory and descriptors of another session's processes",
                WALLED,
            ),
            promise("child-vm", "read memory of another session's processes by process_vm_readv", TRACED),
            promise("child-trace", "trace processes of another session", TRACED),
            promise("child-stop", "signal processes of another session", WALLED),
            promise("child-limit", "change resource limits of another session's processes", OTHER_WORLD),
            promise("child-slow", "leave one processor to another session's processes", SEPARATED),
            promise("others-visible", "see command lines of others in /proc", &[&[Namespaces]]),
        ],
    },
    Group {
        tests: &["escape_network_is_out_of_reach", "escape_network_by_the_real_cli"],
        promises: &[
            promise(
                "operators-key",
                "find the operator's API key in environments, in HOME and in the workspace",
                NETWORK,
            ),
            promise(
                "model-of-others",
                "call the model at the endpoint of another session, with that session's token",
                NETWORK,
            ),
            promise("model-of-others-own-token", "the same with its own token", NETWORK),
            promise("public-listener", "connect to the public listener", NETWORK),
            promise("admin-listener", "connect to the admin listener", NETWORK),
            promise("other-address", "connect to another address and another port", NETWORK),
            promise(
                "own-port-elsewhere",
                "connect to another address on the port of its own listener",
                &[&[Namespaces]],
            ),
            promise("other-ways", "the same by MPTCP and TCP Fast Open", OTHER_WAYS),
            promise("offered-port", "offer a port on loopback", NETWORK),
            promise("udp", "send UDP, as DNS does", OTHER_WAYS),
            promise("abstract-socket", "connect to an abstract Unix socket", NETWORK),
            promise(
                "path-socket",
                "connect to a Unix socket of the server's user (docker.sock)",
                &[&[Namespaces], &[Uid]],
            ),
        ],
    },
    Group {
        tests: &["escape_real_credentials_are_nowhere_inside", "escape_real_credentials_by_the_real_cli"],
        promises: &[promise(
            "real-credentials",
            "have the operator's key, or a user's OAuth tokens, in environment, memory, arguments or files",
            NETWORK,
        )],
    },
    Group {
        tests: &["escape_kernel_is_out_of_reach", "escape_kernel_by_the_real_cli"],
        promises: &[
            promise("set-uid", "gain rights by a set-uid program", &[&[]]),
            promise("user-namespace", "create a user namespace", &[&[Seccomp]]),
            promise("mount", "mount a file system", &[&[Seccomp], &[Landlock]]),
            promise("leave-group", "move itself to another cgroup", HOST),
            promise("host-setting", "change settings of the kernel (sysctl), among them core_pattern", HOST),
            promise("sysrq", "write to /proc/sysrq-trigger", HOST),
            promise("shared-memory", "read System V shared memory of another session", SEPARATED),
            promise(
                "keyring",
                "read a key that another session has in the kernel's keyring",
                &[&[Seccomp], &[Uid], &[Namespaces, Unprivileged]],
            ),
        ],
    },
    Group {
        tests: &["escape_nothing_outlives_its_session"],
        promises: &[
            promise(
                "outlive-stop",
                "outlive the stop of the session below its shim: in a session of its own, without environment, forking ahead",
                &[&[]],
            ),
            promise("outlive-eviction", "the same at an eviction", &[&[]]),
            promise("outlive-server", "the same at SIGKILL of the server", &[&[]]),
            promise(
                "desert-stop",
                "leave its cgroups, kill its shim, then outlive the stop of the session",
                WALLED,
            ),
            promise("desert-server", "the same, and outlive SIGKILL of the server", WALLED),
        ],
    },
    Group {
        tests: &["escape_hogs_leave_others_served"],
        promises: &[
            promise("fork-bomb", "start more processes than a session may have", &[&[Cgroup]]),
            promise("memory-hog", "hold more memory than a session may have, for a moment", &[&[Cgroup]]),
            promise("disk-fill", "go on with more bytes or more files than a session may have", &[&[]]),
            promise("forged-cost", "forge ends of turns, with costs and tokens, on its CLI's output", &[&[]]),
            promise(
                "others-served",
                "keep others from being served by forks, memory, processors, disk, files, descriptors and output",
                &[&[]],
            ),
        ],
    },
    Group {
        tests: &["escape_processors_are_shared_by_session"],
        promises: &[promise(
            "processor-share",
            "take a larger share of a processor than another session, by more processes",
            &[&[Cgroup]],
        )],
    },
    Group {
        tests: &["escape_races_lead_nowhere"],
        promises: &[
            promise(
                "listing-race",
                "make the server read files of others by exchanging a directory and a link",
                &[&[]],
            ),
            promise("purge-race", "make the server delete files of others in the same way", &[&[]]),
        ],
    },
    Group {
        tests: &["escape_poisoned_workspace_is_not_obeyed"],
        promises: &[promise(
            "poisoned-workspace",
            "plant hooks, settings, MCP servers and background tasks for the next start of the CLI",
            &[&[]],
        )],
    },
    Group {
        tests: &["escape_attached_children_are_walled_as_others"],
        promises: &[promise(
            "attached-read",
            "read files, records and environments of others, started through `pilotlight attach`",
            WALLED,
        )],
    },
];

/// The row with this name.
pub(crate) fn promise_named(name: &str) -> &'static Promise {
    let mut all = TABLE.iter().flat_map(|group| group.promises);
    all.find(|promise| promise.name == name).unwrap_or_else(|| panic!("{name} is not in the table"))
}

/// The rungs of a promise, as the documentation has them.
fn shown(promise: &Promise) -> String {
    let name = |term: &Term| match term {
        Root => "the server is root".to_owned(),
        Unprivileged => "the server is not root".to_owned(),
        rung => format!("`{}`", rung.name()),
    };
    let all = |terms: &&[Term]| match terms {
        [] => "every child".to_owned(),
        terms => terms.iter().map(name).collect::<Vec<_>>().join(" with "),
    };
    promise.held_by.iter().map(all).collect::<Vec<_>>().join(", ")
}

/// The rows of the table in docs/security.md.
fn rows() -> String {
    let mut rows = String::from("| attack by a tool | held by each of | test |\n|---|---|---|\n");
    for group in TABLE {
        let tests: Vec<_> = group.tests.iter().map(|test| format!("`{test}`")).collect();
        let tests = tests.join(", ");
        for promise in group.promises {
            rows.push_str(&format!("| {} | {} | {tests} |\n", promise.attack, shown(promise)));
        }
    }
    rows
}

#[test]
fn security_page_has_the_table_of_promises() {
    let page = include_str!("../../docs/security.md");
    assert!(page.contains(&rows()), "docs/security.md has another table than:\n{}", rows());
}

#[test]
fn promises_have_one_name_each() {
    let names: Vec<_> = TABLE.iter().flat_map(|group| group.promises).map(|promise| promise.name).collect();
    for (index, name) in names.iter().enumerate() {
        assert!(!names[..index].contains(name), "{name} is there twice");
    }
    assert!(TABLE.iter().all(|group| group.promises.iter().all(|promise| !promise.held_by.is_empty())));
}
