//! The model is bound when a process starts: the API gets what `claude --model` sends for the same text, and nothing
//! beyond, also when the model changes and when the conversation is resumed.

use std::process::Stdio;

use pilotlight::{Session, TurnOptions};
use serde_json::Value;

use super::bench::Bench;
use super::embedded::{child, finish, say};
use crate::common::place::MARK;
use crate::common::request::Request;

/// An alias and a full id, of two models.
const NAMES: [&str; 3] = ["sonnet", "claude-haiku-4-5", "opus"];

/// The request for a message that the CLI gets on its command line.
async fn printed(bench: &Bench, model: Option<&str>, text: &str) -> Request {
    let directory = bench.place.path().join("printed");
    std::fs::create_dir_all(&directory).expect("a directory");
    let before = bench.api.requests().len();
    let status = tokio::process::Command::new(&bench.cli)
        // In the form of its answers it is like ours: 2.1.332 asks the API for thinking as it shows it.
        .args(["--print", "--verbose", "--output-format", "stream-json", "--include-partial-messages"])
        .args(["--setting-sources", "", "--strict-mcp-config"])
        .args(model.iter().flat_map(|model| ["--model", model]))
        .arg(text)
        .current_dir(&directory)
        .env_clear()
        .envs(bench.environment())
        .env("PATH", std::env::var_os("PATH").expect("PATH"))
        .env("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1")
        .env("CLAUDE_CODE_DISABLE_ATTACHMENTS", "1")
        .env("ENABLE_TOOL_SEARCH", "false")
        .env("CLAUDE_CODE_TMPDIR", bench.place.path())
        .env("HOME", directory.join("home"))
        .env(MARK, bench.place.id())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status();
    assert!(status.await.expect("the CLI runs").success());
    last_since(bench, before)
}

fn last_since(bench: &Bench, before: usize) -> Request {
    let requests = bench.api.requests();
    assert_eq!(requests.len(), before + 1, "one message, one request");
    requests.last().expect("a request").clone()
}

/// The request for a turn.
async fn asked(bench: &Bench, session: &Session, model: Option<&str>, text: &str) -> Request {
    let before = bench.api.requests().len();
    let options = model.map_or_else(TurnOptions::default, |model| TurnOptions::default().model(model));
    let outcome = finish(session.send_with(text, options).await.expect("it is accepted")).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    last_since(bench, before)
}

/// What of a request the model decides.
fn settings(request: &Request) -> Vec<(&'static str, Value)> {
    let body = |name| (name, request.body[name].clone());
    let mut settings: Vec<_> =
        ["model", "max_tokens", "thinking", "output_config", "context_management", "temperature"]
            .map(body)
            .to_vec();
    settings.push(("anthropic-beta", request.beta.clone().into()));
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_is_bound_at_the_start_and_adds_no_text() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    for (number, model) in NAMES.into_iter().enumerate() {
        let user = system.pilot.session(format!("user {number}"));
        let expected = printed(&bench, Some(model), "the first message").await;
        let first = asked(&bench, &user, Some(model), "the first message").await;
        assert_eq!(first.user_texts, ["the first message"]);
        assert_eq!(first.user_texts, expected.user_texts);
        assert_eq!(settings(&first), settings(&expected), "{model}");
        let cli = child(&user);
        let later = asked(&bench, &user, Some(model), "a later message").await;
        assert_eq!(later.user_texts, ["the first message", "a later message"]);
        assert_eq!(settings(&later), settings(&expected), "{model}");
        assert_eq!(child(&user), cli, "the same model is no reason for another process");
        // Without one it is as before.
        let third = asked(&bench, &user, None, "a third message").await;
        assert_eq!(settings(&third), settings(&expected), "{model}");
        assert_eq!(child(&user), cli);
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_change_restarts_with_the_context_alone() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let mut said = Vec::new();
    let mut processes = Vec::new();
    for (number, model) in NAMES.into_iter().enumerate() {
        let text = format!("message {number}");
        let expected = printed(&bench, Some(model), &text).await;
        let request = asked(&bench, &alice, Some(model), &text).await;
        said.push(text);
        assert_eq!(request.user_texts, said, "{model}");
        assert_eq!(settings(&request), settings(&expected), "{model}");
        processes.push(child(&alice).pid);
    }
    processes.dedup();
    assert_eq!(processes.len(), NAMES.len(), "one process for each model");
    assert_eq!(
        bench.conversations().len(),
        1 + NAMES.len(),
        "one conversation, besides those on a command line"
    );
    // Turns that wait keep to their own models.
    let options = |model: &str| TurnOptions::default().model(model);
    let turns = [
        alice.send_with("[[delay:200]] one", options("sonnet")).await.expect("accepted"),
        alice.send_with("two", options("claude-haiku-4-5")).await.expect("accepted"),
        alice.send("three").await.expect("accepted"),
    ];
    for turn in turns {
        assert!(finish(turn).await.is_ok());
    }
    let models: Vec<_> =
        bench.api.requests().iter().rev().take(3).map(|request| request.model.clone()).collect();
    assert!(
        models[2].contains("sonnet") && models[1].contains("haiku") && models[0].contains("haiku"),
        "{models:?}"
    );
    assert_eq!(alice.status().expect("in memory").model.as_deref(), Some("claude-haiku-4-5"));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_window_and_prompt_outlive_a_resume() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let first = asked(&bench, &alice, None, "the word is heliotrope").await;
    for end in ["evicted", "killed"] {
        bench.on_disk_of("the word is heliotrope").await;
        match end {
            "evicted" => alice.evict().await.expect("it is stopped"),
            _ => child(&alice).kill(),
        }
        let resumed = asked(&bench, &alice, None, "[[recall]]").await;
        assert_eq!(settings(&resumed), settings(&first), "{end}");
        assert_eq!(resumed.system, first.system, "{end}");
    }
    system.end().await;
    // The next server has it from the disk.
    let system = bench.embed(|_| {}).await;
    let resumed = asked(&bench, &system.alice(), None, "[[recall]]").await;
    assert_eq!(settings(&resumed), settings(&first));
    say(&system.alice(), "[[say:fine]]").await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_prompt_counts_when_it_changes_and_goes() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let own = asked(&bench, &system.pilot.session("bob"), None, "hello").await.system;
    for prompt in ["be brief", "be verbose", "", "be brief"] {
        let options = TurnOptions::default().system_prompt(prompt);
        for text in ["first", "second"] {
            let before = bench.api.requests().len();
            let outcome = finish(alice.send_with(text, options.clone()).await.expect("accepted")).await;
            assert!(outcome.is_ok() && !outcome.context_lost, "{outcome:?}");
            let sent = last_since(&bench, before).system;
            for other in ["be brief", "be verbose"] {
                assert_eq!(sent.contains(other), other == prompt, "{prompt:?}: {sent}");
            }
            assert_eq!(sent.len() > own.len() / 2, prompt.is_empty(), "the CLI's own: {sent}");
        }
        // Resumed it still counts, without being said again.
        alice.evict().await.expect("it is stopped");
        let resumed = asked(&bench, &alice, None, "resumed").await.system;
        for other in ["be brief", "be verbose"] {
            assert_eq!(resumed.contains(other), other == prompt, "{prompt:?}: {resumed:.300}");
        }
    }
    system.end().await;
}
