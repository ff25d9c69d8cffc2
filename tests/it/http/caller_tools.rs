//! The caller's own tools and structured answers, in the dialects of the SDKs.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

const CALL: &str = r#"[[tool:mcp__caller__add {"a":1}]][[tool:mcp__caller__add {"a":2}]]"#;

async fn send(site: &Site, path: &str, body: &Value) -> Answer {
    Answer::of(site.of("POST", path, "alice").json(body)).await
}

fn anthropic(messages: &Value, more: &Value) -> Value {
    let mut body = json!({
        "model": "sonnet", "max_tokens": 100, "messages": messages,
        "tools": [{ "name": "add", "input_schema": { "type": "object" } }],
    });
    more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

fn openai(messages: &Value, more: &Value) -> Value {
    let mut body = json!({
        "model": "sonnet", "messages": messages,
        "tools": [{ "type": "function", "function": { "name": "add", "parameters": { "type": "object" } } }],
    });
    more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

fn asked(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

/// The data of a stream.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let data = answer.body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_ends_with_calls_and_goes_on_with_results() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let stream = json!({ "stream": true });
    let question = asked(&format!("{CALL}[[pid]]"));
    let called = events(&send(&site, "/v1/messages", &anthropic(&json!([question]), &stream)).await);
    let blocks: Vec<&Value> = called.iter().filter(|it| it["type"] == "content_block_start").collect();
    assert_eq!(blocks.len(), 2, "{called:#?}");
    assert_eq!((&blocks[1]["index"], &blocks[1]["content_block"]["name"]), (&json!(1), &json!("add")));
    let inputs: Vec<&str> = called.iter().filter_map(|it| it["delta"]["partial_json"].as_str()).collect();
    assert_eq!(inputs, [r#"{"a":1}"#, r#"{"a":2}"#]);
    let end = called.iter().find(|it| it["type"] == "message_delta").unwrap();
    assert_eq!(end["delta"]["stop_reason"], "tool_use");

    let ids: Vec<&Value> = blocks.iter().map(|block| &block["content_block"]["id"]).collect();
    let said = json!({ "role": "assistant", "content": [
        { "type": "tool_use", "id": ids[0], "name": "add", "input": { "a": 1 } },
        { "type": "tool_use", "id": ids[1], "name": "add", "input": { "a": 2 } },
    ] });
    let given = json!({ "role": "user", "content": [
        { "type": "tool_result", "tool_use_id": ids[1], "content": [{ "type": "text", "text": "two" }] },
        { "type": "tool_result", "tool_use_id": ids[0], "content": "one", "is_error": false },
    ] });
    let missing = json!({ "role": "user", "content": [{ "type": "tool_result", "tool_use_id": ids[0], "content": "one" }] });
    let refused = send(&site, "/v1/messages", &anthropic(&json!([question, said, missing]), &stream)).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (400, Some("invalid_body")),
        "{refused:?}"
    );
    let answered =
        events(&send(&site, "/v1/messages", &anthropic(&json!([question, said, given]), &stream)).await);
    let text: String = answered.iter().filter_map(|it| it["delta"]["text"].as_str()).collect();
    let pid = text.parse::<u32>().expect("a pid, for the script of the message goes on");
    let status = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
    assert_eq!(
        (&status["sessions"][0]["pid"], &status["sessions"][0]["generation"]),
        (&json!(pid), &json!(1)),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_completions_call_and_take_results() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let question = asked(CALL);
    let called = send(&site, "/v1/chat/completions", &openai(&json!([question]), &json!({}))).await.json();
    let choice = &called["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{called}"
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(
        (&calls[0]["type"], &calls[0]["function"]),
        (&json!("function"), &json!({ "name": "add", "arguments": r#"{"a":1}"# }))
    );
    let result = |number: usize, text: &str| json!({ "role": "tool", "tool_call_id": calls[number]["id"], "content": text });
    let messages = json!([question, choice["message"], result(0, "one"), result(1, "two")]);
    let answered = send(&site, "/v1/chat/completions", &openai(&messages, &json!({}))).await.json();
    assert_eq!(answered["choices"][0]["message"]["content"], "TOOLS:ok one two", "{answered}");

    let streamed = events(
        &send(&site, "/v1/chat/completions", &openai(&json!([question]), &json!({ "stream": true }))).await,
    );
    let calls: Vec<&Value> = streamed
        .iter()
        .filter_map(|it| it["choices"][0]["delta"]["tool_calls"].as_array())
        .flatten()
        .collect();
    assert_eq!((calls.len(), &calls[1]["index"]), (2, &json!(1)), "{streamed:#?}");
    assert_eq!(streamed.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_the_limit_for_results() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[session]\ntool_timeout = \"300ms\"\n").await;
    let question = asked(CALL);
    let called = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await.json();
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    let waits = async || {
        let status = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
        status["sessions"][0]["state"] == "idle"
    };
    assert!(waits().await, "the session is free for other turns");
    // The interrupted turn is over when its cost is known.
    let spent = async || {
        let status = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
        status["sessions"][0]["total_cost_usd"].as_f64().is_some_and(|spent| spent > 0.0)
    };
    let until_over = async {
        while !spent().await {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(SOON, until_over).await.expect("the wait ends");
    // The results come too late for the calls, and reach the model as a message.
    let given = json!({ "role": "user", "content": called["content"].as_array().unwrap().iter().map(|call| {
        json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "[[say:late]]" })
    }).collect::<Vec<_>>() });
    let said = json!({ "role": "assistant", "content": called["content"] });
    let answered =
        send(&site, "/v1/messages", &anthropic(&json!([question, said, given]), &json!({}))).await.json();
    assert_eq!(answered["content"][0]["text"], "late late", "{answered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_call_is_asked_for_once_more() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let any = json!({ "tool_choice": { "type": "any" } });
    let unmet = send(&site, "/v1/messages", &anthropic(&json!([asked("no call")]), &any)).await;
    assert_eq!(
        (unmet.status, unmet.json()["error"]["code"].as_str()),
        (502, Some("output_invalid")),
        "{unmet:?}"
    );
    assert_eq!(unmet.header("x-should-retry"), "false");
    let met = send(&site, "/v1/messages", &anthropic(&json!([asked(CALL)]), &any)).await.json();
    assert_eq!(met["stop_reason"], "tool_use", "{met}");
    for (choice, status) in
        [(json!({ "type": "tool", "name": "sub" }), 400), (json!({ "type": "none" }), 200)]
    {
        let answer =
            send(&site, "/v1/messages", &anthropic(&json!([asked("x")]), &json!({ "tool_choice": choice })))
                .await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_cannot_be_offered_are_refused_or_named() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[session]\ntools_limit = 2000\n").await;
    let tools = |tools: Value| anthropic(&json!([asked("x")]), &json!({ "tools": tools }));
    for (sent, status, code) in [
        (json!([{ "name": "a b", "input_schema": {} }]), 400, "invalid_body"),
        (
            json!([{ "name": "a", "input_schema": {} }, { "name": "a", "input_schema": {} }]),
            400,
            "invalid_tools",
        ),
        (
            json!([{ "name": "a", "input_schema": {}, "description": "x".repeat(3000) }]),
            413,
            "tools_too_large",
        ),
    ] {
        let answer = send(&site, "/v1/messages", &tools(sent)).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (status, Some(code)),
            "{answer:?}"
        );
    }
    let search = json!([{ "type": "web_search_20250305", "name": "web_search" }]);
    assert!(
        send(&site, "/v1/messages", &tools(search))
            .await
            .header("x-pilotlight-ignored")
            .contains("tools.web_search_20250305")
    );
    let own = site.of("POST", "/v1/messages", "alice").header("x-pilotlight-tools", "some");
    let answer = Answer::of(own.json(&anthropic(&json!([asked("x")]), &json!({})))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (400, Some("invalid_header")));
}

#[tokio::test(flavor = "multi_thread")]
async fn own_tools_of_the_cli_can_be_switched_off() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"\n").await;
    let body = json!({ "model": "sonnet", "max_tokens": 9, "messages": [asked(r#"[[tool:Bash {"command":"true"}]]"#)] });
    assert_eq!(send(&site, "/v1/messages", &body).await.json()["content"][0]["text"], "TOOLS:ok");
    let off = site.of("POST", "/v1/messages", "bob").header("x-pilotlight-tools", "none");
    assert_eq!(Answer::of(off.json(&body)).await.json()["content"][0]["text"], "TOOLS:err");
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_answers_match_their_schema_or_fail() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"] });
    let claude = |text: &str, stream: bool| {
        json!({ "model": "sonnet", "max_tokens": 9, "stream": stream, "messages": [asked(text)],
            "output_config": { "format": { "type": "json_schema", "schema": schema } } })
    };
    let gpt = |text: &str, stream: bool| {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema, "strict": true } });
        json!({ "model": "sonnet", "stream": stream, "messages": [asked(text)], "response_format": format })
    };
    let good = r#"[[say:here]][[output:{"a":1}]]"#;
    let whole = send(&site, "/v1/messages", &claude(good, false)).await;
    assert_eq!(whole.json()["content"], json!([{ "type": "text", "text": r#"{"a":1}"# }]), "{whole:?}");
    assert!(
        !whole.headers.contains_key("x-pilotlight-ignored")
            || !whole.header("x-pilotlight-ignored").contains("output")
    );
    let chat = send(&site, "/v1/chat/completions", &gpt(good, false)).await.json();
    assert_eq!(chat["choices"][0]["message"]["content"], r#"{"a":1}"#, "{chat}");
    let streamed = events(&send(&site, "/v1/messages", &claude(good, true)).await);
    let text: String = streamed.iter().filter_map(|it| it["delta"]["text"].as_str()).collect();
    assert_eq!(text, r#"{"a":1}"#, "{streamed:#?}");
    for bad in ["plain words", r#"[[output:{"a":"x"}]]"#] {
        for (path, body) in [("/v1/messages", claude(bad, false)), ("/v1/chat/completions", gpt(bad, false))]
        {
            let answer = send(&site, path, &body).await;
            assert_eq!(
                (answer.status, answer.json()["error"]["code"].as_str()),
                (502, Some("output_invalid")),
                "{answer:?}"
            );
        }
    }
    let streamed = send(&site, "/v1/messages", &claude("plain words", true)).await;
    assert!(streamed.status == 502 || streamed.body.contains("event: error"), "{streamed:?}");
    assert!(!streamed.body.contains("plain words"), "nothing of an answer that is none");
    let any = json!({ "model": "sonnet", "messages": [asked(r#"[[output:{"b":2}]]"#)], "response_format": { "type": "json_object" } });
    assert_eq!(
        send(&site, "/v1/chat/completions", &any).await.json()["choices"][0]["message"]["content"],
        r#"{"b":2}"#
    );
    let wrong = json!({ "model": "sonnet", "messages": [asked("x")], "response_format": { "type": "json_schema", "json_schema": {
        "name": "n", "schema": { "type": "object", "required": 7 } } } });
    assert_eq!(send(&site, "/v1/chat/completions", &wrong).await.status, 400);
}

/// Another user's results reach nobody else's turn.
#[tokio::test(flavor = "multi_thread")]
async fn results_of_another_user_reach_nobody() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let question = asked(CALL);
    let called = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await.json();
    let results: Vec<Value> = called["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "mallory's" }))
        .collect();
    let said = json!({ "role": "assistant", "content": called["content"] });
    let body = anthropic(&json!([question, said, { "role": "user", "content": results }]), &json!({}));
    let other = Answer::of(site.of("POST", "/v1/messages", "mallory").json(&body)).await;
    assert_eq!(other.status, 200, "{other:?}");
    let sessions = async || {
        Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json()["sessions"][0]["turns"].clone()
    };
    assert_eq!(sessions().await, 1);
    let results: Vec<Value> = called["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| json!({ "type": "tool_result", "tool_use_id": call["id"], "content": "own" }))
        .collect();
    let body = anthropic(&json!([question, said, { "role": "user", "content": results }]), &json!({}));
    assert_eq!(send(&site, "/v1/messages", &body).await.json()["content"][0]["text"], "TOOLS:ok own own");
}

/// The request for another answer would come behind the other message, and be taken for one about its answer.
#[tokio::test(flavor = "multi_thread")]
async fn answer_is_not_asked_for_behind_another_turn() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let named = |text: &str, more: Value| {
        let body = anthropic(&json!([asked(text)]), &more);
        let request = site.of("POST", "/v1/messages", "alice").header("x-pilotlight-session", "one");
        Answer::of(request.json(&body))
    };
    let forced = tokio::spawn(named("[[sleep:3000]]no call", json!({ "tool_choice": { "type": "any" } })));
    let session = async |field: &str| {
        let status = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
        status["sessions"][0][field].clone()
    };
    eventually_some("the first turn runs", SOON, async || (session("state").await == "busy").then_some(()))
        .await;
    let other = tokio::spawn(named("[[sleep:2000]][[say:other]]", json!({})));
    eventually_some("the other waits", SOON, async || (session("queue_depth").await == 1).then_some(()))
        .await;
    let unmet = forced.await.unwrap();
    assert_eq!(unmet.status, 502, "{unmet:?}");
    assert!(unmet.body.contains("not asked again"), "{unmet:?}");
    assert_eq!(other.await.unwrap().json()["content"][0]["text"], "other");
    let recalled = named("[[recall]]", json!({})).await;
    assert!(!recalled.body.contains("cannot be used"), "{recalled:?}");
}

/// A schema whose references form a long chain, which ended the server.
#[tokio::test(flavor = "multi_thread")]
async fn deep_schema_is_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut defs: serde_json::Map<String, Value> = (0..60_000)
        .map(|level| (format!("d{level}"), json!({ "$ref": format!("#/$defs/d{}", level + 1) })))
        .collect();
    defs.insert("d60000".to_owned(), json!({}));
    let schema = json!({ "type": "object", "properties": { "a": { "$ref": "#/$defs/d0" } }, "$defs": defs });
    let format = json!({ "output_config": { "format": { "type": "json_schema", "schema": schema } } });
    let refused = send(&site, "/v1/messages", &anthropic(&json!([asked("x")]), &format)).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    site.ready().await;
}

/// All tools of the server `caller` run without permission.
#[tokio::test(flavor = "multi_thread")]
async fn no_mcp_server_has_the_name_of_the_tools() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[mcp]\ncallers = \"all\"\n").await;
    let servers = json!({ "mcp_servers": { "caller": { "command": "true" } } });
    let refused = send(&site, "/v1/messages", &anthropic(&json!([asked("x")]), &servers)).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (400, Some("invalid_mcp_servers"))
    );
}

/// A comparison can take longer than the turn behind it.
#[tokio::test(flavor = "multi_thread")]
async fn turn_within_the_comparison_is_noticed() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let ask = |body: &Value| {
        let request = site.of("POST", "/v1/chat/completions", "alice").header("x-pilotlight-session", "one");
        Answer::of(request.json(body))
    };
    let numbers = vec![1; 20_000];
    let slow = json!({ "properties": { "a": { "items": { "type": "number", "minimum": 0 } } } });
    let mut parts = vec![slow; 200];
    parts.push(json!({ "required": ["b"] }));
    let schema = json!({ "type": "object", "allOf": parts });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let output = format!("[[sleep:1000]][[output:{}]]", json!({ "a": numbers }));
    let unfit = json!({ "model": "sonnet", "messages": [asked(&output)], "response_format": format });
    let other = json!({ "model": "sonnet", "messages": [asked("[[say:other]]")], "response_format": format });
    let judged = tokio::spawn(ask(&unfit));
    eventually_some("the first turn runs", SOON, async || {
        let status = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
        (status["sessions"][0]["state"] == "busy").then_some(())
    })
    .await;
    // Waits behind the first, and is over while its answer is compared.
    let other = tokio::spawn(ask(&other));
    let judged = judged.await.unwrap();
    assert_eq!(
        (judged.status, &judged.json()["error"]["code"]),
        (502, &json!("output_invalid")),
        "{judged:?}"
    );
    assert!(judged.body.contains("not asked again"), "{judged:?}");
    assert_eq!(other.await.unwrap().json()["error"]["code"], "output_invalid");
}

async fn session_of(site: &Site, user: &str) -> Value {
    Answer::of(site.of("GET", "/v1/sessions", user)).await.json()["sessions"][0].clone()
}

/// The request with the results of all calls of an answer.
fn given(question: &Value, called: &Value, text: &str) -> Value {
    let results: Vec<Value> = called["content"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|block| block["type"] == "tool_use")
        .map(|call| json!({ "type": "tool_result", "tool_use_id": call["id"], "content": text }))
        .collect();
    let said = json!({ "role": "assistant", "content": called["content"] });
    anthropic(&json!([question, said, { "role": "user", "content": results }]), &json!({}))
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupt_ends_the_wait_for_results() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let question = asked(CALL);
    let answer = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await;
    let (name, called) = (answer.header("x-pilotlight-session").to_owned(), answer.json());
    let interrupt = async || {
        let path = format!("{name}/interrupt");
        Answer::of(site.session("POST", &path, "alice")).await.json()["interrupted"].clone()
    };
    assert_eq!(interrupt().await, true, "{called}");
    eventually_some("the turn is over", SOON, async || {
        (session_of(&site, "alice").await["total_cost_usd"].as_f64()? > 0.0).then_some(())
    })
    .await;
    assert_eq!(interrupt().await, false, "nothing is left to be interrupted");
    let late = send(&site, "/v1/messages", &given(&question, &called, "[[say:late]]")).await.json();
    assert_eq!(late["content"][0]["text"], "late late", "{late}");
    assert_eq!(session_of(&site, "alice").await["generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_timeout_does_not_end_a_wait() {
    let place = place();
    let config = "[session]\nidle_timeout = \"300ms\"\n[limits]\nmax_children = 2\n";
    let (_program, site) = Program::ready(&place, config).await;
    let question = asked(CALL);
    let called = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await.json();
    let evicted = async |user: &str| {
        let say = json!({ "model": "sonnet", "max_tokens": 9, "messages": [asked("hello")] });
        Answer::of(site.of("POST", "/v1/messages", user).json(&say)).await;
        eventually_some("an idle session is evicted", SOON, async || {
            (session_of(&site, user).await["state"] == "dormant").then_some(())
        })
        .await;
    };
    evicted("bob").await;
    let answered = send(&site, "/v1/messages", &given(&question, &called, "3")).await.json();
    assert_eq!(answered["content"][0]["text"], "TOOLS:ok 3 3", "{answered}");
    eventually_some("the session is idle again, and evicted", SOON, async || {
        (session_of(&site, "alice").await["state"] == "dormant").then_some(())
    })
    .await;
}

/// Callers that never come back hold no child that another user needs.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_session_gives_room_to_another_user() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[limits]\nmax_children = 1\n").await;
    let question = asked(CALL);
    let called = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await.json();
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    let say = json!({ "model": "sonnet", "max_tokens": 9, "messages": [asked("hello")] });
    let other = Answer::of(site.of("POST", "/v1/messages", "bob").json(&say)).await;
    assert_eq!(other.json()["content"][0]["text"], "echo 1: hello", "{other:?}");
    let late = send(&site, "/v1/messages", &given(&question, &called, "[[say:late]]")).await.json();
    assert_eq!(late["content"][0]["text"], "late late", "{late}");
}

/// What a caller reads is what it has offered; the conversation keeps the names that the model knows.
#[tokio::test(flavor = "multi_thread")]
async fn messages_name_tools_as_the_caller_does() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let question = asked(CALL);
    let answer = send(&site, "/v1/messages", &anthropic(&json!([question]), &json!({}))).await;
    let (name, called) = (answer.header("x-pilotlight-session").to_owned(), answer.json());
    send(&site, "/v1/messages", &given(&question, &called, "3")).await;
    let messages = async |session: &str| {
        Answer::of(site.session("GET", &format!("{session}/messages"), "alice")).await.json()["messages"]
            .clone()
    };
    let names = |messages: &Value| -> Vec<Value> {
        let blocks = messages.as_array().unwrap().iter().flat_map(|it| it["content"].as_array().unwrap());
        blocks.filter(|block| block["type"] == "tool_use").map(|block| block["name"].clone()).collect()
    };
    let said = messages(&name).await;
    assert_eq!(names(&said), ["add", "add"], "{said}");
    // Model and conversation have the same calls in a copy, in what is left of it, and in another session that gets them.
    let last = said.as_array().unwrap().last().unwrap()["uuid"].clone();
    let fork = json!({ "name": "copy", "at": last });
    let forked = Answer::of(site.session("POST", &format!("{name}/fork"), "alice").json(&fork)).await;
    assert_eq!(forked.status, 201, "{forked:?}");
    assert_eq!(names(&messages("copy").await), ["add", "add"]);
    let rewind = site.session("POST", "copy/rewind", "alice").json(&json!({ "at": last }));
    assert_eq!(Answer::of(rewind).await.status, 200);
    let turn = async |session: &str, user: &str, messages: Value| {
        let body = anthropic(&messages, &json!({}));
        let request = site.of("POST", "/v1/messages", user).header("x-pilotlight-session", session);
        Answer::of(request.json(&body)).await.json()["content"][0]["text"].as_str().unwrap().to_owned()
    };
    let knows = async |session: &str, user: &str, messages: Value| {
        let context = turn(session, user, messages).await;
        assert_eq!(context.matches(r#""name":"mcp__caller__add""#).count(), 2, "{context}");
    };
    knows("copy", "alice", json!([asked("[[context]]")])).await;
    let mut history: Vec<Value> = said
        .as_array()
        .unwrap()
        .iter()
        .map(|it| json!({ "role": it["role"], "content": it["content"] }))
        .collect();
    history.push(asked("[[context]]"));
    knows("other", "bob", json!(history)).await;
}

/// The caller gets no call that does not match, and the model is asked once more.
#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_strict_tool_match_its_schema() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let number = json!({ "type": "object", "properties": { "a": { "type": "number" } }, "required": ["a"] });
    let tool = json!({ "name": "add", "input_schema": number, "strict": true });
    let function = json!({ "type": "function",
        "function": { "name": "add", "parameters": number, "strict": true } });
    let ask = async |path: &str, text: &str, more: Value| {
        let mut body = match path {
            "/v1/messages" => anthropic(&json!([asked(text)]), &json!({ "tools": [tool] })),
            _ => openai(&json!([asked(text)]), &json!({ "tools": [function] })),
        };
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let answer = send(&site, path, &body).await;
        assert!(
            !answer.headers.contains_key("x-pilotlight-ignored")
                || !answer.header("x-pilotlight-ignored").contains("strict")
        );
        answer
    };
    let wrong = r#"[[tool:mcp__caller__add {"a":1}]][[tool:mcp__caller__add {"a":"two"}]]"#;
    let right = ask("/v1/messages", CALL, json!({})).await.json();
    assert_eq!(
        (&right["stop_reason"], &right["content"][1]["input"]),
        (&json!("tool_use"), &json!({ "a": 2 }))
    );
    let repaired = ask("/v1/messages", wrong, json!({})).await.json();
    assert_eq!(repaired["content"], json!([{ "type": "text", "text": "TOOLS:err" }]), "{repaired}");
    let chat = ask("/v1/chat/completions", wrong, json!({})).await.json();
    assert_eq!(chat["choices"][0]["message"]["content"], "TOOLS:err", "{chat}");
    let streamed = events(&ask("/v1/messages", wrong, json!({ "stream": true })).await);
    assert!(!streamed.iter().any(|event| event["content_block"]["type"] == "tool_use"), "{streamed:#?}");
    assert_eq!(streamed.iter().filter(|event| event["type"] == "message_start").count(), 1, "{streamed:#?}");
    let spent = ask("/v1/messages", wrong, json!({ "tool_choice": { "type": "any" } })).await;
    assert_eq!((spent.status, spent.error().1.as_str()), (502, "output_invalid"), "{spent:?}");
}
