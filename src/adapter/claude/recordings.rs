//! Tests of the adapter against streams recorded from the real CLI.

use std::fs;
use std::path::Path;

use crate::adapter::{self, HostRequest, LaunchRefusal, LineKind, Terminal};

/// Recorded output of the CLI, line by line.
fn recorded(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/{name}.out.jsonl"));
    let text = fs::read(path).expect("the recording is part of the repository");
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

fn of_kind(name: &str, kind: LineKind) -> Vec<Vec<u8>> {
    recorded(name).into_iter().filter(|line| adapter::classify(line) == kind).collect()
}

fn terminals(name: &str) -> Vec<Terminal> {
    let lines = of_kind(name, LineKind::Terminal);
    lines.iter().map(|line| adapter::terminal(line).expect("readable")).collect()
}

fn failures(name: &str) -> Vec<Option<String>> {
    terminals(name).into_iter().map(|end| end.failure.map(|failure| failure.kind)).collect()
}

#[test]
fn every_recorded_line_is_known() {
    let mut files = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")).expect("samples") {
        let file = entry.expect("entry").file_name().into_string().expect("a plain name");
        let Some(name) = file.strip_suffix(".out.jsonl") else { continue };
        files += 1;
        for line in recorded(name) {
            let text = String::from_utf8_lossy(&line);
            let kind = adapter::classify(&line);
            let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            let expected = match (value["type"].as_str(), value["subtype"].as_str()) {
                (Some("result"), _) => LineKind::Terminal,
                (Some("control_response"), _) => LineKind::ControlResponse,
                (Some("control_request"), _) => LineKind::HostRequest,
                (Some("control_cancel_request"), _) => LineKind::Cancelled,
                (Some("system"), Some("session_state_changed")) if value["state"] == "idle" => {
                    LineKind::Waiting
                }
                (Some("system"), Some("session_state_changed")) => LineKind::Working,
                (Some("system"), Some("task_started" | "task_updated" | "task_notification")) => {
                    LineKind::Task
                }
                (Some("system"), Some("init")) => LineKind::Announcement,
                (Some("system"), Some("status" | "api_retry")) => {
                    LineKind::Message { substantial: false, checkpoint: false }
                }
                (Some("user"), _) if value["isReplay"] == true => LineKind::Echo,
                (Some("assistant" | "user"), _) => LineKind::Message {
                    substantial: true,
                    checkpoint: value["parent_tool_use_id"].is_null() && value["isSynthetic"] != true,
                },
                _ => LineKind::Message { substantial: true, checkpoint: false },
            };
            assert_eq!(kind, expected, "{name}: {text}");
            // The CLI itself writes no blanks between tokens.
            let compact = serde_json::to_vec(&value).expect("JSON");
            assert_eq!(
                adapter::classify(&compact),
                expected,
                "{name}, fields sorted and without blanks: {text}"
            );
            match kind {
                LineKind::Message { checkpoint, .. } => {
                    assert_eq!(
                        adapter::checkpoint(&line).as_deref(),
                        value["uuid"].as_str().filter(|_| checkpoint)
                    );
                }
                LineKind::ControlResponse => {
                    let answer = adapter::control_response(&line).expect("readable");
                    assert_eq!(Some(answer.request_id.as_str()), value["response"]["request_id"].as_str());
                    assert_eq!(answer.error.as_deref(), value["response"]["error"].as_str());
                }
                LineKind::Terminal => {
                    let end = adapter::terminal(&line).expect("readable");
                    assert_eq!(end.session_id.as_deref(), value["session_id"].as_str());
                    assert_eq!(end.failure.is_some(), value["is_error"] == true, "{name}: {text}");
                }
                _ => {}
            }
        }
    }
    assert!(files > 15, "only {files} recordings found");
}

#[test]
fn a_turn_ends_with_its_text_tokens_and_cost() {
    let ends = terminals("turns-basic");
    let texts: Vec<&str> = ends.iter().map(|end| end.text.as_str()).collect();
    assert_eq!(texts, ["hello there", "second answer"]);
    assert_eq!(ends[0].stop_reason.as_deref(), Some("end_turn"));
    assert!(ends[0].usage.input_tokens > 0 && ends[0].usage.output_tokens > 0);
    assert!(ends[1].cumulative_cost_usd > ends[0].cumulative_cost_usd);
    assert!(ends.iter().all(|end| end.failure.is_none() && !end.unsolicited && !end.process_exhausted));
}

/// Failures that call themselves a success are failures.
#[test]
fn failure_with_subtype_success_is_failure() {
    let kind = |kind: &str| Some(kind.to_owned());
    let expected = [kind("authentication_failed"), kind("server_error"), kind("authentication_failed"), None];
    assert_eq!(failures("api-errors"), expected);
    let first = terminals("api-errors").remove(0).failure.expect("failed");
    assert_eq!(first.api_status, Some(401));
    assert!(first.message.starts_with("Failed to authenticate"));
    assert_eq!(failures("not-logged-in").last(), Some(&kind("authentication_failed")));
    assert_eq!(failures("refusal").first(), Some(&kind("refusal")));
    assert_eq!(failures("max-turns").first(), Some(&kind("max_turns")));
    assert_eq!(failures("api-retry-then-success"), [None, None]);
}

#[test]
fn an_interrupt_is_no_failure_of_the_cli() {
    for name in ["interrupt", "tools-permission-allow-deny-cancel"] {
        let interrupted: Vec<bool> = terminals(name)
            .into_iter()
            .filter_map(|end| end.failure)
            .map(|failure| failure.interrupted && failure.kind == "interrupted")
            .collect();
        assert_eq!(interrupted, [true], "{name}");
    }
}

#[test]
fn a_spent_budget_ends_the_process_s_use() {
    let ends = terminals("max-budget");
    assert!(!ends.is_empty() && ends.iter().all(|end| end.process_exhausted));
    assert_eq!(failures("max-budget")[0].as_deref(), Some("max_budget_usd"));
}

#[test]
fn a_turn_of_the_cli_s_own_answers_nobody() {
    let unsolicited: Vec<bool> =
        terminals("background-task-unsolicited-turn").iter().map(|end| end.unsolicited).collect();
    assert_eq!(unsolicited, [false, true]);
}

/// Only the terminal line reports a refused resume.
#[test]
fn refused_resume_shows_in_terminal_line() {
    let end = terminals("resume-unknown").remove(0);
    assert_eq!(adapter::launch_refusal(Some(&end), ""), Some(LaunchRefusal::NoConversation));
    let ordinary = terminals("turns-basic").remove(0);
    assert_eq!(adapter::launch_refusal(Some(&ordinary), ""), None);
}

#[test]
fn tools_ask_for_permission_and_withdraw_the_question() {
    let name = "tools-permission-allow-deny-cancel";
    let asked: Vec<HostRequest> = of_kind(name, LineKind::HostRequest)
        .iter()
        .map(|line| adapter::host_request(line).expect("readable"))
        .collect();
    let ids: Vec<String> = asked
        .into_iter()
        .map(|request| match request {
            HostRequest::Permission(request) => {
                assert_eq!(request.tool_name, "Bash");
                assert!(
                    request.input["command"].as_str().is_some_and(|command| command.starts_with("touch"))
                );
                assert!(request.description.is_some());
                request.request_id
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.len(), 3);
    let withdrawn: Vec<_> =
        of_kind(name, LineKind::Cancelled).iter().map(|line| adapter::cancelled_request(line)).collect();
    assert_eq!(withdrawn, [Some(ids[2].clone())]);
}

#[test]
fn the_deltas_make_up_the_answer() {
    let name = "turn-partial-replay-thinking";
    let text: String = recorded(name).iter().filter_map(|line| adapter::text_delta(line)).collect();
    assert_eq!(text, terminals(name)[0].text);
}
