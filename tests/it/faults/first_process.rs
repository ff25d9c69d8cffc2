//! The server as the first process of a PID namespace, as in a container: it inherits every orphan there.

use std::process::Command;

use super::*;
use crate::common::process::{all, descendants};
use crate::common::program::Site;

/// A namespace with a server in it.
struct Container {
    program: Program,
    site: Site,
    place: std::sync::Arc<crate::common::place::Place>,
}

impl Container {
    /// None where no namespace can be made.
    async fn start(config: &str) -> Option<Self> {
        let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        let possible = Command::new("unshare").args(unshare).arg("true").output();
        if !possible.is_ok_and(|output| output.status.success()) {
            crate::common::installed::left_out("no PID namespace can be made here (root, unshare)");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(unshare).arg(env!("CARGO_BIN_EXE_pilotlight"));
        let place = place();
        let (program, site) = Program::ready_by(&place, command, config).await;
        Some(Self { program, site, place })
    }

    /// Everything in it, seen from outside.
    fn processes(&self) -> Vec<Process> {
        descendants(self.program.process().pid)
    }

    fn init(&self) -> Process {
        let outside = self.program.process().pid;
        let children = self.processes().into_iter().filter(|process| process.parent() == Some(outside));
        only(children.collect())
    }

    fn server(&self) -> Process {
        only(self.children_of_init())
    }

    fn children_of_init(&self) -> Vec<Process> {
        let init = self.init().pid;
        self.processes().into_iter().filter(|process| process.parent() == Some(init)).collect()
    }

    /// Starts a command inside, as `docker exec` does, and waits for it.
    fn exec(&self, script: &str) {
        let target = self.init().pid.to_string();
        let status = Command::new("nsenter").args(["-t", &target, "-p", "-m", "sh", "-c", script]).status();
        assert!(status.expect("nsenter runs").success());
    }

    /// Those that have ended and are not reaped.
    fn zombies(&self) -> Vec<i32> {
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let is_zombie = |pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
        };
        let own = namespace(self.init().pid);
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| is_zombie(*pid) && namespace(*pid) == own).collect()
    }
}

fn only(all: Vec<Process>) -> Process {
    match all.as_slice() {
        [only] => *only,
        other => panic!("not one but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_process_reaps_orphans_and_counts_zombies() {
    let Some(container) = Container::start("metrics = { sample_interval = \"100ms\" }").await else { return };
    let server = container.server();
    for _ in 0..10 {
        container.exec("(sleep 0.05 &) ; (setsid sh -c 'exit 3' &)");
    }
    let reaped = || container.children_of_init() == [server] && container.zombies().is_empty();
    eventually("all orphans are reaped", SOON, reaped).await;
    assert_eq!(container.site.turn("alice", "hello").await.text(), "echo 1: hello");

    // One whose parent lives and does not reap is nobody else's to reap, and is counted.
    if std::path::Path::new("/usr/bin/perl").exists() {
        container.exec("setsid perl -e 'fork or exit; sleep 2' >/dev/null 2>&1 &");
        let counted = async |count| (container.site.metric("zombies", &[]).await == count).then_some(());
        eventually_some("the zombie is counted", SOON, async || counted(1.0).await).await;
        assert_eq!(container.zombies().len(), 1);
        eventually_some("it is reaped with its parent's end", SOON, async || counted(0.0).await).await;
    } else {
        crate::common::installed::left_out("no perl to make a zombie with");
    }
    let mut program = container.program;
    let init = only(
        descendants(program.process().pid)
            .into_iter()
            .filter(|it| it.parent() == Some(program.process().pid))
            .collect(),
    );
    init.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0), "{}", program.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn first_process_reaps_what_a_killed_shim_leaves() {
    let config = "permissions = { policy = \"allow\" }\nmetrics = { sample_interval = \"100ms\" }";
    let Some(container) = Container::start(config).await else { return };
    container.site.turn("alice", "[[fault:outlive]]").await.text();
    let server = container.server();
    let family = descendants(server.pid);
    let shim = family.iter().find(|it| it.parent() == Some(server.pid)).copied().expect("the shim");
    let before = family.len();
    assert!(before >= 4, "{family:?}");
    shim.kill();
    let gone = || family.iter().all(|it| !it.is_alive()) && container.zombies().is_empty();
    eventually("all of it is gone and reaped", SOON, gone).await;
    assert!(container.children_of_init() == [server]);
    let next = container.site.turn("alice", "again").await;
    assert!(next.text().ends_with(": again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn first_process_drains_on_sigterm_and_a_second_ends() {
    let Some(mut container) = Container::start("").await else { return };
    let init = container.init();
    let site = container.site.clone();
    let running = tokio::spawn(async move { site.turn("alice", "[[sleep:1500]]done").await.text() });
    let busy = async || (container.site.metric("sessions", &["state=\"busy\""]).await == 1.0).then_some(());
    eventually_some("the turn runs", SOON, busy).await;
    init.signal(Signal::TERM);
    assert_eq!(running.await.unwrap(), "echo 1: done", "a running turn may end");
    assert_eq!(container.program.code().await, Some(0), "{}", container.program.err());
    assert_eq!(container.place.processes(), []);

    let Some(mut container) = Container::start("").await else { return };
    let init = container.init();
    let site = container.site.clone();
    let running = tokio::spawn(async move {
        site.asking("alice", &message("[[sleep:60000]]x")).send().await?.bytes().await
    });
    let busy = async || (container.site.metric("sessions", &["state=\"busy\""]).await == 1.0).then_some(());
    eventually_some("the turn runs", SOON, busy).await;
    init.signal(Signal::TERM);
    eventually("it drains", SOON, || container.program.err().contains("draining")).await;
    init.signal(Signal::INT);
    assert_eq!(container.program.code().await, Some(1), "{}", container.program.err());
    assert!(running.await.unwrap().is_err());
    assert_eq!(container.place.processes(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_process_ends_with_its_server() {
    let Some(mut container) = Container::start("permissions = { policy = \"allow\" }").await else { return };
    container.site.turn("alice", "[[fault:outlive]]").await.text();
    let family = container.processes();
    container.server().kill();
    assert_eq!(container.program.code().await, Some(137), "{}", container.program.err());
    let left = || family.iter().filter(|it| it.is_alive()).count() + container.place.processes().len();
    eventually("nothing is left", SOON, || left() == 0).await;
    assert!(all().iter().all(|it| !family.contains(it)));
}
