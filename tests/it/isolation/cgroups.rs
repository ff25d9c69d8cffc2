//! Limits of each child by its cgroups, which vanish with it.

use std::path::PathBuf;

use rustix::process::Signal;

use super::{served, tool};
use crate::common::SOON;
use crate::common::place::wait_until;
use crate::common::program::place;

/// Groups of this server's children in every hierarchy, by the directory that the server made for them.
fn groups(pid: u64) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let paths = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controller, path) = (parts.next()?, parts.next()?, parts.next()?);
        let directory = if controller.is_empty() { "unified" } else { controller };
        path.contains("/pilotlight-").then(|| PathBuf::from(format!("/sys/fs/cgroup/{directory}{path}")))
    });
    paths.filter(|path| path.exists()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_bomb_is_stopped_by_the_limit_on_tasks() {
    let place = place();
    let limits = "[limits]\nchild_processes = 40\n";
    let Some((_program, site)) = served(&place, &["cgroup", "namespaces"], limits).await else { return };
    let command = "for i in $(seq 200); do sleep 600 & done; jobs -p | wc -l";
    let output = tool(&site, "alice", command).await;
    assert!(output.to_lowercase().contains("fork") || output.contains("Resource temporarily"), "{output}");
    assert_eq!(site.turn("bob", "hello").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_hog_is_killed_and_its_cli_lives() {
    let place = place();
    let limits = "[limits]\nmemory_per_session = \"64MiB\"\n";
    let Some((_program, site)) = served(&place, &["cgroup"], limits).await else { return };
    site.turn("alice", "hello").await;
    let before = site.pid("alice").await;
    // More than the limit at once, faster than the sampler looks.
    let output = tool(&site, "alice", "head -c 400000000 /dev/zero | tail; echo after").await;
    assert!(output.contains("Killed") && output.contains("after"), "{output}");
    assert_eq!(site.pid("alice").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_removed_with_the_child() {
    for kill in [false, true] {
        let place = place();
        let Some((program, site)) = served(&place, &["cgroup"], "").await else { return };
        site.turn("alice", "hello").await;
        let groups = groups(site.pid("alice").await);
        assert!(!groups.is_empty(), "the child is in a group");
        program.signal(if kill { Signal::KILL } else { Signal::TERM });
        // A shim has not the right to remove their parents from the root of a hierarchy; a server that stops has.
        let is_gone = |group: &PathBuf| !group.exists() && (kill || !group.parent().unwrap().exists());
        let gone = || groups.iter().all(is_gone);
        assert!(wait_until(SOON, gone), "{groups:?}, killed: {kill}");
    }
}
