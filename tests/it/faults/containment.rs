//! Children, and what they start, that do not want to go.

use super::*;

/// Evicts mallory's child; what it had running goes with it.
async fn gone(attack: &Attack) {
    attack.evict(MALLORY).await;
    eventually("all of mallory's is gone", SOON, || attack.mallorys().is_empty()).await;
}

/// A child that ignores every request to stop is killed with its process tree.
#[tokio::test(flavor = "multi_thread")]
async fn fault_15_child_ignoring_stops_dies_with_tree() {
    let attack = Attack::with("session = { stop_eof = \"300ms\", stop_term = \"300ms\" }").await;
    attack.start_args("--fault ignore-term --fault ignore-eof");
    attack.say("hello [[fault:outlive]]").await;
    let family = attack.mallorys();
    assert!(family.len() >= 4, "{family:?}");
    gone(&attack).await;
    assert!(family.iter().all(|process| !process.is_alive()));
    for step in ["stdin_close", "term", "tree_kill"] {
        let taken = attack.site.metric("stop_steps_total", &[&format!("step=\"{step}\"")]).await;
        assert!(taken >= 1.0, "{step}");
    }
    attack.over().await;
}

/// Daemons and processes that run ahead are caught.
#[tokio::test(flavor = "multi_thread")]
async fn fault_20_daemons_and_fork_races_are_killed() {
    const RACERS: usize = 20;
    let attack = Attack::with("permissions = { policy = \"allow\" }").await;
    // Two in sessions of their own, the second without environment, and a daemon.
    let reply = attack.say("[[fault:outlive]]").await;
    let mut left: Vec<Process> =
        reply.split(' ').filter_map(|word| Process::of(word.parse().ok()?)).collect();
    assert_eq!(left.len(), 3, "{reply}");
    let name = format!("racer-{}", uuid::Uuid::new_v4());
    let racers = || {
        crate::common::process::all().into_iter().filter(|it| it.arguments().first() == Some(&name)).count()
    };
    let dots = attack.place.path().join("dots");
    let hops = || std::fs::metadata(&dots).map_or(0, |it| it.len());
    if std::path::Path::new("/usr/bin/perl").exists() {
        // Each forks, ends and leaves its group without pause: a list of processes is out of date when it is made.
        let script = attack.place.path().join("racer.pl");
        // Too short-lived to be seen for sure, each leaves a dot.
        let hop = "while (1) { fork and exit; setpgrp(0, 0); syswrite(D, '.'); select(undef, undef, undef, 0.0002) }";
        let open = format!("open(D, '>>', '{}')", dots.display());
        std::fs::write(&script, format!("$0 = '{name}'; {open}; {hop}")).unwrap();
        let start = format!("for i in $(seq {RACERS}); do setsid perl {} & done", script.display());
        attack.say(&format!("[[tool:Bash {}]]", json!({ "command": start }))).await;
        eventually("they race", SOON, || hops() >= 10 * RACERS as u64).await;
    } else {
        crate::common::installed::left_out("no perl to run ahead with");
    }
    left.push(attack.child().await);
    attack.child().await.kill();
    eventually("the old tree is gone", SOON, || left.iter().all(|it| !it.is_alive()) && racers() == 0).await;
    let before = hops();
    attack.state("idle").await;
    attack.say("[[sleep:300]]hello").await;
    assert_eq!((hops(), racers()), (before, 0), "a process still hops");
    gone(&attack).await;
    attack.over().await;
}

/// An MCP server that ignores the end of its input goes with its child.
#[tokio::test(flavor = "multi_thread")]
async fn fault_22_mcp_server_ignoring_eof_dies() {
    let attack = Attack::with("[mcp]\ncallers = \"all\"").await;
    let token = format!("9000.{}", std::process::id());
    let script = format!("trap '' INT TERM HUP; while :; do sleep {token}; done");
    let mut body = message("hello");
    body["mcp_servers"] = json!({ "deaf": { "command": "/bin/sh", "args": ["-c", script] } });
    attack.note_turn();
    let answer = Answer::of(attack.site.asking(MALLORY, &body)).await;
    assert_eq!(answer.text(), "echo 1: hello");
    let sleeps = || attack.place.running(&["sleep", &token]).len();
    eventually("the server runs", SOON, || sleeps() == 1).await;
    // Stopped in order; then killed.
    gone(&attack).await;
    assert_eq!(sleeps(), 0);
    attack.say("again").await;
    eventually("the server runs", SOON, || sleeps() == 1).await;
    let server = attack.place.running(&["sleep", &token])[0].parent().and_then(Process::of).unwrap();
    attack.child().await.kill();
    eventually("the old server is gone", SOON, || !server.is_alive()).await;
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_34_a_lost_group_is_said_once_and_survived() {
    let attack = Attack::with("metrics = { sample_interval = \"100ms\" }").await;
    let rung = async |rung: &str| {
        let label = format!("rung=\"{rung}\"");
        let is_it = async || (attack.site.metric("containment_info", &[&label]).await == 1.0).then_some(());
        eventually_some(&format!("the rung is {rung}"), SOON, is_it).await;
    };
    attack.say("hello").await;
    let environ = std::fs::read(format!("/proc/{}/environ", attack.child().await.pid)).unwrap();
    let environ = String::from_utf8_lossy(&environ).into_owned();
    let marker = environ.split('\0').find_map(|entry| entry.strip_prefix("PILOTLIGHT_INSTANCE="));
    let marker = marker.expect("the instance's marker").to_owned();
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", attack.child().await.pid)).unwrap();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let mount = mount.and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
    let base = format!("pilotlight-{marker}");
    let Some((above, _)) = own.split_once(&base) else {
        rung("walk").await;
        return crate::common::installed::left_out("no writable cgroup v2 here");
    };
    let base = std::path::PathBuf::from(format!("{mount}{above}{base}"));
    rung("cgroup").await;

    // The operator of the host takes it away, in the moment in which no child is in it.
    let lost = || attack.program.err().matches("cannot be put into cgroups any more").count();
    let removed = || {
        let groups = std::fs::read_dir(&base).into_iter().flatten().flatten();
        groups.filter(|entry| entry.path().is_dir()).for_each(|group| drop(move_out(&group.path())));
        std::fs::remove_dir(&base).is_ok()
    };
    eventually("the group is removed", SOON, removed).await;
    rung("walk").await;
    for user in ["one", "two", "three"] {
        attack.turn_of(user, "hello").await.text();
    }
    assert_eq!(lost(), 1, "{}", attack.program.err());

    // A server that starts meanwhile, as those of other tests, removes a directory that no server holds.
    let made_and_held = async || {
        std::fs::create_dir_all(&base).ok()?;
        let directory = std::fs::File::open(&base).ok()?;
        rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockShared).ok()?;
        base.is_dir().then_some(directory)
    };
    let _held = eventually_some("the group is there again", SOON, made_and_held).await;
    attack.turn_of("four", "hello").await.text();
    rung("cgroup").await;
    let back = || attack.program.err().matches("are in cgroups again").count() == 1;
    eventually("the return is said", SOON, back).await;
    assert_eq!(lost(), 1);
    attack.over().await;
}

/// Moves everything in a group to the root of its hierarchy and removes it.
fn move_out(group: &std::path::Path) -> std::io::Result<()> {
    let root = group.ancestors().filter(|dir| dir.join("cgroup.procs").exists()).last();
    let root = root.ok_or(std::io::ErrorKind::NotFound)?.join("cgroup.procs");
    for pid in std::fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        std::fs::write(&root, pid)?;
    }
    std::fs::remove_dir(group)
}
