//! Limits of the whole instance.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_children_makes_others_wait_and_evicts_for_them() {
    let one = |config: &mut Config| {
        config.limits.max_children = 1;
        config.limits.queue_deadline = Duration::from_millis(400);
    };
    let bench = Bench::with(one).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    say(&alice, "mine").await;
    let outcome = ask(&bob, "and me?").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::Overloaded { .. })), "{outcome:?}");
    alice.evict().await.unwrap();
    say(&bob, "now").await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_newcomers_find_room_where_others_idle() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 4;
        config.limits.starts_in_flight = 4;
    })
    .await;
    for number in 0..4 {
        say(&bench.pilot.session(format!("old {number}")), "hello").await;
    }
    // Children are not stopped for others before they are ten seconds old; then all four newcomers get in.
    let began = Instant::now();
    let turns: Vec<_> = (0..4)
        .map(|number| {
            let session = bench.pilot.session(format!("new {number}"));
            tokio::spawn(async move { ask(&session, "hello").await })
        })
        .collect();
    for turn in turns {
        let outcome = turn.await.unwrap();
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_in_memory_are_limited_and_those_that_rest_make_way() {
    let bench = Bench::with(|config| config.limits.max_sessions = 2).await;
    let [one, two, three] = ["one", "two", "three"].map(|name| bench.pilot.session(name));
    say(&one, "hello").await;
    say(&two, "hello").await;
    assert!(matches!(three.send("hello").await, Err(TurnError::Overloaded { .. })));
    one.evict().await.unwrap();
    say(&three, "hello").await;
    two.evict().await.unwrap();
    assert_eq!(say(&one, "[[recall]]").await, "hello");
    bench.end().await;
}
