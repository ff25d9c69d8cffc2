//! Turns that take long without being at work: retries, an API that says nothing. They are shown, bounded and ended,
//! and none of it costs the process.

use std::time::Duration;

use pilotlight::{Config, Session, TurnError};

use super::bench::Bench;
use super::embedded::{aborted, ask, child, failure, finish, say, send, until};

/// Retries are shown and end with an interrupt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_11_retries_are_shown_interrupt_ends_them() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|config| config.cli.api_retries = 10).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    let cli = child(&alice);
    // Left alone, this takes three minutes.
    let mut turn = send(&alice, "[[error:401]]").await;
    let retry = until(&mut turn, "a retry", |event| event["subtype"] == "api_retry").await;
    assert_eq!((&retry["error_status"], &retry["attempt"]), (&401.into(), &1.into()), "{retry}");
    let retry = until(&mut turn, "another retry", |event| event["subtype"] == "api_retry").await;
    assert_eq!(retry["attempt"], 2, "{retry}");
    assert!(alice.interrupt().await.expect("it can be reached"), "the turn runs");
    let outcome = finish(turn).await;
    assert!(failure(&outcome).interrupted, "{outcome:?}");
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    system.end().await;
}

/// Asks until there is an answer: on a busy machine a plain turn may take longer than the limit, too, once in a while.
async fn answered(session: &Session, limit: Duration, when: &str, excused: &mut usize) {
    for number in 0..=*excused {
        // A text of its own: the answer to an earlier turn is none to this one.
        let outcome = ask(session, &format!("[[say:fine {number}]]")).await;
        if outcome.is_ok() {
            assert_eq!(outcome.text, format!("fine {number}"), "{when}");
            return;
        }
        assert_eq!(*aborted(&outcome), TurnError::TimedOut { limit }, "{when}: {outcome:?}");
        *excused = excused.saturating_sub(1);
    }
    panic!("no answer {when}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_11_a_turn_is_bounded_whatever_the_api_does() {
    let Some(bench) = Bench::new().await else { return };
    let limit = Duration::from_secs(2);
    let patient = |config: &mut Config| {
        config.session.turn_timeout = limit;
        config.cli.api_retries = 10;
    };
    let system = bench.embed(patient).await;
    let alice = system.alice();
    // One for all of them: a turn that spoils the next each time is noticed.
    let mut excused = 1;
    answered(&alice, limit, "at first", &mut excused).await;
    let cli = child(&alice);
    for message in ["[[error:401]]", "[[hang]][[error:500]]", "[[hang]]", "[[break:stall]]"] {
        let outcome = ask(&alice, message).await;
        assert_eq!(*aborted(&outcome), TurnError::TimedOut { limit }, "{message}: {outcome:?}");
        answered(&alice, limit, &format!("after {message}"), &mut excused).await;
        assert_eq!(child(&alice), cli, "after {message}");
    }
    system.end().await;
}

/// An API that says nothing at all is an error of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_api_is_server_error() {
    let Some(bench) = Bench::new().await else { return };
    let impatient = |config: &mut Config| {
        config.cli.env.insert("API_TIMEOUT_MS".into(), "1000".into());
        config.cli.env.insert("CLAUDE_CODE_MAX_RETRIES".into(), "1".into());
    };
    let system = bench.embed(impatient).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    let cli = child(&alice);
    // Silence before the answer's headers; once they are there the CLI itself waits for five minutes.
    let outcome = ask(&alice, "[[hang]][[error:500]]").await;
    let failure = failure(&outcome);
    assert_eq!(failure.kind, "server_error", "{failure:?}");
    assert!(failure.message.starts_with("Request timed out"), "{failure:?}");
    assert_eq!(bench.api.count("[[hang]]"), 2);
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    system.end().await;
}
