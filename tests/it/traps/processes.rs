//! What a child starts, and what of it may outlive it.

use super::*;

/// Tools that left the process group end with their child.
#[tokio::test(flavor = "multi_thread")]
async fn trap_09_escaped_tools_end_with_child() {
    let bench = Bench::with(|config| config.session.stop_eof = Duration::from_millis(300)).await;
    let alice = bench.pilot.session("alice");
    let left = || processes_in(bench.data.path()).len();
    say(&alice, "[[fault:outlive]]").await;
    assert!(left() > 2, "nothing to clean up");
    killed_idle(&alice).await;
    eventually("only the new child and its shim are left", || left() <= 2).await;

    say(&alice, "[[background:1000]]").await;
    alice.evict().await.unwrap();
    assert_eq!(processes_in(bench.data.path()), Vec::<u32>::new(), "after an orderly stop");

    // A foreground command: SIGTERM to the CLI leaves it alive.
    for fault in ["ignore-eof", "ignore-term"] {
        let call = "[[tool:Bash {\"command\":\"sleep 1000\"}]]";
        let turn = alice.send(format!("[[fault:{fault}]]{call}")).await.unwrap();
        let has_tool = || processes_in(bench.data.path()).iter().any(|pid| arguments(*pid)[0] == "sleep");
        eventually("the tool runs", has_tool).await;
        alice.evict().await.unwrap();
        assert_eq!(processes_in(bench.data.path()), Vec::<u32>::new(), "{fault}");
        drop(turn);
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_24_a_child_with_work_of_its_own_is_not_idle() {
    let busy = |config: &mut Config| {
        config.cli.background_tasks = true;
        config.session.idle_timeout = Duration::from_millis(400);
        // Without this the end of input, which waits for background work a little, would hide what is tested.
        config.session.stop_eof = Duration::from_millis(100);
        config.cli.args = vec!["--latency".into(), "100".into()];
    };
    let bench = Bench::with(busy).await;
    let alice = bench.pilot.session("alice");
    // Several times the idle timeout, and then a turn of its own.
    say(&alice, "[[background:2]]").await;
    let (old, began) = (pid(&alice), Instant::now());
    eventually("evicted", || is_childless(&alice)).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "stopped at its work, after {:?}", began.elapsed());
    assert!(!is_alive(old));
    assert!(transcript(&alice).await.contains("noticed: sleep 2"), "its own turn was not ended either");
    bench.end().await;
}
