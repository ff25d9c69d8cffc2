//! A child dies: idle, at work, by its own hand or by its tool's.

use super::*;

/// A stream that has brought its first text, read to its end in the background.
async fn at_work(attack: &Attack, text: &str) -> tokio::task::JoinHandle<Reply> {
    attack.note_turn();
    let answer = attack.site.asking(MALLORY, &message(text)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    tokio::spawn(async move {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Reply::of(&Answer { status, headers, body: answer.text().await.expect("a whole body") })
    })
}

/// After SIGKILL of an idle child its session recovers within two seconds and loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn fault_07_killed_idle_child_recovers_in_2_s() {
    // A child that was killed is started again for its idle session; it then lives as long as any other.
    let attack = Attack::with("restart = { intensity = 50, backoff = \"50ms\" }").await;
    attack.say("remember me").await;
    for round in 1..=5 {
        attack.written_down(&format!("echo {round}")).await;
        let old = attack.child().await;
        let began = Instant::now();
        old.kill();
        let again = async || {
            let entry = attack.entry().await;
            (entry["state"] == "idle" && entry["pid"] != old.pid).then_some(())
        };
        eventually_some("a new child, unasked", SOON, again).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(attack.say("still here").await, format!("echo {}: still here", round + 1));
    }
    assert!(attack.say("[[recall]]").await.starts_with("remember me | still here"));
    assert_eq!(attack.entry().await["restarts"], 5);
    attack.over().await;
}

/// SIGKILL during a turn is reported within a second; the turn is never replayed.
#[tokio::test(flavor = "multi_thread")]
async fn fault_08_kill_in_turn_is_reported_not_replayed() {
    let attack = Attack::begin().await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    let turn = at_work(&attack, "long [[deltas:1000]][[delay:20]]").await;
    attack.written_down("long [[deltas").await;
    let (old, began) = (attack.child().await, Instant::now());
    old.kill();
    let reply = turn.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(reply.code(), "session_lost");
    assert!(reply.message().contains("signal 9"), "{}", reply.message());
    assert_eq!(attack.say("[[recall]]").await, "before | long [[deltas:1000]][[delay:20]]", "said once");
    let arguments = attack.child().await.arguments();
    assert!(arguments.contains(&"--resume".to_owned()), "{arguments:?}");
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_09_exit_0_in_a_turn_is_a_crash() {
    let attack = Attack::begin().await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    let reply = attack.turn("[[fault:exit0-mid]][[say:a long enough answer]]").await;
    assert_eq!(reply.code(), "session_lost");
    assert!(reply.message().contains("exit code 0"), "{}", reply.message());
    assert_eq!(attack.site.metric("restarts_total", &["cause=\"crash\""]).await, 1.0);
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_18_half_a_line_is_discarded_and_counted() {
    let attack = Attack::begin().await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    // Every event is checked to be a whole line.
    let reply = attack.turn("[[fault:half-line]][[say:a long enough answer]]").await;
    assert_eq!(reply.code(), "session_lost");
    assert_eq!(attack.site.metric("protocol_errors_total", &["kind=\"partial_eof\""]).await, 1.0);
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

/// A tool that kills its CLI is a crash in a turn.
#[tokio::test(flavor = "multi_thread")]
async fn fault_21_tool_killing_its_cli_is_a_crash() {
    let attack = Attack::with("permissions = { policy = \"allow\" }").await;
    attack.say("before").await;
    attack.written_down("echo 1: before").await;
    let old = attack.child().await;
    let reply = attack.turn("[[tool:Bash {\"command\":\"kill -9 $PPID; sleep 60\"}]]").await;
    assert_eq!(reply.code(), "session_lost");
    assert!(reply.message().contains("signal 9"), "{}", reply.message());
    assert!(!old.is_alive());
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    attack.over().await;
}

/// A killed shim takes its CLI along and its tools are found.
#[tokio::test(flavor = "multi_thread")]
async fn fault_25_killed_shim_ends_cli_and_tools() {
    let attack = Attack::begin().await;
    attack.say("before [[fault:outlive]]").await;
    attack.written_down("left behind").await;
    let old = attack.child().await;
    let shim = Process::of(old.parent().unwrap()).unwrap();
    let left: Vec<_> = crate::common::process::descendants(shim.pid);
    assert!(left.len() >= 4, "nothing to find: {left:?}");
    shim.kill();
    eventually("the CLI and all its tools are gone", SOON, || left.iter().all(|it| !it.is_alive())).await;
    attack.state("idle").await;
    assert!(attack.say("[[recall]]").await.starts_with("before"));
    // And with a turn at work.
    let turn = at_work(&attack, "long [[deltas:1000]][[delay:20]]").await;
    let shim = Process::of(attack.child().await.parent().unwrap()).unwrap();
    attack.written_down("long [[deltas").await;
    shim.kill();
    assert_eq!(turn.await.unwrap().code(), "session_lost");
    attack.over().await;
}
