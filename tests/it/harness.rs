//! What the other tests stand on is tested itself: the markers, the reading of requests, streams and scrapes, and above
//! all that a process left behind is found.

use std::process::{Command, Stdio};

use crate::common::api::Api;
use crate::common::guard::Guard;
use crate::common::metrics::Scrape;
use crate::common::place::{MARK, Place};
use crate::common::process::{Process, descendants};
use crate::common::request::{Auth, Fate, Request};
use crate::common::script::{Step, parse};
use crate::common::sse::{Frame, Reader};
use axum::http::HeaderMap;
use serde_json::{Value, json};

#[test]
fn markers_are_steps_in_their_order() {
    let steps = parse("please [[say:one]] and [[hold:gate]] then [[deltas:3]][[error:429]]");
    let expected = vec![
        Step::Say("one".into()),
        Step::Hold("gate".into()),
        Step::Deltas(3),
        Step::Error { status: 429, retry_after: None },
    ];
    assert_eq!(steps, expected);
}

#[test]
fn a_tool_input_may_contain_closing_brackets() {
    let steps = parse(r#"[[tool:Bash {"command":"[[ -e a[[1]] ]]"}]][[say:x]]"#);
    let input = json!({"command": "[[ -e a[[1]] ]]"});
    assert_eq!(steps, vec![Step::Tool { name: "Bash".into(), input }, Step::Say("x".into())]);
}

#[test]
fn a_message_without_markers_is_answered_too() {
    assert_eq!(parse("hello"), vec![Step::Say("plain answer".into())]);
}

#[test]
fn the_last_block_counts_whatever_message_it_is_in() {
    let failed = json!({"type": "text", "text": "[[error:400]]\n"});
    let next = json!({"type": "text", "text": "[[say:x]]"});
    let request = request(json!([
        {"role": "user", "content": [failed, next]},
        {"role": "system", "content": "a word of the CLI"},
    ]));
    assert_eq!(request.steps(), vec![Step::Say("x".into())]);
    assert_eq!(request.former(), "[[error:400]]");
}

#[test]
fn a_tool_result_is_answered_unless_a_text_follows() {
    let result = json!({"type": "tool_result", "is_error": true, "content": "no"});
    let asked = json!({"role": "user", "content": "[[tool:Bash {}]]"});
    let bare = request(json!([asked, {"role": "user", "content": [result]}]));
    assert_eq!(bare.steps(), vec![Step::Say("TOOLS:err".into())]);
    let next = json!({"type": "text", "text": "[[say:next]]"});
    let followed = request(json!([asked, {"role": "user", "content": [result, next]}]));
    assert_eq!(followed.steps(), vec![Step::Say("next".into())]);
}

#[test]
fn reminders_are_not_the_users_words() {
    let reminder = json!({"type": "text", "text": "<system-reminder>date</system-reminder>"});
    let said = json!({"type": "text", "text": "[[say:x]]"});
    assert_eq!(request(json!([{"role": "user", "content": [said, reminder]}])).user_texts, vec!["[[say:x]]"]);
}

#[test]
fn a_stream_is_read_in_pieces_of_any_size() {
    let stream = b": ping\n\ndata: {\"a\":1}\n\ndata: [DONE]\n\n";
    let expected = vec![Frame::Comment("ping".into()), Frame::Event(json!({"a": 1})), Frame::Done];
    for size in 1..stream.len() {
        let mut reader = Reader::default();
        let frames: Vec<_> = stream.chunks(size).flat_map(|piece| reader.push(piece)).collect();
        assert_eq!(frames, expected, "in pieces of {size}");
        assert!(reader.is_empty());
    }
}

#[test]
fn a_scrape_is_summed_over_the_labels_not_named() {
    let scrape = Scrape::parse(
        "# HELP a b\nturns_total{outcome=\"ok\",how=\"x\"} 2\nturns_total{outcome=\"error\"} 1\nup 1\n",
    );
    assert_eq!(scrape.sum("turns_total", &[]), 3.0);
    assert_eq!(scrape.sum("turns_total", &["outcome=\"ok\""]), 2.0);
    assert!(scrape.has("up") && !scrape.has("turns"));
}

#[test]
fn a_process_left_behind_is_found_and_ended() {
    let place = Place::new();
    // One that left its parent, its session and its process group, as the tools of a CLI do.
    let mut parent = Command::new("setsid")
        .args(["--fork", "sleep", "54321"])
        .env(MARK, place.id())
        .stdin(Stdio::null())
        .spawn()
        .expect("setsid");
    parent.wait().expect("setsid ends");
    assert!(crate::common::place::wait_until(crate::common::SOON, || place
        .running(&["sleep", "54321"])
        .len()
        == 1));
    let left = place.running(&["sleep", "54321"]);
    assert_eq!(place.leftovers().len(), 1);
    assert!(crate::common::place::wait_until(crate::common::SOON, || !left
        .iter()
        .any(|process| process.is_alive())));
}

#[test]
fn the_dead_are_not_alive_although_nobody_reaped_them() {
    let mut child = Command::new("sleep").arg("54322").spawn().expect("sleep");
    let process = Process::of(child.id().cast_signed()).expect("it runs");
    assert!(descendants(std::process::id().cast_signed()).contains(&process));
    process.kill();
    assert!(crate::common::place::wait_until(crate::common::SOON, || !process.is_alive()));
    child.wait().expect("it is our child");
}

fn request(messages: Value) -> Request {
    Request::read("/v1/messages", &HeaderMap::new(), &json!({"messages": messages}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_no_stream_gets_the_whole_answer() {
    let api = Api::start().await;
    let web = reqwest::Client::builder().no_proxy().build().expect("a client");
    let asked =
        json!({"model": "m", "messages": [{"role": "user", "content": "[[say:one]][[tool:Bash {}]]"}]});
    let send = async |path: &str| {
        let request = web.post(format!("{}{path}", api.url())).header("x-api-key", "dummy").json(&asked);
        request.send().await.expect("an answer").json::<Value>().await.expect("JSON")
    };
    let answer = send("/v1/messages").await;
    assert_eq!(answer["content"][0]["text"], "one");
    assert_eq!(answer["stop_reason"], "tool_use");
    assert!(send("/v1/messages/count_tokens").await["input_tokens"].is_u64());
    let requests = api.requests();
    assert_eq!(
        requests.iter().map(|request| (request.auth, request.fate)).collect::<Vec<_>>(),
        [(Auth::ApiKey, Fate::Answered)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_goes_on_when_it_is_let_go() {
    let api = Api::start().await;
    let web = reqwest::Client::builder().no_proxy().build().expect("a client");
    let send = |text: &str| {
        let asked = json!({"stream": true, "messages": [{"role": "user", "content": text}]});
        web.post(format!("{}/v1/messages", api.url())).json(&asked).send()
    };
    let answer = send("[[hold:gate]][[say:one]]").await.expect("its head");
    api.entered("gate", 1).await;
    api.release("gate");
    let text = answer.text().await.expect("its body");
    assert!(
        text.starts_with("event: message_start") && text.ends_with("\"type\":\"message_stop\"}\n\n"),
        "{text}"
    );
    drop(send("[[hang]]").await);
    api.aborted("[[hang]]").await;
}

/// A test that is killed ends nothing itself.
#[test]
fn guard_ends_a_process_with_its_test() {
    let sleep = || Command::new("sleep").arg("600").spawn().unwrap();
    let (mut lost, mut kept) = (sleep(), sleep());
    drop(Guard::of(kept.id()));
    let mut guard = Guard::of(lost.id());
    guard.lose_test();
    assert!(!lost.wait().unwrap().success());
    assert!(kept.try_wait().unwrap().is_none(), "its guard was dropped");
    kept.kill().unwrap();
    kept.wait().unwrap();
}
