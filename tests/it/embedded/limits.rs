//! Limits of the whole instance.

use tokio::task::JoinSet;

use pilotlight::turn::Outcome;

use super::*;
use crate::common::{SOON, eventually_some};

/// Starts wait for less than the pause between two samples, which look for them too.
fn waits_without_samples(config: &mut Config) {
    config.metrics.sample_interval = Duration::from_secs(60);
    config.limits.queue_deadline = Duration::from_secs(9);
}

/// A limit on children makes others wait and evicts for them.
#[tokio::test(flavor = "multi_thread")]
async fn child_limit_queues_starts_and_evicts_idle() {
    let one = |config: &mut Config| {
        config.limits.max_children = 1;
        config.limits.queue_deadline = Duration::from_millis(400);
    };
    let bench = Bench::with(one).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    let busy = alice.send("[[sleep:60000]]").await.unwrap();
    eventually("alice's turn runs", || state(&alice) == SessionState::Busy).await;
    let outcome = ask(&bob, "and me?").await;
    assert!(matches!(outcome.status, Status::Aborted(TurnError::Overloaded { .. })), "{outcome:?}");
    drop(busy);
    alice.evict().await.unwrap();
    say(&bob, "now").await;
    bench.end().await;
}

/// A waiting start gets the place of a child that was started a moment ago, as soon as that one has nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn limits_young_idle_child_makes_room() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 1;
        waits_without_samples(config);
    })
    .await;
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| bench.pilot.session(name));
    say(&alice, "hello").await;
    say(&bob, "at once").await;
    let mut busy = carol.send("[[sleep:1500]]").await.unwrap();
    let first = busy.next().await;
    assert!(matches!(first, Some(Ok(_))), "carol's turn runs: {first:?} {:?}", busy.outcome());
    say(&alice, "when carol's turn has ended").await;
    assert!(busy.finish().await.is_ok());
    bench.end().await;
}

/// A waiting start gets the place of a child that works of its own accord, once that work is done.
#[tokio::test(flavor = "multi_thread")]
async fn limits_child_that_ends_own_work_makes_room() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 1;
        config.cli.background_tasks = true;
        waits_without_samples(config);
    })
    .await;
    let [alice, bob] = ["alice", "bob"].map(|name| bench.pilot.session(name));
    say(&alice, "[[background:1]]").await;
    say(&bob, "when alice's command has ended").await;
    bench.end().await;
}

/// The last room is taken by a start that waited as well: the next one gets the place of an idle child all the same.
#[tokio::test(flavor = "multi_thread")]
async fn limits_start_behind_others_finds_room() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 4;
        config.limits.starts_in_flight = 1;
        waits_without_samples(config);
    })
    .await;
    for name in ["a", "b"] {
        say(&bench.pilot.session(name), "hello").await;
    }
    let mut turns = Vec::new();
    for name in ["c", "d", "e"] {
        turns.push(bench.pilot.session(name).send("[[sleep:60000]]").await.unwrap());
    }
    let is_served = |name: &str| state(&bench.pilot.session(name)) == SessionState::Busy;
    eventually("all are served", || ["c", "d", "e"].into_iter().all(is_served)).await;
    drop(turns);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_newcomers_find_room_where_others_idle() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 4;
        config.limits.starts_in_flight = 4;
        config.limits.queue_deadline = Duration::from_secs(9);
    })
    .await;
    for number in 0..4 {
        say(&bench.pilot.session(format!("old {number}")), "hello").await;
    }
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
    bench.end().await;
}

/// Sessions in memory are limited and those that rest make way.
#[tokio::test(flavor = "multi_thread")]
async fn session_limit_unloads_dormant_sessions() {
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

/// A session whose children do not start makes way once its circuit may be tried again.
#[tokio::test(flavor = "multi_thread")]
async fn session_limit_unloads_sessions_that_failed() {
    let bench = Bench::with(|config| {
        config.limits.max_sessions = 1;
        config.cli.program = "/nowhere/the-cli".to_owned();
    })
    .await;
    let [alice, bob] = ["alice", "bob"].map(|name| bench.pilot.session(name));
    let has_failed = |outcome: Outcome| {
        assert!(matches!(outcome.status, Status::Aborted(TurnError::NotStarted(_))), "{outcome:?}");
    };
    has_failed(ask(&alice, "hello").await);
    eventually_some("alice makes way", SOON, async || match bob.send("hello").await {
        Ok(turn) => {
            has_failed(turn.finish().await);
            Some(())
        }
        Err(TurnError::Overloaded { .. }) => None,
        Err(error) => panic!("{error}"),
    })
    .await;
    let sessions = || bench.pilot.sessions();
    eventually("alice has left", || !sessions().iter().any(|(key, _)| key.user().as_bytes() == b"alice"))
        .await;
    bench.end().await;
}

/// A session that is about to be used makes way for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn session_limit_lets_in_as_many_as_make_way() {
    let bench = Bench::with(|config| config.limits.max_sessions = 3).await;
    let [one, two, three] = ["one", "two", "three"].map(|name| bench.pilot.session(name));
    for session in [&one, &two, &three] {
        say(session, "hello").await;
    }
    three.evict().await.unwrap();
    let newcomers: JoinSet<_> = (0..6)
        .map(|number| {
            let session = bench.pilot.session(format!("new {number}"));
            async move {
                match session.send("hello").await {
                    Ok(turn) => turn.finish().await.is_ok(),
                    Err(error) => {
                        assert!(matches!(error, TurnError::Overloaded { .. }), "{error}");
                        false
                    }
                }
            }
        })
        .collect();
    let served = newcomers.join_all().await.into_iter().filter(|is_served| *is_served).count();
    assert_eq!(served, 1);
    bench.end().await;
}

/// As many make way as come at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn session_limit_unloads_one_for_each_newcomer() {
    const MOST: usize = 4;
    let bench = Bench::with(|config| config.limits.max_sessions = MOST).await;
    for number in 0..MOST {
        let session = bench.pilot.session(format!("old {number}"));
        say(&session, "hello").await;
        session.evict().await.unwrap();
    }
    let newcomers: JoinSet<_> = (0..MOST)
        .map(|number| {
            let session = bench.pilot.session(format!("new {number}"));
            async move { ask(&session, "hello").await }
        })
        .collect();
    for outcome in newcomers.join_all().await {
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    eventually("the others have left", || bench.pilot.sessions().len() == MOST).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_newcomer_passes_a_user_with_many_sessions() {
    let bench = Bench::with(|config| {
        config.limits.max_children = 4;
        config.limits.starts_in_flight = 1;
        config.limits.queue_deadline = Duration::from_secs(6);
    })
    .await;
    let flood: Vec<_> = (0..40)
        .map(|number| {
            let session = bench.pilot.conversation("alice", &format!("c{number}"));
            tokio::spawn(async move { ask(&session, "hello").await })
        })
        .collect();
    let alices = || bench.pilot.sessions().iter().filter(|(_, status)| status.pid.is_some()).count();
    eventually("alice has all children", || alices() == 4).await;
    for name in ["bob", "carol"] {
        say(&bench.pilot.session(name), "hello").await;
    }
    for turn in flood {
        drop(turn.await.unwrap());
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_sessions_of_a_user_are_counted_at_once() {
    let bench = Bench::with(|config| config.limits.sessions_per_user = 3).await;
    let turns: Vec<_> = (0..10)
        .map(|number| {
            let session = bench.pilot.conversation("alice", &format!("c{number}"));
            tokio::spawn(async move {
                match session.send("hello").await {
                    Ok(turn) => turn.finish().await.is_ok(),
                    Err(error) => {
                        assert!(matches!(error, TurnError::TooManySessions { limit: 3 }), "{error}");
                        false
                    }
                }
            })
        })
        .collect();
    let mut served = 0;
    for turn in turns {
        served += usize::from(turn.await.unwrap());
    }
    assert_eq!(served, 3);
    say(&bench.pilot.session("alice"), "the default one is always there").await;
    say(&bench.pilot.conversation("bob", "c9"), "hello").await;
    bench.end().await;
}

/// Which servers a session has, a caller may choose: that they do not connect is no reason for others to wait.
#[tokio::test(flavor = "multi_thread")]
async fn limits_connecting_servers_hold_no_start_permit() {
    let bench = Bench::with(|config| {
        config.limits.starts_in_flight = 1;
        config.limits.queue_deadline = Duration::from_secs(5);
        config.cli.env.insert("PILOTLIGHT_SIM_FAULT".into(), "silent-servers".into());
        let mut server = McpServerConfig::default();
        server.command = Some("true".into());
        config.mcp.servers.insert("slow".into(), server);
    })
    .await;
    let alice = bench.pilot.session("alice");
    let options = TurnOptions::default().mcp_servers(McpServers::configured(["slow"]));
    let waiting = alice.send_with("hello", options).await.unwrap();
    eventually("alice's child is there", || alice.status().is_some_and(|it| it.pid.is_some())).await;
    say(&bench.pilot.session("bob"), "hello").await;
    assert_eq!(state(&alice), SessionState::Starting);
    drop(waiting);
    bench.end().await;
}
