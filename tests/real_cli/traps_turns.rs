//! Many messages, repeated messages, messages of any content: each has its own answer, in order.

use pilotlight::config::SlashCommands;
use pilotlight::{Config, TurnOptions};

use super::bench::Bench;
use super::embedded::{ask, child, failure, finish, read, say, send, until_turns};

/// Messages of one user at once are answered in order by one call each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_02_concurrent_messages_take_one_call_each() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let mut turns = vec![send(&alice, "[[hold:first]][[say:answer 0]]").await];
    bench.api.entered("first", 1).await;
    // Accepted one after the other while the first is being worked on.
    for number in 1..=6 {
        turns.push(send(&alice, &format!("message {number} [[say:answer {number}]]")).await);
    }
    bench.api.release("first");
    for (number, turn) in turns.into_iter().enumerate() {
        assert_eq!(finish(turn).await.text, format!("answer {number}"));
    }
    let asked: Vec<_> = bench.api.requests().iter().map(|request| request.last().to_owned()).collect();
    let expected = (1..=6).map(|number| format!("message {number} [[say:answer {number}]]"));
    assert_eq!(asked.get(1..).expect("requests"), expected.collect::<Vec<_>>());
    until_turns(&alice, 7).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_04_a_repeated_message_is_answered_each_time() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    for _ in 0..3 {
        assert_eq!(say(&alice, "again [[say:yes]]").await, "yes");
    }
    // The CLI's memory of messages outlives it.
    alice.evict().await.expect("it is stopped");
    assert_eq!(say(&alice, "again [[say:yes]]").await, "yes");
    assert_eq!(bench.api.count("again"), 4);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_05_readiness_is_known_without_a_message() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    alice.warm().await.expect("it is ready");
    let cli = child(&alice);
    assert!(bench.api.requests().is_empty(), "it costs nothing: {:#?}", bench.api.requests());
    for _ in 0..2 {
        let (events, outcome) = read(send(&alice, "hello").await).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(events.iter().filter(|event| event["subtype"] == "init").count(), 1, "one in each turn");
    }
    assert_eq!(child(&alice), cli);
    system.end().await;
}

/// A conversation that was cleared is the one that is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_06_cleared_conversation_is_resumed() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|config| config.cli.slash_commands = SlashCommands::Pass).await;
    let alice = system.alice();
    let before = ask(&alice, "the word is heliotrope").await;
    let cli = child(&alice);
    let cleared = ask(&alice, "/clear").await;
    assert!(cleared.is_ok(), "{cleared:?}");
    assert_ne!(cleared.cli_session_id, before.cli_session_id, "the trap is not there");
    let recalled = say(&alice, "the herb is marjoram [[recall]]").await;
    assert!(!recalled.contains("heliotrope"), "{recalled}");
    // 2.1.332 gives the model what it does not know.
    let unknown = if super::is_since_332() { "plain answer" } else { "Unknown command" };
    for (command, answer) in
        [("/nonsense", unknown), ("/help", "isn't available"), ("/exit", "isn't available")]
    {
        let text = say(&alice, command).await;
        assert!(text.contains(answer), "{command}: {text}");
    }
    let (local, compacted) = (ask(&alice, "/context").await, ask(&alice, "/compact").await);
    assert!(local.is_ok() && compacted.is_ok(), "{local:?} {compacted:?}");
    assert_eq!(compacted.cli_session_id, cleared.cli_session_id);
    assert_eq!(say(&alice, "[[say:at the end]]").await, "at the end");
    assert_eq!(child(&alice), cli);
    alice.evict().await.expect("it is stopped");
    let resumed = ask(&alice, "[[say:resumed]]").await;
    assert!(resumed.is_ok() && !resumed.context_lost, "{resumed:?}");
    assert_eq!(resumed.cli_session_id, cleared.cli_session_id);
    system.end().await;
}

/// Text that looks like a command reaches the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_06_command_like_text_reaches_model() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    client.turn("alice", "the word is heliotrope").await.text();
    for text in ["/clear", "/compact", "/exit", "/nonsense [[say:heard]]", "!ls", "# note", "@/etc/passwd"] {
        let turn = client.turn("alice", text).await;
        assert!(["plain answer", "heard"].contains(&turn.text()), "{text}: {}", turn.text());
        assert_eq!(bench.api.count(text), 1, "{text}");
    }
    let recalled = client.turn("alice", "[[recall]]").await;
    assert!(recalled.text().starts_with("the word is heliotrope | /clear | "), "{}", recalled.text());
}

/// Costs are those of each turn across restarts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_14_costs_are_per_turn_across_restarts() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let mut costs = Vec::new();
    for round in 0..3 {
        for _ in 0..2 {
            costs.push(ask(&alice, "hello").await.cost_usd);
        }
        match round {
            0 => {
                bench.on_disk(2).await;
                child(&alice).kill();
            }
            _ => alice.evict().await.expect("it is stopped"),
        }
    }
    // The API counts the same tokens for each.
    let first = *costs.first().expect("a cost");
    assert!(first > 0.0 && costs.iter().all(|cost| (cost - first).abs() < 1e-9), "{costs:?}");
    let total = alice.status().expect("in memory").total_cost_usd;
    assert!((total - costs.iter().sum::<f64>()).abs() < 1e-9, "{total} of {costs:?}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_14_costs_add_up_in_the_metric() {
    let Some(bench) = Bench::new().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    let mut first = 0.0;
    for number in 1..=6_u8 {
        assert_eq!(client.turn("alice", "[[say:yes]]").await.text(), "yes");
        let spent = client.metrics().await.sum("pilotlight_cost_micro_usd_total", &[]);
        if number == 1 {
            first = spent;
        }
        assert!(
            spent > 0.0 && (spent - f64::from(number) * first).abs() < 0.5,
            "{spent} after {number} turns"
        );
        match number {
            2 => {
                bench.on_disk(2).await;
                bench.only_cli().kill();
            }
            4 => {
                let stopped = reqwest::Client::new()
                    .delete(format!("{}/v1/sessions/default", client.http()))
                    .header("x-pilotlight-user", "alice");
                assert!(stopped.send().await.expect("an answer").status().is_success());
            }
            _ => {}
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_22_a_budget_that_is_used_up_does_not_stick() {
    let Some(bench) = Bench::new().await else { return };
    let budget = |config: &mut Config| config.cli.args = ["--max-budget-usd", "0.001"].map(Into::into).into();
    let system = bench.embed(budget).await;
    let alice = system.alice();
    // The first turn uses up most of it, the second the rest; then the process refuses everything.
    assert_eq!(say(&alice, "the word is heliotrope [[say:one]]").await, "one");
    let cli = child(&alice);
    let outcome = ask(&alice, "[[say:two]]").await;
    assert_eq!(failure(&outcome).kind, "max_budget_usd", "{outcome:?}");
    assert!(say(&alice, "[[recall]]").await.starts_with("the word is heliotrope"));
    assert_ne!(child(&alice), cli, "a new process has a new budget");
    assert_eq!(alice.status().expect("in memory").restarts, 0, "it is no crash");
    system.end().await;
}

/// A turn that took too many steps is an error and the next is fine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_over_step_limit_fails_next_works() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|config| config.cli.args = ["--max-turns", "1"].map(Into::into).into()).await;
    let alice = system.alice();
    let outcome = ask(&alice, r#"[[tool:Bash {"command":"echo x"}]]"#).await;
    let failure = failure(&outcome);
    assert_eq!(
        (failure.kind.as_str(), failure.message.as_str()),
        ("max_turns", "Reached maximum number of turns (1)")
    );
    let cli = child(&alice);
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    system.end().await;
}

/// A model that does not exist fails its turns alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_23_unknown_model_fails_its_turns_only() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    let with = |model: &str| TurnOptions::default().model(model);
    let turn = alice.send_with("[[error:404]]", with("no-such-model")).await.expect("accepted");
    assert_eq!(failure(&finish(turn).await).kind, "model_not_found");
    let turn = alice.send_with("[[say:fine]]", with("claude-haiku-4-5")).await.expect("accepted");
    assert_eq!(finish(turn).await.text, "fine");
    let model = bench.api.requests().last().map(|request| request.model.clone());
    assert_eq!(model.as_deref(), Some("claude-haiku-4-5"));
    assert_eq!(alice.status().expect("in memory").restarts, 0, "another model is no crash");
    // The CLI would take it for a model, and at the next start for a flag.
    let refused = alice.send_with("[[say:fine]]", with("--help")).await.expect_err("it is none");
    assert_eq!(refused.code(), "invalid_model");
    alice.evict().await.expect("it is stopped");
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    system.end().await;
}
