//! What the end of a turn means, and whom it answers.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn trap_01_success_with_is_error_is_a_failure() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    let old = pid(&alice);
    for (status, kind) in [
        (400, "invalid_request"),
        (401, "authentication_failed"),
        (403, "authentication_failed"),
        (404, "model_not_found"),
        (413, "request_too_large"),
        (429, "rate_limit"),
        (500, "server_error"),
    ] {
        let mut turn = alice.send(format!("[[api_error:{status}]]")).await.unwrap();
        let mut last = String::new();
        while let Some(event) = turn.next().await {
            last = event.unwrap().to_text().into_owned();
        }
        assert!(last.contains("\"subtype\":\"success\"") && last.contains("\"is_error\":true"), "{last}");
        let outcome = turn.outcome().unwrap();
        assert_eq!(failure(outcome).api_status, Some(status));
        assert_eq!(failure(outcome).kind, kind, "{status}");
        assert!(!outcome.is_ok());
    }
    let refused = ask(&alice, "[[refusal]]").await;
    assert_eq!(failure(&refused).kind, "refusal");
    say(&alice, "fine").await;
    assert_eq!(pid(&alice), old, "none of it is the child's fault");
    bench.end().await;
}

/// Messages sent at once are answered one by one in their order.
#[tokio::test(flavor = "multi_thread")]
async fn trap_02_concurrent_messages_answer_in_order() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let mut turns = Vec::new();
    for number in 1..=8 {
        turns.push(alice.send(format!("[[sleep:30]]message {number}")).await.unwrap());
    }
    for (number, turn) in (1..=8).zip(turns) {
        let mut turn = turn;
        let mut results = 0;
        while let Some(event) = turn.next().await {
            results += u32::from(event.unwrap().is_terminal());
        }
        assert_eq!(results, 1, "one result for each message");
        // The CLI counts its turns: merged messages would count once.
        assert_eq!(turn.outcome().unwrap().text, format!("echo {number}: message {number}"));
    }
    bench.end().await;
}

/// A turn that nobody asked for answers nobody.
#[tokio::test(flavor = "multi_thread")]
async fn trap_03_unsolicited_turn_answers_no_request() {
    let slow = |config: &mut Config| {
        config.cli.background_tasks = true;
        // Long enough for messages to come while the unsolicited turn runs.
        config.cli.args = vec!["--latency".into(), "150".into()];
    };
    let bench = Bench::with(slow).await;
    let alice = bench.pilot.session("alice");
    let mut sent = 0;
    for background in ["0.05", "0.1", "0.2", "0.3"] {
        let started = ask(&alice, &format!("[[background:{background}]]")).await;
        sent += 1;
        assert_eq!(started.text, "TOOLS:ok");
        for _ in 0..4 {
            sent += 1;
            let mut turn = alice.send(format!("message {sent}")).await.unwrap();
            while let Some(event) = turn.next().await {
                let line = event.unwrap().to_text().into_owned();
                assert!(!(line.contains("\"origin\"") && line.contains("\"result\"")), "not ours: {line}");
            }
            let outcome = turn.outcome().unwrap();
            assert!(outcome.text.ends_with(&format!("message {sent}")), "{outcome:?}");
        }
    }
    let notified = async || transcript(&alice).await.matches("noticed: sleep").count() >= 4;
    crate::common::eventually_some("four turns of its own", crate::common::SOON, async || {
        notified().await.then_some(())
    })
    .await;
    eventually("none of them is counted", || alice.status().unwrap().turns == sent).await;
    assert_eq!(alice.status().unwrap().generation, 1);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_03_an_own_turn_that_is_due_is_in_no_answer() {
    let bench = Bench::with(|config| config.cli.background_tasks = true).await;
    let alice = bench.pilot.session("alice");
    for round in 0..3 {
        assert_eq!(ask(&alice, "[[background:0.1]]").await.text, "TOOLS:ok");
        // The task ends meanwhile, and the next message is there before the CLI comes to it.
        let mut busy = alice.send("[[sleep:500]]busy").await.unwrap();
        let mut ended = false;
        while let Some(event) = busy.next().await {
            ended |= event.unwrap().to_text().contains("task_updated");
        }
        assert!(ended, "the task ends during the turn");
        let mut turn = alice.send(format!("next {round}")).await.unwrap();
        let (mut lines, mut results) = (String::new(), 0);
        while let Some(event) = turn.next().await {
            let event = event.unwrap();
            results += u32::from(event.is_terminal());
            lines.push_str(&event.to_text());
        }
        let outcome = turn.outcome().unwrap();
        assert!(outcome.text.ends_with(&format!("next {round}")), "{outcome:?}");
        assert!(
            results == 1 && !lines.contains("noticed") && !lines.contains("task_notification"),
            "{lines}"
        );
    }
    let own = async || transcript(&alice).await.matches("noticed: sleep").count() >= 3;
    crate::common::eventually_some("its own turns", crate::common::SOON, async || own().await.then_some(()))
        .await;
    bench.end().await;
}

/// A turn that waits for an unsolicited turn of the child outlives the child.
#[tokio::test(flavor = "multi_thread")]
async fn trap_03_turn_behind_unsolicited_survives_child() {
    let slow = |config: &mut Config| {
        config.cli.background_tasks = true;
        config.cli.args = vec!["--latency".into(), "3000".into()];
    };
    let bench = Bench::with(slow).await;
    let alice = bench.pilot.session("alice");
    assert_eq!(ask(&alice, "[[background:0.2]]").await.text, "TOOLS:ok");
    // Its own turn runs from the end of the task on for three seconds. Met outside of it, the kill is an ordinary one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let turn = alice.send("hello").await.unwrap();
    signal(pid(&alice), Signal::KILL);
    let outcome = turn.finish().await;
    assert!(outcome.is_ok() && outcome.text.ends_with("hello"), "{outcome:?}");
    bench.end().await;
}

/// An overload has no status and is one all the same.
#[tokio::test(flavor = "multi_thread")]
async fn trap_12_overload_without_status_is_overload() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let outcome = ask(&alice, "[[api_error:529]]").await;
    let failure = failure(&outcome);
    // Its text shows it.
    assert_eq!((failure.kind.as_str(), failure.api_status), ("server_error", Some(529)));
    say(&alice, "fine").await;
    bench.end().await;
}

/// Deltas that stop half way are replaced by the whole answer.
#[tokio::test(flavor = "multi_thread")]
async fn trap_13_partial_deltas_yield_whole_answer() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let whole = "a long answer of which only the beginning comes in pieces";
    let mut turn = alice.send(format!("[[fallback]][[deltas:20]][[say:{whole}]]")).await.unwrap();
    let mut pieces = String::new();
    while let Some(event) = turn.next().await {
        pieces.push_str(&event.unwrap().text_delta().unwrap_or_default());
    }
    assert!(whole.starts_with(&pieces) && pieces.len() < whole.len(), "no trap: {pieces:?}");
    let outcome = turn.outcome().unwrap();
    assert!(outcome.is_ok());
    assert_eq!(outcome.text, whole);
    bench.end().await;
}

/// Costs are those of the turn and add up over restarts.
#[tokio::test(flavor = "multi_thread")]
async fn trap_14_costs_per_turn_add_up_over_restarts() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let cost = async |tokens: &str| {
        let outcome = ask(&alice, &format!("[[usage:{tokens}]]{tokens}")).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        outcome.cost_usd
    };
    let (small, large) = (cost("1000,10").await, cost("9000,90").await);
    assert!(small > 0.0 && (large / small - 9.0).abs() < 1e-6, "{small} {large}");
    written_down(&alice, "echo 2").await;
    killed_idle(&alice).await;
    let again = cost("1000,10").await;
    assert!((again - small).abs() < 1e-9, "the new process counts from zero: {again}");
    alice.evict().await.unwrap();
    let once_more = cost("1000,10").await;
    assert!((once_more - small).abs() < 1e-9, "{once_more}");
    let total = || alice.status().unwrap().total_cost_usd;
    eventually("the sum", || (total() - (3.0 * small + large)).abs() < 1e-9).await;
    bench.end().await;
}
