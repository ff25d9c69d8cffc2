//! Who reads the child's output: the reader of the turn while it asks, the driver when it does not.

use futures_util::Stream as _;

use super::*;

/// Longer than a reader may be away before the driver reads for it.
const AWAY: Duration = Duration::from_millis(400);

/// A reader that does something else does not hold up the end of its turn.
#[tokio::test(flavor = "multi_thread")]
async fn absent_reader_does_not_delay_end_of_turn() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "warm").await;
    let mut turn = alice.send("[[deltas:50]][[delay:5]]").await.unwrap();
    turn.next().await.unwrap().unwrap();
    eventually("the turn is over", || state(&alice) == SessionState::Idle).await;
    assert_eq!(alice.status().unwrap().turns, 2);
    let next = say(&alice, "the next turn does not wait either").await;
    assert!(!next.is_empty());
    let outcome = turn.finish().await;
    assert!(outcome.is_ok(), "{outcome:?}");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_nobody_reads_ends_all_the_same() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let turn = alice.send("[[deltas:20]]").await.unwrap();
    eventually("the turn is over", || alice.status().is_some_and(|status| status.turns == 1)).await;
    assert!(turn.finish().await.is_ok());
    bench.end().await;
}

/// A reader that comes and goes gets every event once and in order.
#[tokio::test(flavor = "multi_thread")]
async fn intermittent_reader_gets_each_event_in_order() {
    let bench = Bench::with(|config| config.session.event_buffer = 4).await;
    let alice = bench.pilot.session("alice");
    let mut turn = alice.send("[[deltas:300]][[delay:5]]").await.unwrap();
    let (mut text, mut events) = (String::new(), 0u32);
    while let Some(event) = turn.next().await {
        text.push_str(&event.unwrap().text_delta().unwrap_or_default());
        events += 1;
        // Away in the middle of a read, after one, and for longer than the channel has room.
        if events.is_multiple_of(100) {
            tokio::time::sleep(AWAY).await;
        }
    }
    let outcome = turn.outcome().unwrap();
    assert!(outcome.is_ok() && outcome.text == text, "{outcome:?}: {text}");
    bench.end().await;
}

/// A wait that is given up and taken up again loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_wait_loses_no_event() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "warm").await;
    let mut turn = alice.send("[[deltas:60]][[delay:10]]").await.unwrap();
    let mut text = String::new();
    loop {
        // A few of these end in the middle of a wait; the next one to wait is another task.
        let waited = tokio::spawn(async move {
            let event = tokio::time::timeout(Duration::from_millis(3), turn.next()).await;
            (turn, event)
        });
        let event;
        (turn, event) = waited.await.unwrap();
        match event {
            Ok(Some(event)) => text.push_str(&event.unwrap().text_delta().unwrap_or_default()),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    assert_eq!(turn.outcome().unwrap().text, text);
    bench.end().await;
}

#[test]
fn a_reader_may_live_in_another_runtime() {
    let here = tokio::runtime::Runtime::new().unwrap();
    let there = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = here.block_on(Bench::new());
    let alice = bench.pilot.session("alice");
    for _ in 0..5 {
        let turn = here.block_on(alice.send("[[deltas:100]][[delay:1]]")).unwrap();
        let outcome = there.block_on(turn.finish());
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    here.block_on(bench.end());
}

/// A reader that leaves a slow turn does not hold up its end.
#[tokio::test(flavor = "multi_thread")]
async fn departed_reader_does_not_delay_slow_turn() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "warm").await;
    // Each word comes after the driver has taken over from the reader that waits for it.
    let mut turn = alice.send("[[deltas:8]][[delay:400]]").await.unwrap();
    let (began, mut words) = (Instant::now(), 0);
    while words < 4 {
        words += u32::from(turn.next().await.unwrap().unwrap().text_delta().is_some());
    }
    eventually("the turn is over", || state(&alice) == SessionState::Idle).await;
    // The silence after which a child is asked whether it lives would end the wait too.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(turn.finish().await.is_ok());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_what_is_for_nobody_keeps_nobody_waiting() {
    const TURNS: usize = 40;
    /// How much longer than without a flood the turns may take together.
    const FACTOR: u32 = 30;
    let bench = Bench::with(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    say(&bob, "warm").await;
    // As fast as this machine is now: a tenth of a second where nothing else runs.
    let began = Instant::now();
    for _ in 0..TURNS {
        say(&bob, "undisturbed").await;
    }
    let lasts = (began.elapsed() * FACTOR).max(Duration::from_secs(3)).as_secs_f64();
    // A tool writes to the output of its own CLI, as fast as it can, what is no line of the protocol.
    let flood = format!(r#"[[tool:Bash {{"command":"timeout {lasts:.1} yes x > /proc/$PPID/fd/1"}}]]"#);
    let turn = alice.send(flood).await.unwrap();
    let flooded = tokio::spawn(turn.finish());
    // Held up, they would be held up as long as the flood lasts; the machine's own load only stretches all of them.
    let mut longest = Duration::ZERO;
    for number in 1..=TURNS {
        let asked = Instant::now();
        say(&bob, "not delayed").await;
        longest = longest.max(asked.elapsed());
        assert!(!flooded.is_finished(), "the flood ended before turn {number}; the longest took {longest:?}");
    }
    alice.interrupt().await.unwrap();
    flooded.await.unwrap();
    bench.end().await;
}

/// Runs its turn wherever it is woken: a waker may do that.
struct AtOnce {
    turn: std::sync::Mutex<Option<pilotlight::Turn>>,
    outcome: std::sync::OnceLock<pilotlight::Outcome>,
}

impl std::task::Wake for AtOnce {
    fn wake(self: std::sync::Arc<Self>) {
        // A reader that waits already looks again by itself.
        let Ok(mut turn) = self.turn.try_lock() else { return };
        let waker = std::task::Waker::from(self.clone());
        let mut context = std::task::Context::from_waker(&waker);
        let Some(running) = turn.as_mut() else { return };
        while let std::task::Poll::Ready(event) = std::pin::Pin::new(&mut *running).poll_next(&mut context) {
            if event.is_none() {
                self.outcome.set(running.outcome().unwrap().clone()).unwrap();
                *turn = None;
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_run_where_it_is_woken() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    // It waits before there is a child.
    let turn = alice.send("[[deltas:20]][[delay:10]]").await.unwrap();
    let reader = std::sync::Arc::new(AtOnce { turn: Some(turn).into(), outcome: std::sync::OnceLock::new() });
    std::task::Wake::wake(reader.clone());
    eventually("the end", || reader.outcome.get().is_some()).await;
    assert!(reader.outcome.get().unwrap().is_ok());
    bench.end().await;
}
