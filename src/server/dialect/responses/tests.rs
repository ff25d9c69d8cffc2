//! A response is the same as a whole and in events; items are messages, and a list.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::json;

use super::*;
use crate::model::Usage;
use crate::server::dialect::streamed::Streamed;
use crate::server::dialect::{Reader, Render, TurnEnd, TurnRequest};
use crate::turn::Status;

fn request(body: &Value) -> TurnRequest {
    parse(body.to_string().as_bytes()).unwrap()
}

fn outcome() -> Outcome {
    Outcome {
        status: Status::Completed,
        text: String::new(),
        stop_reason: None,
        tool_calls: Vec::new(),
        usage: Usage {
            input_tokens: 1,
            output_tokens: 2,
            cache_creation_input_tokens: 4,
            cache_read_input_tokens: 8,
        },
        cost_usd: 0.5,
        cli_session_id: String::new(),
        retries: 0,
        context_lost: true,
        duration: Duration::from_secs(3),
    }
}

/// The lines of a turn with thoughts, encrypted ones, text with all that JSON escapes, and more text.
fn lines() -> String {
    let message = |content: Value| {
        let message = json!({ "id": "m", "model": "claude-x", "content": content });
        json!({ "type": "assistant", "message": message }).to_string() + "\n"
    };
    message(json!([
        { "type": "thinking", "thinking": "hm \"quoted\"", "signature": "s" },
        { "type": "redacted_thinking", "data": "d" },
        { "type": "text", "text": "a\"b\\\n\u{2028}é" },
    ])) + &message(json!([{ "type": "text", "text": "more" }]))
}

#[test]
fn response_is_the_same_as_events_and_as_a_whole() {
    let request = request(&json!({ "model": "sonnet", "input": "a", "metadata": { "k": "v" } }));
    let asked = request.response.as_ref().unwrap();
    let context = AnswerContext { session: "s".to_owned(), created: 7, model: "sonnet".to_owned() };
    let mut reader = Reader::new(false);
    let mut collected = Collected::default();
    collected.lines(&mut reader, lines().as_bytes());
    let whole = document(collected, &outcome(), &context, asked);
    let mut stream = Streamed::new(Reader::new(false), EventWriter::new(&context, asked), true);
    let mut frames = BytesMut::new();
    stream.lines(lines().as_bytes(), &mut frames);
    stream.end(TurnEnd::Finished(&outcome()), None, &mut frames);
    let streamed: Value = serde_json::from_str(&stream.document().unwrap()).unwrap();
    assert_eq!(streamed, whole);
    assert_eq!(stream.text(), "a\"b\\\n\u{2028}émore");
    let kinds: Vec<_> = whole["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "message"]);
    assert_eq!((&whole["completed_at"], &whole["context_lost"]), (&json!(10), &json!(true)));
    assert_eq!((&whole["usage"]["input_tokens"], &whole["usage"]["total_tokens"]), (&json!(13), &json!(15)));
    assert_eq!(
        whole["usage"]["input_tokens_details"],
        json!({ "cached_tokens": 8, "cache_write_tokens": 4 })
    );
    for frame in std::str::from_utf8(&frames).unwrap().split_terminator("\n\n") {
        let (name, data) = frame.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
    }
}

#[test]
fn request_with_others_is_completed_later() {
    let id = crate::server::responses::ResponseId::new();
    let mut body = json!({ "model": "m", "input": [{ "role": "developer", "content": "two" },
        { "role": "user", "content": "b" }], "instructions": "one", "previous_response_id": id.to_string() });
    let mut later = request(&body);
    assert!(later.history_digest.is_none() && later.options.system_prompt.is_none());
    let items = vec![
        json!({ "type": "message", "role": "developer", "content": "zero" }),
        json!({ "role": "user", "content": "a" }),
    ];
    let digest = "ab".repeat(32);
    let former = Former { digest, system: "zero".to_owned(), items: Some(items) };
    later.complete(Some(former)).unwrap();
    assert_eq!(later.options.system_prompt.as_deref(), Some("one\n\nzero\n\ntwo"));
    assert_eq!(later.options.history.as_ref().unwrap().messages().len(), 1);
    let asked = later.response.as_ref().unwrap();
    assert_eq!((asked.system.as_str(), asked.items.len()), ("zero\n\ntwo", 2), "without instructions");
    body["previous_response_id"] = Value::Null;
    assert!(request(&body).history_digest.is_some());
}

#[test]
fn items_of_one_answer_are_one_message() {
    let digest = |input: Value| {
        let request = request(&json!({ "model": "m", "input": input }));
        request.history_digest.unwrap().answered("x", &[])
    };
    let one = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "bc" },
        { "role": "user", "content": [{ "type": "input_text", "text": "d" }] },
    ]);
    let two = json!([
        { "role": "user", "content": "a" },
        { "type": "reasoning", "summary": [] },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "b" }] },
        { "type": "reasoning", "summary": [] },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "c" }] },
        { "role": "user", "content": "d" },
    ]);
    assert_eq!(digest(one), digest(two));
}

#[test]
fn listed_items_have_ids_and_parts() {
    let request = request(&json!({ "model": "m", "input": [
        { "role": "assistant", "content": "a" },
        { "type": "function_call", "call_id": "c", "name": "n", "arguments": "{}", "id": "fc_own" },
        { "role": "user", "content": [{ "type": "input_text", "text": "b" }] },
    ] }));
    let items = &request.response.as_ref().unwrap().items;
    assert_eq!(items[0]["content"], json!([{ "type": "output_text", "text": "a", "annotations": [] }]));
    assert_eq!((&items[0]["type"], &items[0]["status"]), (&json!("message"), &json!("completed")));
    assert_eq!(items[1]["id"], "fc_own");
    assert_eq!(items[2]["content"], json!([{ "type": "input_text", "text": "b" }]));
    let ids: std::collections::BTreeSet<_> = items.iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn response_repeats_format_and_tools_in_effect() {
    let format =
        json!({ "type": "json_schema", "name": "n", "strict": true, "schema": { "type": "object" } });
    let tool =
        json!({ "type": "function", "name": "add", "strict": true, "parameters": { "type": "object" } });
    let search = json!({ "type": "web_search" });
    let request = request(&json!({
        "model": "sonnet", "input": "a", "text": { "format": format }, "tools": [tool, search], "tool_choice": "required",
    }));
    let context = AnswerContext { session: "s".to_owned(), created: 7, model: "sonnet".to_owned() };
    let whole = document(Collected::default(), &outcome(), &context, request.response.as_ref().unwrap());
    assert_eq!((&whole["text"]["format"], &whole["tool_choice"]), (&format, &json!("required")));
    assert_eq!(whole["tools"].as_array().unwrap().len(), 1, "what has no effect is not repeated: {whole}");
    let repeated = &whole["tools"][0];
    assert_eq!((&repeated["name"], &repeated["strict"]), (&json!("add"), &json!(true)));
    assert_eq!(repeated["parameters"], tool["parameters"]);
}
