//! The caller's own tools: a call ends the answer, the results go into the same warm process.

use serde_json::{Value, json};

use super::bench::Bench;
use crate::common::{SOON, eventually_some};

fn request(messages: &Value) -> Value {
    json!({
        "model": "sonnet", "max_tokens": 100, "messages": messages,
        "tools": [{ "name": "add", "description": "Adds.", "input_schema": {
            "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"],
        } }],
    })
}

const CALLS: &str = r#"[[say:let me]][[tool:mcp__caller__add {"a":1}]][[tool:mcp__caller__add {"a":2}]]"#;

async fn post(server: &crate::common::server::Server, body: &Value) -> Value {
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/messages", server.client().http()))
        .header("x-pilotlight-user", "alice")
        .header("x-pilotlight-tools", "none")
        .json(body)
        .send()
        .await
        .expect("it answers");
    let status = answer.status();
    let body: Value = answer.json().await.expect("JSON");
    assert!(status.is_success(), "{status} {body}");
    body
}

fn results(answer: &Value) -> Value {
    let calls = answer["content"].as_array().unwrap().iter().filter(|block| block["type"] == "tool_use");
    calls.map(|call| json!({ "type": "tool_result", "tool_use_id": call["id"], "content": format!("sum {}", call["input"]["a"]) })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_results_are_one_turn_of_a_process() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let asked = json!({ "role": "user", "content": CALLS });
    let called = post(&server, &request(&json!([asked]))).await;
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    let kinds: Vec<_> =
        called["content"].as_array().unwrap().iter().map(|it| it["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use"], "{called}");
    assert_eq!(
        (&called["content"][2]["name"], &called["content"][2]["input"]),
        (&json!("add"), &json!({ "a": 2 }))
    );
    let cli = bench.only_cli();
    let said = json!({ "role": "assistant", "content": called["content"] });
    let given = json!({ "role": "user", "content": results(&called) });
    let answered = post(&server, &request(&json!([asked, said, given]))).await;
    assert_eq!(answered["content"], json!([{ "type": "text", "text": "TOOLS:ok" }]), "{answered}");
    assert_eq!(answered["stop_reason"], "end_turn");
    assert_eq!(bench.only_cli().pid, cli.pid, "no other process");
    let requests = bench.api.requests();
    assert_eq!(requests.len(), 2);
    let sent = serde_json::to_string(&requests[1].body["messages"]).unwrap();
    assert!(sent.contains("sum 1") && sent.contains("sum 2"), "{sent}");
    // The conversation goes on by its history.
    let said_last = json!({ "role": "assistant", "content": answered["content"] });
    let next = json!({ "role": "user", "content": "[[say:on]]" });
    let on = post(&server, &request(&json!([asked, said, given, said_last, next]))).await;
    assert_eq!(on["content"][0]["text"], "on");
    assert_eq!(bench.only_cli().pid, cli.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_reach_the_model_after_a_kill() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let asked = json!({ "role": "user", "content": CALLS });
    let called = post(&server, &request(&json!([asked]))).await;
    bench.only_cli().kill();
    let said = json!({ "role": "assistant", "content": called["content"] });
    let given = json!({ "role": "user", "content": results(&called) });
    let answered = post(&server, &request(&json!([asked, said, given]))).await;
    assert_eq!(answered["stop_reason"], "end_turn", "{answered}");
    let requests = bench.api.requests();
    let sent = serde_json::to_string(&requests.last().unwrap().body["messages"]).unwrap();
    assert!(sent.contains("sum 1") && sent.contains("sum 2"), "{sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_message_ends_the_wait_for_results() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let asked = json!({ "role": "user", "content": CALLS });
    let called = post(&server, &request(&json!([asked]))).await;
    let cli = bench.only_cli();
    let said = json!({ "role": "assistant", "content": called["content"] });
    let next = json!({ "role": "user", "content": "[[say:never mind]]" });
    let answered = post(&server, &request(&json!([asked, said, next]))).await;
    assert_eq!(answered["content"][0]["text"], "never mind", "{answered}");
    assert_eq!(bench.only_cli().pid, cli.pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_with_calls_begins_elsewhere() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let history = json!([
        { "role": "user", "content": "add" },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "toolu_x", "name": "add", "input": { "a": 5 } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "toolu_x", "content": "sum 5" }] },
    ]);
    let answered = post(&server, &request(&history)).await;
    assert_eq!(answered["stop_reason"], "end_turn", "{answered}");
    let sent = &bench.api.requests()[0].body["messages"];
    let text = serde_json::to_string(sent).unwrap();
    assert!(text.contains(r#""name":"mcp__caller__add""#) && text.contains("sum 5"), "{text}");
}

fn wants_number(prompt: &str) -> Value {
    json!({
        "model": "sonnet", "max_tokens": 100, "messages": [{ "role": "user", "content": prompt }],
        "output_config": { "format": { "type": "json_schema", "schema": {
            "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"], "additionalProperties": false,
        } } },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn structured_answer_is_the_document_alone() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let answer = post(&server, &wants_number(r#"[[say:here]][[tool:StructuredOutput {"a":1}]]"#)).await;
    assert_eq!(answer["content"], json!([{ "type": "text", "text": r#"{"a":1}"# }]), "{answer}");
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(bench.api.requests().len(), 1);
}

/// The CLI asks for the document once, and the server once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn structured_answer_is_asked_for_again() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let answer = post(&server, &wants_number("[[say:no]]")).await;
    assert_eq!(answer["content"], json!([{ "type": "text", "text": r#"{"a":7}"# }]), "{answer}");
    assert_eq!(bench.api.requests().len(), 3);
}

/// What the broker has seen of a turn without an end is in all totals; a turn with an end is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cost_of_a_wait_is_in_all_totals_once() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("[broker]\ncredentials = \"broker\"\n").await;
    let get = async |path: &str| -> Value {
        let request = reqwest::Client::new().get(format!("{}{path}", server.client().http()));
        let answer = request.header("x-pilotlight-user", "alice").send().await.expect("an answer");
        answer.json().await.expect("JSON")
    };
    let totals = async || {
        let metric = server.client().metrics().await.sum("pilotlight_cost_micro_usd_total", &[]);
        let usd = |value: &Value| value.as_f64().unwrap_or_default() * 1e6;
        let user = usd(&get("/v1/usage").await["days"][0]["cost_usd"]);
        let sessions = get("/v1/sessions").await["sessions"].clone();
        let sessions: f64 = sessions.as_array().unwrap().iter().map(|it| usd(&it["total_cost_usd"])).sum();
        (metric, user, sessions)
    };
    // The CLI may know a lower price than the broker, by which users are charged.
    post(&server, &request(&json!([{ "role": "user", "content": "[[say:hi]]" }]))).await;
    let (_, user, sessions) = totals().await;
    let ratio = user / sessions;
    let asked = json!({ "role": "user", "content": CALLS });
    let called = post(&server, &request(&json!([asked]))).await;
    let said = json!({ "role": "assistant", "content": called["content"] });
    let given = json!({ "role": "user", "content": results(&called) });
    post(&server, &request(&json!([asked, said, given]))).await;
    let (metric, user, sessions) = totals().await;
    assert!((user - ratio * sessions).abs() < 0.01 * user, "{user} is not {ratio} of {sessions}");
    assert!((metric - sessions).abs() < 3.0, "{metric} is not {sessions}");

    let other = json!({ "role": "user", "content": format!("again {CALLS}") });
    post(&server, &request(&json!([other]))).await;
    let (_, more, _) = totals().await;
    assert!(more > user, "a request counts at once");
    for cli in bench.clis() {
        cli.kill();
    }
    eventually_some("the totals have what the user is charged", SOON, async || {
        let (metric, charged, now) = totals().await;
        let is_whole = (now - sessions - (more - user)).abs() < 3.0;
        (is_whole && (metric - now).abs() < 3.0 && (charged - more).abs() < 3.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_does_not_match_is_repaired() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let mut body =
        request(&json!([{ "role": "user", "content": r#"[[tool:mcp__caller__add {"a":"one"}]]"# }]));
    body["tools"][0]["strict"] = json!(true);
    let answered = post(&server, &body).await;
    assert_eq!(answered["content"], json!([{ "type": "text", "text": "TOOLS:err" }]), "{answered}");
    let requests = bench.api.requests();
    assert_eq!(requests.len(), 2);
    let sent = serde_json::to_string(&requests[1].body["messages"]).unwrap();
    assert!(sent.contains("does not match its schema") && sent.contains("/a"), "{sent}");
}
