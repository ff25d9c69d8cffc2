//! An idle child that is frozen: it costs no processor time and answers the next message as if nothing had been.

use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use super::*;
use crate::common::bench::{killed_idle, simulated};
use crate::common::process::Process;
use crate::common::{SOON, eventually_some};
use crate::faults::processor_time;

async fn hibernating(rest: fn(&mut Config)) -> Bench {
    Bench::with(|config| {
        config.session.hibernate_after = Duration::from_millis(100);
        rest(config);
    })
    .await
}

/// Number of times that a child was frozen since this was asked last.
fn hibernations(recorder: &DebuggingRecorder) -> u64 {
    let metrics = recorder.snapshotter().snapshot().into_vec();
    let counted = metrics.into_iter().filter(|(key, ..)| key.key().name() == "pilotlight_hibernations_total");
    counted
        .map(|(_, _, _, value)| match value {
            DebugValue::Counter(count) => count,
            _ => 0,
        })
        .sum()
}

async fn is_frozen(session: &Session) {
    eventually("frozen", || session.status().is_some_and(|status| status.frozen)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_child_answers_the_next_message() {
    let bench = hibernating(|_| ()).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "keep this").await;
    let child = pid(&alice);
    for _ in 0..3 {
        is_frozen(&alice).await;
        assert!(say(&alice, "[[recall]]").await.starts_with("keep this"));
        assert_eq!(pid(&alice), child, "the same process");
    }
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}

/// What a tool has left behind stands still too.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_child_uses_no_processor() {
    let bench = hibernating(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let alice = bench.pilot.session("alice");
    say(&alice, r#"[[tool:Bash {"command":"setsid sh -c 'while :; do :; done' & echo $!"}]]"#).await;
    is_frozen(&alice).await;
    let family = || processes_in(bench.data.path());
    let used = || {
        let alive = family().into_iter().filter_map(|pid| Process::of(pid.cast_signed()));
        alive.map(processor_time).sum::<Duration>()
    };
    // A spinning process that runs uses more within a second, even on a busy machine.
    let moved = Duration::from_millis(50);
    eventually_some("the tree stands still", SOON, async || {
        let before = used();
        tokio::time::sleep(Duration::from_secs(1)).await;
        (used() - before < moved).then_some(())
    })
    .await;
    let before = used();
    say(&alice, "hello [[sleep:1000]]").await;
    assert!(used() - before >= moved, "it ran during the turn");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frozen_child_is_evicted_in_order() {
    /// An eviction that came before the freezing, or was seen too late, is followed by another one.
    const TRIES: usize = 10;
    let data = tempfile::tempdir().unwrap();
    let config = simulated(data.path(), |config| {
        config.session.hibernate_after = Duration::from_millis(100);
        config.session.idle_timeout = Duration::from_millis(600);
        // A frozen child would not notice the end of its input, and be killed much later than this test waits.
        config.session.stop_eof = Duration::from_secs(600);
    });
    let recorder = DebuggingRecorder::new();
    let pilot = Pilotlight::start_with(config, &recorder).await.unwrap();
    let bench = Bench { pilot, data };
    let alice = bench.pilot.session("alice");
    for tries in 1..=TRIES {
        say(&alice, "keep this").await;
        let child = alice.status().and_then(|status| status.pid);
        let evicted = async || match alice.status() {
            Some(status) if status.pid.is_some() => None,
            // Without a child for as long again, it leaves memory.
            status => Some(status.and_then(|status| status.last_exit)),
        };
        let exit = eventually_some("evicted", SOON, evicted).await;
        let was_frozen = hibernations(&recorder) > 0;
        let (true, Some(child), Some(exit)) = (was_frozen, child, exit) else { continue };
        assert!(!is_alive(child));
        assert_eq!(exit.reason, "evicted", "{exit:?}");
        assert_eq!(say(&alice, "[[recall]]").await, vec!["keep this"; tries].join(" | "));
        return bench.end().await;
    }
    panic!("in {TRIES} tries no child was frozen before its eviction");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_frozen_child_is_replaced() {
    let bench = hibernating(|_| ()).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "keep this").await;
    is_frozen(&alice).await;
    killed_idle(&alice).await;
    assert_eq!(say(&alice, "[[recall]]").await, "keep this");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_child_is_not_frozen() {
    let bench = hibernating(|_| ()).await;
    let alice = bench.pilot.session("alice");
    assert!(say(&alice, "slow [[sleep:900]]").await.contains("slow"));
    is_frozen(&alice).await;
    bench.end().await;
}
