//! Survival: processes that outlive the end of their session.

use std::time::Duration;

use crate::common::process::Process;
use crate::common::{SOON, eventually, eventually_some};
use crate::findings::Findings;
use crate::kernel::hierarchies;
use crate::rungs::{Walls, all_walls};
use crate::scene::{Cli, MALLORY, Scene};

/// How long after the end of its session a process may still be seen. The shim's promise is one second.
const GONE_WITHIN: Duration = Duration::from_secs(3);
/// Looks in a row that must find nothing: one that runs ahead may pass by a single one.
const LOOKS: usize = 5;
const RUNNERS: &str = "10";
const IDLE: &str = "[session]\nidle_timeout = \"2s\"\n";

/// Whether a process with this word on its command line lives after the time for it to go. If so, it is killed.
async fn outlives(scene: &Scene, name: &str) -> bool {
    let is_gone = || (0..LOOKS).all(|_| scene.with_argument(name).is_empty());
    let gone = eventually_some("they are gone", SOON, async || is_gone().then_some(()));
    let outlives = tokio::time::timeout(GONE_WITHIN, gone).await.is_err();
    // A process that runs ahead is killed by its group, all at once.
    for _ in 0..100 {
        if is_gone() {
            break;
        }
        scene.with_argument(name).into_iter().for_each(Process::kill);
    }
    outlives
}

/// Leaves two kinds of processes behind: in sessions of their own without environment, and running ahead.
async fn leave(scene: &Scene) -> String {
    let name = format!("outlive-{}", uuid::Uuid::new_v4());
    let printed = scene.attempt(&["outlive", &name, "2"]).await;
    let running = || scene.with_argument(&name).len() >= 2;
    eventually(&format!("they run: {printed}"), SOON, running).await;
    scene.attempt(&["hop", &name, RUNNERS]).await;
    name
}

async fn gone(child: Process) {
    eventually("the child is gone", SOON, || !child.is_alive()).await;
}

async fn by_every_end(walls: &Walls, findings: &mut Findings) {
    let scene = Scene::with(&Cli::Simulated, walls, IDLE).await;
    let name = leave(&scene).await;
    let child = scene.child(MALLORY).await;
    let answer = scene.request("DELETE", "/v1/sessions/default", MALLORY).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{answer:?}");
    gone(child).await;
    findings.judge(walls, "outlive-stop", outlives(&scene, &name).await, "");

    let name = leave(&scene).await;
    gone(scene.child(MALLORY).await).await;
    findings.judge(walls, "outlive-eviction", outlives(&scene, &name).await, "");

    let name = leave(&scene).await;
    let child = scene.child(MALLORY).await;
    scene.program.process().kill();
    gone(child).await;
    findings.judge(walls, "outlive-server", outlives(&scene, &name).await, "");
}

/// How the session of a deserter ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Stop,
    Server,
}

/// Out of its cgroups, without environment, and with its shim killed.
async fn by_desertion(walls: &Walls, end: End, findings: &mut Findings) {
    let scene = Scene::open(&Cli::Simulated, walls).await;
    let name = format!("desert-{}", uuid::Uuid::new_v4());
    let child = scene.child(MALLORY).await;
    let shim = child.parent().expect("a shim").to_string();
    let groups: Vec<_> = hierarchies().into_iter().map(|(path, _)| path.display().to_string()).collect();
    let mut words = vec!["desert", &name, &shim];
    words.extend(groups.iter().map(String::as_str));
    // The turn may end with the shim.
    let attempt = scene.attempt(&words);
    let done = format!("{name}-done");
    let runs = eventually_some("the deserter has done its part", SOON, async || {
        (!scene.with_argument(&done).is_empty()).then_some(())
    });
    tokio::join!(attempt, runs);
    let promise = if end == End::Stop {
        let answer =
            scene.request("DELETE", "/v1/sessions/default", MALLORY).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
        "desert-stop"
    } else {
        scene.program.process().kill();
        "desert-server"
    };
    findings.judge(walls, promise, outlives(&scene, &done).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_nothing_outlives_its_session() {
    let mut findings = Findings::default();
    for walls in all_walls() {
        by_every_end(&walls, &mut findings).await;
        for end in [End::Stop, End::Server] {
            by_desertion(&walls, end, &mut findings).await;
        }
    }
    findings.report();
}
