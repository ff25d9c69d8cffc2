//! What pilotlight relies on in the CLI itself, without pilotlight: if a new version breaks one of these, the tests
//! here say which. They also show that the other tests can fail.

use rustix::process::Signal;
use serde_json::json;

use super::bare::{Bare, final_text, is_result, kind};
use super::bench::{Bench, transcripts};
use crate::common::{SOON, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_stand_around_every_turn() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    for text in ["[[think:hm]][[say:one]]", "[[say:two]]"] {
        cli.say(text).await;
        let kinds: Vec<_> = cli.until(|line| line["state"] == "idle").await.iter().map(kind).collect();
        assert_eq!(kinds.iter().take(2).collect::<Vec<_>>(), ["running", "init"]);
        assert_eq!(kinds.iter().rev().take(2).collect::<Vec<_>>(), ["idle", "success"]);
        assert_eq!(kinds.iter().filter(|kind| *kind == "success").count(), 1);
    }
    assert_eq!(cli.process(), bench.only_cli());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_an_orderly_end_keeps_the_last_turn() {
    let Some(bench) = Bench::of_newest().await else { return };
    for (word, code) in [("amaranth", 143), ("bergamot", 0)] {
        let mut cli = Bare::start(&bench).await;
        let lines = cli.turn(&format!("the word is {word} [[say:noted]]")).await;
        match word {
            "amaranth" => cli.process().signal(Signal::TERM),
            _ => drop(cli.input.take()),
        }
        assert_eq!(cli.exit_code().await, Some(code));
        let answer = lines.iter().rfind(|line| line["type"] == "assistant").expect("an answer");
        let uuid = answer["uuid"].as_str().expect("uuid");
        let kept = transcripts(bench.place.path());
        assert!(kept.contains(&format!(r#""uuid":"{uuid}""#)), "the answer's line is in the transcript");
        assert!(kept.contains(word));
    }
}

/// The last line of a turn is found again in the transcript.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_line_of_turn_is_in_transcript() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    for text in
        ["[[think:hm]][[say:one]]", r#"[[tool:Bash {"command":"echo x"}]]"#, "[[error:400]]", "[[say:two]]"]
    {
        let lines = cli.turn(text).await;
        let last = lines.iter().rfind(|line| line["type"] == "assistant" || line["type"] == "user");
        let uuid = last.and_then(|line| line["uuid"].as_str()).expect("uuid");
        let entry = format!(r#""uuid":"{uuid}""#);
        eventually(&format!("the last line of {text} on disk"), SOON, || {
            transcripts(bench.place.path()).contains(&entry)
        })
        .await;
    }
}

/// An interrupt ends the turn and the request and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupt_ends_turn_and_request_only() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say("[[say:beginning]][[hold:never]]").await;
    bench.api.entered("never", 1).await;
    cli.send(json!({"type": "control_request", "request_id": "stop", "request": {"subtype": "interrupt"}}))
        .await;
    let lines = cli.until(is_result).await;
    assert_eq!(lines.last().map(kind).as_deref(), Some("error_during_execution"));
    bench.api.aborted("[[hold:never]]").await;
    let recalled = cli.turn("[[recall]]").await;
    assert!(final_text(&recalled).contains("beginning"), "the interrupted prompt stays in the context");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_asks_before_it_runs() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say(r#"[[tool:Bash {"command":"touch made-by-a-tool"}]]"#).await;
    cli.allow_tool().await;
    let lines = cli.until(is_result).await;
    assert_eq!(final_text(&lines), "TOOLS:ok");
    assert!(bench.place.path().join("work/made-by-a-tool").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_19_files_of_the_workspace_are_not_obeyed() {
    let Some(bench) = Bench::of_newest().await else { return };
    let root = bench.place.path();
    let mark = root.join("obeyed");
    let command = format!("touch {}", mark.display());
    let hook = json!([{"hooks": [{"type": "command", "command": command}]}]);
    let settings =
        json!({"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}, "hooks": {"SessionStart": hook}});
    let servers = json!({"mcpServers": {"x": {"command": "touch", "args": [mark]}}});
    std::fs::create_dir_all(root.join("work/.claude")).expect("a directory");
    std::fs::write(root.join("work/.claude/settings.json"), settings.to_string()).expect("written");
    std::fs::write(root.join("work/.mcp.json"), servers.to_string()).expect("written");
    let mut cli = Bare::start(&bench).await;
    assert_eq!(final_text(&cli.turn("[[say:from the real address]]").await), "from the real address");
    assert!(!mark.exists(), "a program of the workspace was started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_09_killed_it_leaves_its_tools_running() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say(r#"[[tool:Bash {"command":"touch begun; sleep 86400"}]]"#).await;
    cli.allow_tool().await;
    let tool = bench.tool(&["sleep", "86400"]).await;
    cli.process().kill();
    assert_eq!(cli.exit_code().await, None);
    assert!(tool.is_alive(), "if it ended by itself, much of the shim would not be needed");
    assert!(!bench.place.leftovers().is_empty(), "and the tests see it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_02_messages_sent_while_it_is_busy_are_merged() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.say("[[hold:gate]][[say:one]]").await;
    bench.api.entered("gate", 1).await;
    cli.say("two").await;
    cli.say("three").await;
    // Read before the gate opens: it answers while it is busy.
    cli.send(json!({"type": "control_request", "request_id": "read?", "request": {"subtype": "mcp_status"}}))
        .await;
    cli.until(|line| line["type"] == "control_response").await;
    bench.api.release("gate");
    assert_eq!(final_text(&cli.until(is_result).await), "one");
    cli.until(is_result).await;
    cli.until(|line| line["state"] == "idle").await;
    assert_eq!(bench.api.requests().len(), 2, "three messages, two calls, two results");
}

/// A message with a known UUID is never answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_04_message_with_known_uuid_is_unanswered() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    let message = json!({"role": "user", "content": "[[say:once]]"});
    let line = json!({"type": "user", "uuid": "2b4f0f0e-7a3c-4a51-9f0a-0d3d2f3c1e55", "message": message});
    cli.send(line.clone()).await;
    assert_eq!(final_text(&cli.until(is_result).await), "once");
    cli.send(line).await;
    assert_eq!(
        final_text(&cli.turn("[[say:another]]").await),
        "another",
        "the next result is of the next one"
    );
    assert_eq!(bench.api.count("[[say:once]]"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_16_a_request_that_is_refused_hangs_nothing() {
    let Some(bench) = Bench::of_newest().await else { return };
    // It asks its host for the tools of a server that is said to be there.
    let mut cli = Bare::begin(&bench).await;
    let initialize = json!({"subtype": "initialize", "sdkMcpServers": ["x"]});
    cli.send(json!({"type": "control_request", "request_id": "ready?", "request": initialize})).await;
    cli.say("[[say:without it]]").await;
    let mut asked = 0;
    loop {
        let lines = cli.until(|line| is_result(line) || line["type"] == "control_request").await;
        let last = lines.last().expect("a line");
        if is_result(last) {
            assert_eq!(final_text(&lines), "without it");
            break;
        }
        asked += 1;
        let id = last["request_id"].as_str().expect("an id");
        let refusal = json!({"subtype": "error", "request_id": id, "error": "not supported"});
        cli.send(json!({"type": "control_response", "response": refusal})).await;
    }
    assert!(asked > 0, "it asked for nothing");
}

/// A closed output does not end it and a closed input does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_17_closed_input_ends_cli_output_does_not() {
    let Some(bench) = Bench::of_newest().await else { return };
    let mut cli = Bare::start(&bench).await;
    cli.close_output();
    cli.say("is anybody listening?").await;
    bench.api.until("it goes on", |entries| !entries.requests.is_empty()).await;
    assert!(cli.process().is_alive());
    drop(cli.input.take());
    assert!(cli.exit_code().await.is_some());
}
