//! Turns: framing, the warm child, signs of life, hanging up, failures in mid-stream.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, holding, message, place};
use crate::common::{SOON, eventually};

/// Three messages go to one process and come back as its own lines.
#[tokio::test(flavor = "multi_thread")]
async fn three_messages_share_process_lines_pass_through() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = Answer::of(site.asking("alice", &message("one")).header("x-request-id", "mine")).await;
    assert_eq!(first.header("content-type"), "text/event-stream");
    assert_eq!(first.header("cache-control"), "no-cache");
    assert_eq!(first.header("x-accel-buffering"), "no");
    assert_eq!(first.header("x-pilotlight-session"), "default");
    assert_eq!(first.header("x-request-id"), "mine");
    assert!(!first.body.contains("event:"), "{}", first.body);
    let events = first.events();
    assert!(events.iter().any(|event| event["subtype"] == "init"), "{events:#?}");
    assert_eq!(events.last().unwrap()["type"], "result", "the stream ends after the result");
    assert_eq!(first.text(), "echo 1: one");
    let pid = site.pid("alice").await;
    assert_eq!(site.turn("alice", "two").await.text(), "echo 2: two");
    let alias = site.web().post(format!("{}/v1/messages/pooled", site.http));
    let alias = alias.header("x-pilotlight-user", "alice").json(&message("three"));
    assert_eq!(Answer::of(alias).await.text(), "echo 3: three");
    assert_eq!(site.pid("alice").await, pid);
    assert_eq!(site.turn("alice", "[[pid]]").await.text(), pid.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_sent_once_and_never_replayed() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let body = |last: &str| {
        json!({ "session_id": "history", "messages": [
            { "role": "user", "content": "my cat is Mo" },
            { "role": "assistant", "content": [{ "type": "text", "text": "hello Mo" }] },
            { "role": "user", "content": last },
        ] })
    };
    let first = Answer::of(site.asking("alice", &body("[[context]]"))).await;
    assert_eq!(first.header("x-pilotlight-session"), "history");
    let known: Value = serde_json::from_str(&first.text()).unwrap();
    let text = |text: &str| json!([{ "type": "text", "text": text }]);
    let expected = json!([
        { "role": "user", "content": text("my cat is Mo") },
        { "role": "assistant", "content": text("hello Mo") },
        { "role": "user", "content": "[[context]]" },
    ]);
    assert_eq!(known, expected);
    assert_eq!(Answer::of(site.asking("alice", &body("and now?"))).await.text(), "echo 3: and now?");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_broken_by_comments() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nheartbeat = \"100ms\"").await;
    let answer = site.turn("alice", "[[sleep:1500]] late").await;
    assert!(answer.body.matches(": ping\n\n").count() >= 3, "{}", answer.body);
    assert_eq!(answer.text(), "echo 1: late");
}

/// An error of the CLI is said after its own last line.
#[tokio::test(flavor = "multi_thread")]
async fn cli_error_follows_its_last_line() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let answer = site.turn("alice", "[[api_error:400]]").await;
    let events = answer.events();
    let [.., result, error] = &events[..] else { panic!("{events:#?}") };
    assert_eq!((&result["type"], &result["is_error"]), (&json!("result"), &json!(true)), "{result}");
    assert_eq!(
        (&error["type"], &error["error"]["code"]),
        (&json!("error"), &json!("invalid_request")),
        "{error}"
    );
    let pid = site.pid("alice").await;
    assert!(site.turn("alice", "fine").await.text().ends_with("fine"));
    assert_eq!(site.pid("alice").await, pid);
}

/// The loss of a child in mid-stream is reported and the conversation continues.
#[tokio::test(flavor = "multi_thread")]
async fn lost_child_is_reported_conversation_continues() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(site.turn("alice", "remember me").await.text(), "echo 1: remember me");
    // The CLI writes its transcript a moment after the answer; what is not written when it dies is lost.
    let written = || holding(&place.data_dir(), "remember me").iter().any(|name| name.ends_with(".jsonl"));
    eventually("the first turn is on disk", SOON, written).await;
    let answer = site.turn("alice", "[[deltas:20]] [[fault:crash-mid]]").await;
    let events = answer.events();
    let last = events.last().unwrap();
    assert_eq!(last["type"], "error", "{events:#?}");
    assert_eq!(last["error"]["code"], "session_lost");
    assert!(last["error"]["message"].is_string());
    let recalled = site.turn("alice", "[[recall]]").await.text();
    assert!(recalled.contains("remember me"), "{recalled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_are_replaced() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    // The framing is checked while the events are read.
    let answer = site.turn("alice", "[[fault:invalid-utf8]] on").await;
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
    assert!(site.turn("alice", "next").await.text().ends_with("next"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[session]\nturn_queue = 0").await;
    let slow = site.asking("alice", &message("[[deltas:1000]] [[delay:100]]")).send().await.unwrap();
    assert_eq!(slow.status(), 200);
    let answer = site.turn("alice", "too many").await;
    let error = answer.error();
    assert_eq!((error.0, error.1.as_str()), (429, "queue_full"));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(site.turn("bob", "not mine").await.text(), "echo 1: not mine");
}

/// A reader that does not read holds only its own turn.
#[tokio::test(flavor = "multi_thread")]
async fn stalled_reader_holds_only_its_own_turn() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let unread = site.asking("alice", &message("[[bytes:30000000]]")).send().await.unwrap();
    assert_eq!(site.turn("bob", "quick").await.text(), "echo 1: quick");
    let whole = unread.text().await.unwrap();
    assert!(whole.len() > 30_000_000 && whole.ends_with("data: [DONE]\n\n"));
}
