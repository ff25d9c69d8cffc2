//! What the dialects of the SDKs say on the wire: whole answers, streams event by event, errors and their headers.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, place};

fn anthropic(text: &str, stream: bool) -> Value {
    json!({ "model": "sonnet", "max_tokens": 100, "stream": stream,
        "messages": [{ "role": "user", "content": text }] })
}

fn openai(text: &str, stream: bool) -> Value {
    json!({ "model": "sonnet", "stream": stream, "messages": [{ "role": "user", "content": text }] })
}

async fn send(site: &Site, path: &str, body: &Value) -> Answer {
    Answer::of(site.of("POST", path, "alice").json(body)).await
}

/// The names and data of a stream of the Messages API.
fn named(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let frames = answer.body.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let events = frames.map(|frame| {
        let (name, data) = frame.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        let name = name.strip_prefix("event: ").expect("a name").to_owned();
        assert_eq!(data["type"], name.as_str(), "{frame}");
        (name, data)
    });
    events.collect()
}

/// The text of such a stream, after checking the order of its events.
fn text_of(events: &[(String, Value)]) -> String {
    let (mut text, mut open, mut next) = (String::new(), None, 0);
    for (at, (name, data)) in events.iter().enumerate() {
        match name.as_str() {
            "message_start" => assert_eq!(at, 0),
            "content_block_start" => {
                assert!(open.is_none() && data["index"] == next, "{events:#?}");
                open = Some(next);
                next += 1;
            }
            "content_block_delta" => {
                assert_eq!(data["index"].as_u64(), open);
                text.push_str(data["delta"]["text"].as_str().unwrap_or_default());
            }
            "content_block_stop" => assert_eq!(data["index"].as_u64(), open.take()),
            "message_delta" => assert_eq!(at, events.len() - 2),
            "message_stop" => assert_eq!(at, events.len() - 1),
            "ping" => {}
            other => panic!("{other} in {events:#?}"),
        }
    }
    assert!(open.is_none());
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_api_answers_as_a_whole_and_as_events() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let whole = send(&site, "/v1/messages", &anthropic("[[think:hm]][[usage:7,9]]hello", false)).await;
    let body = whole.json();
    assert_eq!(body["content"][0]["type"], "thinking", "{body}");
    assert_eq!(body["content"][1], json!({ "type": "text", "text": "echo 1: hello" }));
    assert_eq!((&body["type"], &body["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!((&body["stop_reason"], &body["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    assert_eq!((&body["usage"]["input_tokens"], &body["usage"]["output_tokens"]), (&json!(7), &json!(9)));
    assert!(body["cost_usd"].is_number() && body["id"].as_str().unwrap().starts_with("msg_"), "{body}");
    assert_eq!(body["session_id"], whole.header("x-pilotlight-session"));
    assert_eq!(whole.header("request-id"), whole.header("x-request-id"));

    let streamed =
        send(&site, "/v1/messages", &anthropic("[[think:hm]][[deltas:5]][[usage:7,9]]", true)).await;
    assert_eq!(streamed.header("content-type"), "text/event-stream");
    let events = named(&streamed);
    let text = text_of(&events);
    assert_eq!(text.split_whitespace().count(), 5, "{text}");
    let (_, delta) = &events[events.len() - 2];
    assert_eq!(
        (&delta["delta"]["stop_reason"], &delta["usage"]["output_tokens"]),
        (&json!("end_turn"), &json!(9))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_hidden_and_broken_streams_made_up_for() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let with_tool = "[[say:done]][[tool:Bash {\"command\":\"echo one\"}]]";
    for text in [with_tool, "[[say:all of it]][[deltas:4]][[fallback]]"] {
        let streamed = send(&site, "/v1/messages", &anthropic(text, true)).await;
        let whole = send(&site, "/v1/messages", &anthropic(text, false)).await.json();
        let blocks = whole["content"].as_array().unwrap();
        assert!(blocks.iter().all(|block| block["type"] == "text"), "{whole}");
        let whole: String = blocks.iter().map(|block| block["text"].as_str().unwrap()).collect();
        assert_eq!(text_of(&named(&streamed)), whole, "{text}");
        assert!(!streamed.body.contains("tool_use"), "{}", streamed.body);
        let chat = send(&site, "/v1/chat/completions", &openai(text, false)).await.json();
        assert_eq!(chat["choices"][0]["message"]["content"], whole.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_completions_answer_as_a_whole_and_as_chunks() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let whole = send(&site, "/v1/chat/completions", &openai("[[usage:7,9]]hello", false)).await.json();
    assert_eq!(whole["object"], "chat.completion");
    let choice = &whole["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    assert_eq!(
        (&choice["message"]["role"], &choice["message"]["content"]),
        (&json!("assistant"), &json!("echo 1: hello"))
    );
    assert_eq!((&whole["usage"]["prompt_tokens"], &whole["usage"]["total_tokens"]), (&json!(7), &json!(16)));
    assert!(whole["created"].as_u64().unwrap() > 1_700_000_000, "{whole}");

    let mut body = openai("[[think:hm]][[deltas:5]][[usage:7,9]]", true);
    body["stream_options"] = json!({ "include_usage": true });
    let chunks = send(&site, "/v1/chat/completions", &body).await.events();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let deltas = |field: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(deltas("content").split_whitespace().count(), 5);
    assert_eq!(deltas("reasoning_content"), "hm");
    let [.., finish, usage] = &chunks[..] else { panic!("{chunks:#?}") };
    assert_eq!((&finish["choices"][0]["finish_reason"], &finish["usage"]), (&json!("stop"), &Value::Null));
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(9)));
    body["stream_options"] = Value::Null;
    let chunks = send(&site, "/v1/chat/completions", &body).await.events();
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

/// Errors before the first event are statuses and later ones events.
#[tokio::test(flavor = "multi_thread")]
async fn early_error_is_status_later_error_is_event() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let kinds = [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ];
    for (status, kind) in kinds {
        let text = format!("[[api_error:{status}]]");
        for stream in [false, true] {
            let answer = send(&site, "/v1/messages", &anthropic(&text, stream)).await;
            assert_eq!(answer.error().0, status, "{answer:?}");
            assert_eq!(answer.json()["error"]["type"], kind);
            assert_eq!(answer.header("x-should-retry"), "false", "the child has seen the prompt");
            assert!(answer.header("x-pilotlight-session").starts_with("auto-"), "an answer to a turn");
            let answer = send(&site, "/v1/chat/completions", &openai(&text, stream)).await;
            let body = answer.json();
            assert_eq!((answer.status, &body["error"]["type"]), (status, &json!(kind)), "{body}");
            assert!(body["error"]["message"].is_string() && body["error"].get("param").is_some(), "{body}");
        }
    }
    let died = "[[deltas:50]][[delay:5]][[fault:crash-mid]]";
    let events = named(&send(&site, "/v1/messages", &anthropic(died, true)).await);
    let (name, last) = events.last().unwrap();
    assert_eq!((name.as_str(), &last["error"]["code"]), ("error", &json!("session_lost")), "{events:#?}");
    let chunks = send(&site, "/v1/chat/completions", &openai(died, true)).await.events();
    assert_eq!(chunks.last().unwrap()["error"]["code"], "session_lost");
    let whole = send(&site, "/v1/messages", &anthropic(died, false)).await;
    assert_eq!((whole.error().0, whole.header("x-should-retry")), (502, "false"));
    assert_eq!(send(&site, "/v1/messages", &anthropic("next", false)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_answer_and_limits_have_their_words() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let refused = send(&site, "/v1/messages", &anthropic("[[refusal]]", false)).await;
    assert_eq!((refused.status, &refused.json()["stop_reason"]), (200, &json!("refusal")));
    let refused = send(&site, "/v1/chat/completions", &openai("[[refusal]]", false)).await.json();
    assert_eq!(refused["choices"][0]["finish_reason"], "content_filter");
    let streamed = named(&send(&site, "/v1/messages", &anthropic("[[refusal]]", true)).await);
    assert_eq!(streamed.last().unwrap().0, "message_stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_without_effect_are_named_or_refused() {
    let place = place();
    let mut body = anthropic("hello", false);
    body["temperature"] = json!(0.5);
    body["top_k"] = json!(5);
    {
        let (_program, site) = Program::ready(&place, "").await;
        let answer = send(&site, "/v1/messages", &body).await;
        assert_eq!(answer.header("x-pilotlight-ignored"), "max_tokens,temperature,top_k");
    }
    let (_program, site) = Program::ready(&place, "[http]\nstrict = true").await;
    let (status, code, message) = send(&site, "/v1/messages", &body).await.error();
    assert_eq!((status, code.as_str()), (400, "ignored_field"));
    assert!(message.contains("temperature, top_k"), "{message}");
    assert_eq!(send(&site, "/v1/messages", &anthropic("hello", false)).await.status, 200);
}

/// What becomes of a field.
enum Fate {
    /// The answer shows it, and nothing is named.
    Used(&'static str),
    /// Named in a header; `http.strict` refuses it.
    Named,
    /// Named in a header by `http.strict` too: no request could be without it.
    Unheeded,
    /// The status and the code of its refusal.
    Refused(u16, &'static str),
}

/// Fields that clients were seen to send, each in a request of its own.
#[tokio::test(flavor = "multi_thread")]
async fn each_field_is_used_named_or_refused() {
    use Fate::{Named, Refused, Unheeded, Used};
    let (claude, gpt) = ("/v1/messages", "/v1/chat/completions");
    let format = json!({ "type": "json_schema", "schema": { "type": "object", "required": ["a"] } });
    let document = r#"{"a":1}"#;
    let edits = json!({ "edits": [{ "type": "clear_tool_uses_20250919" }] });
    let server = json!([{ "type": "url", "name": "m", "url": "https://h/" }]);
    let rows = [
        (claude, "max_tokens", json!(1), Unheeded),
        (claude, "output_format", format.clone(), Used(document)),
        (claude, "output_config", json!({ "format": format }), Used(document)),
        (claude, "mcp_servers", server, Refused(403, "mcp_not_allowed")),
        (claude, "inference_geo", json!("us"), Refused(400, "unsupported_field")),
        (claude, "service_tier", json!("standard_only"), Named),
        (claude, "context_management", edits, Named),
        (claude, "container", json!("c"), Named),
        (gpt, "parallel_tool_calls", json!(false), Named),
        (gpt, "modalities", json!(["text", "audio"]), Refused(400, "unsupported_field")),
        (gpt, "verbosity", json!("low"), Named),
        (gpt, "web_search_options", json!({}), Named),
        (gpt, "store", json!(true), Named),
    ];
    for strict in [false, true] {
        let place = place();
        let (_program, site) = Program::ready(&place, &format!("[http]\nstrict = {strict}")).await;
        for (path, name, value, fate) in &rows {
            let mut body = openai(&format!("[[output:{document}]]"), false);
            if *path == claude {
                body["max_tokens"] = 100.into();
            }
            body[*name] = value.clone();
            let answer = send(&site, path, &body).await;
            let ignored = answer.headers.get("x-pilotlight-ignored").map(|names| names.to_str().unwrap());
            let is_named = ignored.is_some_and(|names| names.split(',').any(|it| it == *name));
            match fate {
                Used(text) => {
                    assert_eq!((answer.status, is_named), (200, false), "{name}: {answer:?}");
                    assert_eq!(answer.json()["content"][0]["text"], *text, "{name}");
                }
                Named if strict => {
                    let error = &answer.json()["error"];
                    assert_eq!((answer.status, &error["code"]), (400, &json!("ignored_field")), "{name}");
                    assert!(error["message"].as_str().unwrap().contains(name), "{error}");
                }
                Named | Unheeded => assert_eq!((answer.status, is_named), (200, true), "{name}: {answer:?}"),
                Refused(status, code) => {
                    let error = &answer.json()["error"];
                    assert_eq!((answer.status, &error["code"]), (*status, &json!(code)), "{name}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_dialect_answers_as_a_whole_too() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let body = json!({
        "oauth_credentials": { "access_token": "a", "refresh_token": "r", "expires_at": 1 },
        "messages": [{ "role": "user", "content": "[[tool:Write {\"file_path\":\"made.txt\",\"content\":\"hi\"}]][[say:written]]" }],
        "include_files": true,
    });
    let answer = send(&site, "/v1/messages", &body).await;
    let reply = answer.json();
    assert_eq!(answer.header("x-pilotlight-session"), "default");
    let text = reply["content"].as_array().unwrap().last().unwrap()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("written") || text.contains("TOOLS:ok"), "{reply}");
    assert_eq!((&reply["role"], &reply["stop_reason"]), (&json!("assistant"), &json!("end_turn")));
    let file = json!({ "path": "made.txt", "content": "hi", "encoding": "text", "size": 2 });
    assert_eq!((&reply["files"], &reply["files_summary"]["total"]), (&json!([file]), &json!(1)), "{reply}");
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = send(&site, "/v1/messages", &streamed).await.events();
    assert!(events.iter().any(|event| event["type"] == "result"), "{events:#?}");
}

/// Models and token counts are answered in the format of the caller's API.
#[tokio::test(flavor = "multi_thread")]
async fn models_and_token_counts_follow_the_dialect() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let models = Answer::of(site.of("GET", "/v1/models", "alice")).await.json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("opus")));
    let version = |path: &str| site.of("GET", path, "alice").header("anthropic-version", "2023-06-01");
    let models = Answer::of(version("/v1/models")).await.json();
    assert_eq!((&models["has_more"], &models["data"][1]["type"]), (&json!(false), &json!("model")));
    assert_eq!(Answer::of(version("/v1/models/none")).await.error().0, 404);
    let unknown = Answer::of(site.of("GET", "/v1/models/none", "alice")).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let counted =
        send(&site, "/v1/messages/count_tokens", &anthropic(&"word ".repeat(80), false)).await.json();
    assert_eq!((&counted["input_tokens"], &counted["estimate"]), (&json!(103), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_and_retries_are_signs_of_life() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nheartbeat = \"100ms\"").await;
    let streamed =
        send(&site, "/v1/messages", &anthropic("[[sleep:1000]][[api_retry:1,100]]late", true)).await;
    assert!(streamed.body.matches("ping").count() >= 3, "{}", streamed.body);
    assert_eq!(text_of(&named(&streamed)), "echo 1: late");
    // A failure after the first sign of life can no longer be a status.
    let failed =
        named(&send(&site, "/v1/messages", &anthropic("[[sleep:500]][[api_error:429]]", true)).await);
    let (name, last) = failed.last().unwrap();
    assert_eq!((name.as_str(), &last["error"]["type"]), ("error", &json!("rate_limit_error")));
    assert_eq!(site.metric("turns_total", &["outcome=\"error\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_prompt_has_a_limit_of_its_own() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut body = anthropic("[[system]]", false);
    body["system"] = "s".repeat((1 << 20) + 1).into();
    let refused = send(&site, "/v1/messages", &body).await;
    assert_eq!((refused.error().0, refused.error().1.as_str()), (413, "system_prompt_too_large"));
    assert_eq!(refused.json()["error"]["type"], "request_too_large");
    body["system"] =
        json!([{ "type": "text", "text": "be brief", "cache_control": { "type": "ephemeral" } }]);
    let answer = send(&site, "/v1/messages", &body).await.json();
    assert_eq!(answer["content"][0]["text"], "be brief", "{answer}");
}
