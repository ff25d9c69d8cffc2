//! How a child is stopped, and what its end means.

use super::*;

/// A busy child is stopped in steps and its reader hears the end.
#[tokio::test(flavor = "multi_thread")]
async fn trap_08_busy_child_stops_in_steps_reader_ends() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let mut turn = alice.send("long [[deltas:10000]][[delay:20]]").await.unwrap();
    while turn.next().await.unwrap().unwrap().text_delta().is_none() {}
    let (old, began) = (pid(&alice), Instant::now());
    alice.evict().await.unwrap();
    // The answer would take minutes, and the end of input alone waits for it.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!is_alive(old));
    let outcome = turn.finish().await;
    assert!(failure(&outcome).interrupted, "a result, as after an interrupt: {outcome:?}");
    // And nothing was killed: the prompt is on disk.
    assert!(transcript(&alice).await.contains("long [[deltas"), "the transcript was flushed");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_08_each_step_of_the_stop_has_its_bound() {
    let deaf = |faults: &'static [&'static str]| {
        move |config: &mut Config| {
            config.cli.args =
                faults.iter().flat_map(|fault| ["--fault".to_owned(), (*fault).to_owned()]).collect();
            config.session.stop_eof = Duration::from_millis(300);
            config.session.stop_term = Duration::from_millis(300);
        }
    };
    for (faults, least) in [(&["ignore-eof"][..], 300), (&["ignore-eof", "ignore-term"], 600)] {
        let bench = Bench::with(deaf(faults)).await;
        let alice = bench.pilot.session("alice");
        say(&alice, "hello").await;
        let (old, began) = (pid(&alice), Instant::now());
        alice.evict().await.unwrap();
        let took = began.elapsed();
        assert!(!is_alive(old));
        assert!(
            took >= Duration::from_millis(least) && took < Duration::from_secs(5),
            "{faults:?}: {took:?}"
        );
        bench.end().await;
    }
}

/// Exit code 1 after a failed turn is no crash.
#[tokio::test(flavor = "multi_thread")]
async fn trap_10_exit_1_after_failed_turn_is_no_crash() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    for _ in 0..3 {
        assert!(!ask(&alice, "[[api_error:400]]").await.is_ok());
        // The CLI leaves with 1, for its last turn had failed.
        alice.evict().await.unwrap();
        assert!(is_childless(&alice));
    }
    say(&alice, "fine").await;
    let status = alice.status().unwrap();
    assert_eq!((status.restarts, status.generation), (0, 4), "no crash, no pause, no open circuit");
    bench.end().await;
}

/// Retries are shown bounded and can be interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn trap_11_retries_are_bounded_interruptible() {
    let bench = Bench::with(|config| config.session.turn_timeout = Duration::from_millis(1500)).await;
    let alice = bench.pilot.session("alice");
    let mut turn = alice.send("[[api_retry:3,20]] worth it").await.unwrap();
    let mut shown = 0;
    while let Some(event) = turn.next().await {
        shown += u32::from(event.unwrap().to_text().contains("\"api_retry\""));
    }
    assert_eq!(shown, 3);
    assert!(turn.outcome().unwrap().is_ok());

    let old = pid(&alice);
    let mut turn = alice.send("[[api_retry:10]]").await.unwrap();
    while !turn.next().await.unwrap().unwrap().to_text().contains("api_retry") {}
    let began = Instant::now();
    assert!(alice.interrupt().await.unwrap());
    assert!(failure(&turn.finish().await).interrupted);
    assert!(began.elapsed() < Duration::from_secs(1), "a wait of the CLI ends at once");

    let outcome = ask(&alice, "[[api_retry:10]]").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::TimedOut { .. })), "{outcome:?}");
    say(&alice, "next").await;
    assert_eq!(pid(&alice), old, "the CLI was right to try");
    bench.end().await;
}

/// A child without output is of no use and goes.
#[tokio::test(flavor = "multi_thread")]
async fn trap_17_child_with_closed_output_is_ended() {
    let bench = Bench::with(|config| config.restart.retry_turn = false).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    written_down(&alice, "hello").await;
    let (old, began) = (pid(&alice), Instant::now());
    let outcome = ask(&alice, "[[fault:close-stdout]][[deltas:1000]][[delay:50]]").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::SessionLost(_))), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(!is_alive(old), "it would have gone on, unheard");
    assert!(say(&alice, "[[recall]]").await.starts_with("hello"));
    bench.end().await;
}
