//! curl in the original dialect: what anybody can do from a shell.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::common::installed::missing;
use crate::common::place::Place;
use crate::common::program::{Program, Site, place};
use crate::python::finished;

/// curl has limits of its own as well.
const RUNS_WITHIN: Duration = Duration::from_secs(60);

/// Whether there is curl; says so if not.
pub(crate) fn is_installed() -> bool {
    let found = std::process::Command::new("curl").arg("--version").output().is_ok();
    if !found {
        missing("curl is not installed");
    }
    found
}

/// Posts a body as a user; the answer's status and all of the answer.
async fn post(place: &Place, site: &Site, path: &str, body: &Value) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--no-buffer",
        "--max-time",
        "30",
        "--write-out",
        "\n%{http_code}",
    ]);
    command.args(["--header", "content-type: application/json", "--header", "x-pilotlight-user: alice"]);
    command.arg("--data").arg(body.to_string()).arg(format!("{}{path}", site.http));
    let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
    assert!(is_good, "curl failed: {written}");
    let (answer, status) = written.rsplit_once('\n').expect("the status is written last");
    (status.parse().expect("a status"), answer.to_owned())
}

fn body(text: &str) -> Value {
    let credentials =
        json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
    json!({ "oauth_credentials": credentials, "messages": [{ "role": "user", "content": text }] })
}

/// The JSON of the `data:` lines; there is nothing else but comments, and `[DONE]` stands at the very end.
fn events(answer: &str) -> Vec<Value> {
    let frames = answer.strip_suffix("data: [DONE]\n\n").expect("[DONE] at the very end");
    let frames = frames.split_terminator("\n\n").filter(|frame| !frame.starts_with(": "));
    let data = frames.map(|frame| frame.strip_prefix("data: ").expect("data without an event's name"));
    data.map(|data| serde_json::from_str(data).expect("JSON in one line")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_done_and_the_child_stays() {
    if !is_installed() {
        return;
    }
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut processes = Vec::new();
    for path in ["/v1/messages/keepalive", "/v1/messages/pooled", "/v1/messages"] {
        let mut body = body("[[pid]]");
        body["stream"] = json!(true);
        let (status, answer) = post(&place, &site, path, &body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        let events = events(&answer);
        let result = events.last().expect("events");
        assert_eq!((&result["type"], &result["is_error"]), (&json!("result"), &json!(false)), "{path}");
        processes.push(result["result"].clone());
    }
    processes.dedup();
    assert_eq!(processes.len(), 1, "{processes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_broken_by_comments() {
    if !is_installed() {
        return;
    }
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nheartbeat = \"100ms\"").await;
    let (status, answer) = post(&place, &site, "/v1/messages/keepalive", &body("[[sleep:1000]] late")).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer.matches(": ping\n\n").count() >= 3, "{answer}");
    assert_eq!(events(&answer).last().expect("events")["result"], "echo 1: late");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_a_stream_is_one_message() {
    if !is_installed() {
        return;
    }
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let (status, answer) = post(&place, &site, "/v1/messages", &body("[[usage:7,5]] hello")).await;
    assert_eq!(status, 200, "{answer}");
    let message: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")), "{message}");
    assert_eq!(message["content"], json!([{ "type": "text", "text": "echo 1: hello" }]));
    assert_eq!(message["stop_reason"], "end_turn");
    assert_eq!(
        (&message["usage"]["input_tokens"], &message["usage"]["output_tokens"]),
        (&json!(7), &json!(5))
    );
    assert!(message["id"].is_string() && message["model"].is_string(), "{message}");
    assert!(message["cost_usd"].is_number(), "{message}");

    // Text that happens to be JSON is text.
    let (_, answer) = post(&place, &site, "/v1/messages", &body(r#"[[say:{"a":1}]]"#)).await;
    let message: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(message["content"][0]["text"], r#"{"a":1}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_a_status_or_an_event_and_an_end() {
    if !is_installed() {
        return;
    }
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let (status, answer) = post(&place, &site, "/v1/messages", &body("[[api_error:429]]")).await;
    assert_eq!(status, 429, "{answer}");
    let error: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("rate_limit_error")),
        "{error}"
    );

    let dying = body("[[deltas:20]] [[fault:crash-mid]]");
    let (status, answer) = post(&place, &site, "/v1/messages/keepalive", &dying).await;
    assert_eq!(status, 200, "{answer}");
    let events = events(&answer);
    let last = events.last().expect("events");
    assert_eq!((&last["type"], &last["error"]["code"]), (&json!("error"), &json!("session_lost")), "{last}");
    let (status, answer) = post(&place, &site, "/v1/messages", &body("next")).await;
    assert_eq!(status, 200, "{answer}");
}
