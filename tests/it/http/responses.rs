//! The Responses API: whole answers and events, chains of responses, stored responses and their bounds.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, holding, place};

fn asking(text: &str) -> Value {
    json!({ "model": "sonnet", "input": text })
}

/// With a further field.
fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

async fn send(site: &Site, body: &Value) -> Answer {
    Answer::of(site.of("POST", "/v1/responses", "alice").json(body)).await
}

/// A response that went well.
async fn respond(site: &Site, body: &Value) -> Value {
    let answer = send(site, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// A response that continues another.
async fn follow(site: &Site, previous: &Value, text: &str) -> Value {
    respond(site, &with(asking(text), "previous_response_id", previous["id"].clone())).await
}

async fn stored(site: &Site, method: &str, id: &str, user: &str) -> Answer {
    Answer::of(site.of(method, &format!("/v1/responses/{id}"), user)).await
}

fn text_of(response: &Value) -> String {
    let items = response["output"].as_array().expect("items").iter();
    let parts = items.filter(|item| item["type"] == "message").map(|item| &item["content"][0]["text"]);
    parts.map(|text| text.as_str().expect("text")).collect()
}

/// Status and code of an error in the form of the API.
fn refused(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    for field in ["message", "type"] {
        assert!(body["error"][field].is_string(), "{body}");
    }
    assert!(body["error"].get("param").is_some(), "{body}");
    (answer.status, body["error"]["code"].as_str().expect("a code").to_owned())
}

/// The events of a stream, after checking names and numbers.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let frames = answer.body.split_terminator("\n\n").filter(|frame| !frame.starts_with(':'));
    let events: Vec<Value> = frames
        .map(|frame| {
            let (name, data) = frame.split_once('\n').expect("two lines");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
            assert_eq!(data["type"], name.strip_prefix("event: ").expect("a name"), "{frame}");
            data
        })
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let kinds = events.iter().map(|event| event["type"].as_str().expect("a type"));
    kinds.filter(|kind| !kind.ends_with(".delta")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn response_is_a_whole_object() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut body = asking("[[think:hm]][[usage:7,9]]hello");
    body["metadata"] = json!({ "order": "4711" });
    body["instructions"] = json!("be brief");
    let answer = send(&site, &body).await;
    let response = answer.json();
    assert_eq!((&response["object"], &response["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(
        (&response["metadata"]["order"], &response["instructions"]),
        (&json!("4711"), &json!("be brief"))
    );
    assert!(response["id"].as_str().unwrap().starts_with("resp_"), "{response}");
    assert!(response["created_at"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&response["error"], &response["incomplete_details"]), (&Value::Null, &Value::Null));
    let [thought, said] = &response["output"].as_array().unwrap()[..] else { panic!("{response}") };
    assert_eq!((&thought["type"], &thought["summary"][0]["text"]), (&json!("reasoning"), &json!("hm")));
    assert_eq!(
        (&said["type"], &said["role"], &said["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    assert_eq!(said["content"][0]["annotations"], json!([]));
    assert_eq!(text_of(&response), "echo 1: hello");
    let usage = json!({ "input_tokens": 7, "input_tokens_details": { "cached_tokens": 0, "cache_write_tokens": 0 },
        "output_tokens": 9, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 16 });
    assert_eq!(response["usage"], usage);
    assert_eq!(response["session_id"], answer.header("x-pilotlight-session"));
    assert!(response["cost_usd"].is_number() && !answer.header("x-request-id").is_empty());
    assert_eq!(site.metric("http_turns_total", &["dialect=\"responses\""]).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_numbered_and_complete() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let body = with(asking("[[think:hm]][[deltas:5]][[usage:7,9]]"), "stream", true);
    let events = events(&send(&site, &body).await);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds(&events), expected);
    let of = |kind: &str| events.iter().filter(move |event| event["type"] == kind).collect::<Vec<_>>();
    let done = &events.last().unwrap()["response"];
    let output = done["output"].as_array().unwrap();
    for (index, (added, done)) in
        of("response.output_item.added").into_iter().zip(of("response.output_item.done")).enumerate()
    {
        assert_eq!((&added["output_index"], &done["output_index"]), (&json!(index), &json!(index)));
        assert_eq!(added["item"]["id"], done["item"]["id"]);
        assert_eq!(done["item"], output[index], "the item is that of the response");
    }
    let deltas = of("response.output_text.delta");
    assert_eq!(deltas.len(), 5);
    for delta in &deltas {
        assert_eq!((&delta["output_index"], &delta["content_index"]), (&json!(1), &json!(0)));
        assert_eq!((&delta["item_id"], &delta["logprobs"]), (&output[1]["id"], &json!([])));
    }
    let text: String = deltas.iter().map(|delta| delta["delta"].as_str().unwrap()).collect();
    assert_eq!(
        (of("response.output_text.done")[0]["text"].as_str().unwrap(), text_of(done)),
        (&*text, text.clone())
    );
    let thought = of("response.reasoning_summary_text.delta");
    assert_eq!((&thought[0]["delta"], &thought[0]["summary_index"]), (&json!("hm"), &json!(0)));
    let begun = &of("response.created")[0]["response"];
    assert_eq!(
        (&begun["status"], &begun["output"], &begun["id"]),
        (&json!("in_progress"), &json!([]), &done["id"])
    );
    assert_eq!(done["usage"]["total_tokens"], 16);
    // What is stored is what was sent.
    let id = done["id"].as_str().unwrap();
    assert_eq!(stored(&site, "GET", id, "alice").await.json(), *done);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_and_limit_make_a_response_incomplete() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let response = respond(&site, &asking("[[refusal]]")).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"]["reason"], "content_filter");
    let streamed = events(&send(&site, &with(asking("[[refusal]]"), "stream", true)).await);
    assert_eq!(streamed.last().unwrap()["type"], "response.incomplete");
}

/// Errors before the first event are statuses; later ones fail the response, and an `error` event raises.
#[tokio::test(flavor = "multi_thread")]
async fn failures_have_the_form_of_the_api() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for stream in [false, true] {
        let answer = send(&site, &with(asking("[[api_error:429]]"), "stream", stream)).await;
        assert_eq!(refused(&answer), (429, "rate_limit".to_owned()));
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    let died = with(asking("[[deltas:50]][[delay:5]][[fault:crash-mid]]"), "stream", true);
    let events = events(&send(&site, &died).await);
    let [.., failed, error] = &events[..] else { panic!("{events:#?}") };
    assert_eq!(
        (&failed["type"], &failed["response"]["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    assert_eq!(failed["response"]["error"]["code"], "session_lost");
    assert!(!text_of(&failed["response"]).is_empty(), "what came of the answer");
    for place in [error, &error["error"]] {
        assert_eq!(
            (&place["code"], place.get("param")),
            (&json!("session_lost"), Some(&Value::Null)),
            "{error}"
        );
        assert!(place["message"].is_string(), "{error}");
    }
    let id = failed["response"]["id"].as_str().unwrap();
    assert_eq!(refused(&stored(&site, "GET", id, "alice").await).0, 404, "it has no answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_name_their_field() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let item = |item: Value| json!([item]);
    let wrong = [
        ("input", json!([]), "input"),
        ("input", json!(7), "input"),
        ("input", json!(" "), "input"),
        ("input", item(json!({ "role": "robot", "content": "a" })), "input[0].role"),
        ("input", item(json!({ "role": "user" })), "input[0].content"),
        ("input", item(json!({ "role": "assistant", "content": "a" })), "input"),
        (
            "input",
            item(json!({ "role": "user", "content": [{ "type": "input_audio" }] })),
            "input[0].content[0]",
        ),
        (
            "input",
            item(json!({ "role": "user", "content": [{ "type": "input_image", "image_url": "data:,x" }] })),
            "input[0].content[0]",
        ),
        (
            "input",
            item(json!({ "role": "user", "content": [{ "type": "input_file", "file_id": "f" }] })),
            "input[0].content[0]",
        ),
        ("metadata", json!({ "k": "v".repeat(513) }), "metadata"),
        ("conversation", json!(7), "conversation"),
        ("conversation", json!(".."), "conversation"),
        ("background", json!("yes"), "background"),
        ("prompt", json!({ "id": "p" }), "prompt"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("text", json!({ "format": { "type": "json_schema", "name": "n" } }), "text.format.schema"),
        ("text", json!({ "format": { "type": "yaml" } }), "text.format.type"),
        ("tools", json!([{ "type": "function", "name": "a b" }]), "tools[0].name"),
        ("model", json!("--help"), "model"),
    ];
    for (field, value, named) in wrong {
        let answer = send(&site, &with(asking("a"), field, value.clone())).await;
        assert_eq!(answer.status, 400, "{field}: {value} gave {answer:?}");
        assert_eq!(answer.json()["error"]["param"], named, "{field}: {value} gave {answer:?}");
    }
    assert_eq!(text_of(&respond(&site, &asking("still")).await), "echo 1: still");
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_without_effect_are_named() {
    let place = place();
    let mut body = asking("hello");
    body["temperature"] = json!(0.5);
    body["made_up"] = json!(1);
    body["text"] = json!({ "format": { "type": "text" }, "verbosity": "low" });
    body["input"] = json!([
        { "role": "user", "content": "a" },
        { "type": "reasoning", "id": "rs_1", "summary": [] },
        { "role": "assistant", "content": "b", "weight": 1 },
        { "type": "web_search_call", "id": "ws_1" },
        { "role": "user", "content": [{ "type": "input_text", "text": "hello" }] },
    ]);
    {
        let (_program, site) = Program::ready(&place, "").await;
        let answer = send(&site, &body).await;
        let expected =
            "input.weight,made_up,temperature,text.verbosity,input.reasoning,input.web_search_call";
        let mut named: Vec<_> = answer.header("x-pilotlight-ignored").split(',').collect();
        let mut expected: Vec<_> = expected.split(',').collect();
        named.sort_unstable();
        expected.sort_unstable();
        assert_eq!(named, expected);
        assert_eq!(answer.json()["temperature"], Value::Null, "nobody has set it");
    }
    let (_program, site) = Program::ready(&place, "[http]\nstrict = true").await;
    assert_eq!(refused(&send(&site, &body).await), (400, "ignored_field".to_owned()));
    assert_eq!(text_of(&respond(&site, &asking("plain")).await), "echo 1: plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn previous_response_goes_on_in_one_warm_child() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut last = respond(&site, &asking("[[pid]]")).await;
    let (pid, session) = (text_of(&last), last["session_id"].clone());
    for turn in 2..5 {
        last = follow(&site, &last, "on").await;
        assert_eq!(text_of(&last), format!("echo {turn}: on"));
        assert_eq!(last["session_id"], session);
    }
    let streamed = with(with(asking("[[pid]]"), "stream", true), "previous_response_id", last["id"].clone());
    let streamed = events(&send(&site, &streamed).await);
    let last = &streamed.last().unwrap()["response"];
    assert_eq!(text_of(last), pid);
    assert_eq!(text_of(&follow(&site, last, "end").await), "echo 6: end");
}

/// Instructions are not carried over, but system messages of the input are.
#[tokio::test(flavor = "multi_thread")]
async fn instructions_belong_to_their_request() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut body = asking("");
    body["instructions"] = json!("be brief");
    body["input"] =
        json!([{ "role": "developer", "content": "be kind" }, { "role": "user", "content": "[[system]]" }]);
    let first = respond(&site, &body).await;
    assert_eq!(text_of(&first), "be brief\n\nbe kind");
    let second = follow(&site, &first, "[[system]]").await;
    assert_eq!(text_of(&second), "be kind");
    assert_eq!(second["session_id"], first["session_id"]);
    let other = with(asking("[[system]]"), "previous_response_id", second["id"].clone());
    let other = respond(&site, &with(other, "instructions", "be long")).await;
    assert_eq!(text_of(&other), "be long\n\nbe kind");
}

/// The simulated CLI answers with the messages that it knows.
fn context(response: &Value) -> Vec<Value> {
    serde_json::from_str(&text_of(response)).expect("messages")
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_response_is_a_fork() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = respond(&site, &asking("my cat is Mo")).await;
    let second = follow(&site, &first, "my dog is Rex").await;
    let fork = follow(&site, &first, "[[context]]").await;
    assert_ne!(fork["session_id"], first["session_id"]);
    let text = text_of(&fork);
    assert!(text.contains("my cat is Mo") && !text.contains("Rex"), "{text}");
    assert_eq!(context(&fork).len(), 3, "{text}");
    // Both go on where they are.
    let trunk = follow(&site, &second, "[[context]]").await;
    assert_eq!((context(&trunk).len(), &trunk["session_id"]), (5, &first["session_id"]));
    let branch = follow(&site, &fork, "[[context]]").await;
    assert_eq!((context(&branch).len(), &branch["session_id"]), (5, &fork["session_id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_continuations_do_not_meet() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = respond(&site, &asking("one")).await;
    let both = tokio::join!(
        follow(&site, &first, "[[sleep:100]][[context]]"),
        follow(&site, &first, "[[sleep:100]][[context]]")
    );
    assert_ne!(both.0["session_id"], both.1["session_id"]);
    assert_eq!((context(&both.0).len(), context(&both.1).len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_turn_is_repeated_with_the_same_context() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = respond(&site, &asking("my cat is Mo")).await;
    let failing = with(asking("[[api_error:500]]"), "previous_response_id", first["id"].clone());
    assert_eq!(refused(&send(&site, &failing).await).0, 500);
    let again = follow(&site, &first, "[[context]]").await;
    let text = text_of(&again);
    assert!(text.contains("Mo") && !text.contains("api_error"), "{text}");
}

/// Images, tool calls and their results come back with a fork.
#[tokio::test(flavor = "multi_thread")]
async fn fork_has_all_that_was_said() {
    const PIXEL: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let body = json!({ "model": "sonnet", "input": [
        { "role": "user", "content": [
            { "type": "input_text", "text": "look" },
            { "type": "input_image", "detail": "auto", "image_url": format!("data:image/png;base64,{PIXEL}") },
        ] },
        { "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{\"city\":\"Rome\"}" },
        { "type": "function_call_output", "call_id": "call_1", "output": "sunny" },
        { "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": "ah", "annotations": [] }] },
        { "role": "user", "content": "and?" },
    ] });
    let first = respond(&site, &body).await;
    follow(&site, &first, "on").await;
    let text = text_of(&follow(&site, &first, "[[context]]").await);
    for part in ["look", "image", "weather", "Rome", "sunny", "ah", "and?"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn item_list_finds_its_conversation() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut input = vec![json!({ "role": "user", "content": "[[think:hm]]a" })];
    let mut sessions = Vec::new();
    for turn in 1..4 {
        let body = json!({ "model": "sonnet", "input": input, "store": false });
        let response = respond(&site, &body).await;
        assert!(text_of(&response).starts_with(&format!("echo {turn}: ")), "{response}");
        sessions.push(response["session_id"].clone());
        // The items of the output as they are, reasoning as well.
        input.extend(response["output"].as_array().unwrap().iter().cloned());
        input.push(
            json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "b" }] }),
        );
    }
    assert!(sessions.iter().all(|session| *session == sessions[0]), "{sessions:?}");
}

/// The AI SDK sends references instead of items that are stored.
#[tokio::test(flavor = "multi_thread")]
async fn references_to_items_are_followed() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = respond(&site, &asking("[[think:hm]]a")).await;
    let mut input = vec![json!({ "role": "user", "content": "[[think:hm]]a" })];
    let items = first["output"].as_array().unwrap();
    input.extend(items.iter().map(|item| json!({ "type": "item_reference", "id": item["id"] })));
    input.push(json!({ "role": "user", "content": "b" }));
    let second = respond(&site, &json!({ "model": "sonnet", "input": input })).await;
    assert_eq!((text_of(&second).as_str(), &second["session_id"]), ("echo 2: b", &first["session_id"]));
    let bob = site.of("POST", "/v1/responses", "bob").json(&json!({ "model": "sonnet", "input": input }));
    assert_eq!(refused(&Answer::of(bob).await), (404, "item_not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_response_is_its_users_alone() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let response = respond(&site, &asking("my word is amber")).await;
    let id = response["id"].as_str().unwrap();
    let got = stored(&site, "GET", id, "alice").await;
    assert_eq!(
        (got.status, got.json(), got.header("content-type")),
        (200, response.clone(), "application/json")
    );
    let unknown = format!("resp_{}", "0".repeat(32));
    let elsewhere = stored(&site, "GET", id, "bob").await;
    let nowhere = stored(&site, "GET", &unknown, "bob").await;
    assert_eq!(refused(&elsewhere), (404, "response_not_found".to_owned()));
    assert_eq!(elsewhere.json(), nowhere.json(), "nobody learns that it exists");
    for path in ["..%2F..%2Flock", "resp_..", "%FF", "x"] {
        assert!(stored(&site, "GET", path, "alice").await.status / 100 == 4, "{path}");
    }
    for (method, path) in
        [("DELETE", id.to_owned()), ("GET", format!("{id}/input_items")), ("POST", format!("{id}/cancel"))]
    {
        assert_eq!(refused(&stored(&site, method, &path, "bob").await).0, 404, "{method} {path}");
    }
    for previous in [json!(id), json!(unknown), json!("made up")] {
        let body = with(asking("go on"), "previous_response_id", previous);
        let request = site.of("POST", "/v1/responses", "bob").json(&body);
        let answer = Answer::of(request).await;
        assert_eq!(refused(&answer), (404, "previous_response_not_found".to_owned()));
        assert_eq!(answer.json()["error"]["param"], "previous_response_id");
    }
    assert_eq!(
        site.metric("http_turns_total", &["dialect=\"responses\""]).await,
        3.0,
        "a bad id is no request"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_response_is_gone_and_its_chain_with_it() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let first = respond(&site, &asking("one")).await;
    let second = follow(&site, &first, "two").await;
    let id = first["id"].as_str().unwrap();
    let deleted = stored(&site, "DELETE", id, "alice").await.json();
    assert_eq!(deleted, json!({ "id": id, "object": "response", "deleted": true }));
    assert_eq!(refused(&stored(&site, "DELETE", id, "alice").await).0, 404);
    assert_eq!(refused(&stored(&site, "GET", id, "alice").await).0, 404);
    // The conversation is there, so what follows needs no history.
    let third = follow(&site, &second, "three").await;
    assert_eq!(text_of(&third), "echo 3: three");
    // A fork would need it.
    let fork = send(&site, &with(asking("fork"), "previous_response_id", second["id"].clone())).await;
    assert_eq!(refused(&fork), (404, "previous_response_not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn response_without_store_leaves_nothing() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for stream in [false, true] {
        let body = with(with(asking("my word is amber"), "store", false), "stream", stream);
        let answer = send(&site, &body).await;
        let response =
            if stream { events(&answer).last().unwrap()["response"].clone() } else { answer.json() };
        assert_eq!(response["store"], false);
        let id = response["id"].as_str().unwrap();
        assert_eq!(refused(&stored(&site, "GET", id, "alice").await).0, 404);
        let next = send(&site, &with(asking("on"), "previous_response_id", id)).await;
        assert_eq!(refused(&next), (404, "previous_response_not_found".to_owned()));
    }
    assert!(!place.data_dir().join("records/responses").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn input_items_are_listed() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let input: Vec<_> = (0..5).map(|n| json!({ "role": "user", "content": format!("m{n}") })).collect();
    let response = respond(&site, &json!({ "model": "sonnet", "input": input })).await;
    let id = response["id"].as_str().unwrap();
    let list = async |query: &str| stored(&site, "GET", &format!("{id}/input_items{query}"), "alice").await;
    let texts = |page: &Value| -> Vec<String> {
        let items = page["data"].as_array().unwrap().iter();
        items.map(|item| item["content"][0]["text"].as_str().unwrap().to_owned()).collect()
    };
    let all = list("").await.json();
    assert_eq!((&all["object"], &all["has_more"]), (&json!("list"), &json!(false)));
    assert_eq!(texts(&all), ["m4", "m3", "m2", "m1", "m0"], "the latest first");
    let page = list("?order=asc&limit=2").await.json();
    assert_eq!((texts(&page), &page["has_more"]), (vec!["m0".into(), "m1".into()], &json!(true)));
    let after = page["last_id"].as_str().unwrap();
    let page = list(&format!("?order=asc&limit=3&after={after}")).await.json();
    assert_eq!((texts(&page).len(), &page["has_more"]), (3, &json!(false)));
    for query in ["?limit=0", "?limit=101", "?order=up", "?after=none"] {
        assert_eq!(refused(&list(query).await), (400, "invalid_query".to_owned()), "{query}");
    }
    let cancelled = stored(&site, "POST", &format!("{id}/cancel"), "alice").await;
    assert_eq!(refused(&cancelled), (400, "not_cancellable".to_owned()));
    let streamed = stored(&site, "GET", &format!("{id}?stream=true"), "alice").await;
    assert_eq!(refused(&streamed).0, 400);
}

/// A session that requests name is continued from its last response only.
#[tokio::test(flavor = "multi_thread")]
async fn named_session_goes_on_from_its_last_response() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let named = async |body: &Value, name: &str| {
        Answer::of(site.of("POST", "/v1/responses", "alice").header("x-pilotlight-session", name).json(body))
            .await
    };
    let after =
        |previous: &Value, text: &str| with(asking(text), "previous_response_id", previous["id"].clone());
    let first = named(&asking("my cat is Mo"), "work").await.json();
    assert_eq!(first["session_id"], "work");
    let second = named(&after(&first, "two"), "work").await.json();
    assert_eq!((text_of(&second).as_str(), &second["session_id"]), ("echo 2: two", &json!("work")));
    // Without the header too: the response says where it is.
    let third = follow(&site, &second, "three").await;
    assert_eq!((text_of(&third).as_str(), &third["session_id"]), ("echo 3: three", &json!("work")));
    let late = named(&after(&first, "late"), "work").await;
    assert_eq!(refused(&late), (409, "previous_response_not_last".to_owned()));
    assert_eq!(late.header("x-should-retry"), "false");
    let elsewhere = named(&after(&third, "x"), "play").await;
    assert_eq!(refused(&elsewhere), (400, "previous_response_elsewhere".to_owned()));
    let fork = follow(&site, &first, "[[context]]").await;
    assert!(fork["session_id"].as_str().unwrap().starts_with("auto-"), "{fork}");
    assert_eq!(context(&fork).len(), 3);
    // By the field of the API.
    let field = respond(&site, &with(asking("four"), "conversation", json!({ "id": "work" }))).await;
    assert_eq!(
        (text_of(&field).as_str(), &field["conversation"]),
        ("echo 4: four", &json!({ "id": "work" }))
    );
    let both = with(after(&field, "x"), "conversation", "work");
    assert_eq!(refused(&send(&site, &both).await).0, 400);
    // After a reset the session has another context: no response is continued in it.
    let reset = Answer::of(site.of("POST", "/v1/sessions/play/reset", "alice")).await;
    assert_eq!(reset.status, 404, "{reset:?}");
    let said = named(&asking("before"), "rest").await.json();
    assert_eq!(Answer::of(site.of("POST", "/v1/sessions/rest/reset", "alice")).await.status, 200);
    let late = named(&after(&said, "x"), "rest").await;
    assert_eq!(refused(&late), (409, "previous_response_not_last".to_owned()));
    // This one's context is more than its chain: others have spoken before it.
    follow(&site, &field, "five").await;
    let fork = send(&site, &after(&field, "fork")).await;
    assert_eq!(refused(&fork), (409, "previous_response_not_last".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_survive_a_restart_of_the_server() {
    let place = place();
    let (first, second, id) = {
        let (mut program, site) = Program::ready(&place, "").await;
        let first = respond(&site, &asking("my cat is Mo")).await;
        let second = follow(&site, &first, "two").await;
        program.signal(rustix::process::Signal::TERM);
        assert_eq!(program.code().await, Some(0));
        let id = first["id"].as_str().unwrap().to_owned();
        (first, second, id)
    };
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(stored(&site, "GET", &id, "alice").await.json(), first);
    let third = follow(&site, &second, "[[context]]").await;
    assert_eq!((context(&third).len(), &third["session_id"]), (5, &first["session_id"]));
    let fork = follow(&site, &first, "[[context]]").await;
    assert_eq!(context(&fork).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_take_responses_with_them() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let response = respond(&site, &asking("my word is amber")).await;
    let kept = respond(&site, &asking("my word is beryl")).await;
    let records = place.data_dir().join("records/responses");
    assert_eq!(holding(&records, "amber").len(), 1);
    let session = response["session_id"].as_str().unwrap();
    let purged = Answer::of(site.session("DELETE", &format!("{session}?purge=true"), "alice")).await;
    assert_eq!(purged.status, 200, "{purged:?}");
    assert!(holding(&records, "amber").is_empty());
    assert_eq!(stored(&site, "GET", kept["id"].as_str().unwrap(), "alice").await.status, 200);
    let deleted = Answer::of(site.web().delete(format!("{}/v1/users/alice", site.admin))).await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    assert!(holding(&records, "beryl").is_empty());
    assert_eq!(refused(&stored(&site, "GET", kept["id"].as_str().unwrap(), "alice").await).0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_request_gets_the_same_response() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for stream in [false, true] {
        let body = with(asking("once"), "stream", stream);
        let ask = || {
            let request = site.of("POST", "/v1/responses", "alice").json(&body);
            Answer::of(request.header("idempotency-key", format!("key-{stream}")))
        };
        let (first, again) = (ask().await, ask().await);
        assert_eq!((&first.body, again.header("idempotent-replayed")), (&again.body, "true"));
        assert!(first.body.contains("echo 1: once"), "{first:?}");
    }
}

/// A turn that goes on without its caller is stored as well.
#[tokio::test(flavor = "multi_thread")]
async fn detached_response_is_stored_and_read_again() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let body = with(asking("[[deltas:3]]"), "stream", true);
    let request = site.of("POST", "/v1/responses", "alice").header("x-pilotlight-on-disconnect", "detach");
    let answer = Answer::of(request.header("x-pilotlight-session", "work").json(&body)).await;
    assert_eq!(answer.status, 200);
    let again = Answer::of(site.session("GET", "work/events", "alice")).await;
    assert_eq!(answer.body, again.body, "each event with its id");
    let data = again.body.lines().rfind(|line| line.starts_with("data: ")).unwrap();
    let last: Value = serde_json::from_str(&data["data: ".len()..]).unwrap();
    assert_eq!(last["type"], "response.completed");
    let id = last["response"]["id"].as_str().unwrap();
    assert_eq!(stored(&site, "GET", id, "alice").await.json(), last["response"]);
}

fn run(arguments: &[&str], data_dir: &std::path::Path) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    let output = command.args(arguments).arg("--data-dir").arg(data_dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_backed_up_and_exported() {
    let (here, there) = (place(), place());
    let (program, site) = Program::ready(&here, "").await;
    let first = respond(&site, &asking("my cat is Mo")).await;
    follow(&site, &first, "two").await;
    let to = |name: &str| here.path().join(name).display().to_string();
    run(&["backup", &to("backup")], &here.data_dir());
    run(&["user", "export", "alice", "--to", &to("export")], &here.data_dir());
    assert!(!holding(&here.path().join("export/responses"), "my cat is Mo").is_empty());
    drop((site, program));
    run(&["restore", &to("backup")], &there.data_dir());
    let (_program, site) = Program::ready(&there, "").await;
    let id = first["id"].as_str().unwrap();
    assert_eq!(stored(&site, "GET", id, "alice").await.json(), first);
    assert_eq!(context(&follow(&site, &first, "[[context]]").await).len(), 3);
}

/// A session that is gone does not begin again with half of what was said.
#[tokio::test(flavor = "multi_thread")]
async fn lost_session_is_not_continued_without_its_history() {
    let place = place();
    let (first, second) = {
        let (mut program, site) = Program::ready(&place, "").await;
        let first = respond(&site, &asking("my cat is Mo")).await;
        let second = follow(&site, &first, "two").await;
        program.signal(rustix::process::Signal::TERM);
        assert_eq!(program.code().await, Some(0));
        (first, second)
    };
    for directory in std::fs::read_dir(place.data_dir().join("records")).unwrap().flatten() {
        if directory.path().join("session.json").exists() {
            std::fs::remove_dir_all(directory.path()).unwrap();
        }
    }
    let (_program, site) = Program::ready(&place, "").await;
    let third = follow(&site, &second, "[[context]]").await;
    assert_eq!(context(&third).len(), 5, "everything that was said is given to the new one");
    stored(&site, "DELETE", first["id"].as_str().unwrap(), "alice").await;
    let session = third["session_id"].as_str().unwrap();
    assert_eq!(session, second["session_id"]);
    let fork = send(&site, &with(asking("on"), "previous_response_id", second["id"].clone())).await;
    assert_eq!(refused(&fork).0, 404);
}

const CALL: &str = r#"[[tool:mcp__caller__add {"a":1}]][[tool:mcp__caller__add {"a":2}]]"#;

fn with_tools(body: Value) -> Value {
    with(body, "tools", json!([{ "type": "function", "name": "add", "parameters": { "type": "object" } }]))
}

fn outputs(response: &Value) -> Vec<Value> {
    let calls = response["output"].as_array().unwrap().iter().filter(|item| item["type"] == "function_call");
    let given = calls.zip(["one", "two"]).map(
        |(call, output)| json!({ "type": "function_call_output", "call_id": call["call_id"], "output": output }),
    );
    given.collect()
}

/// The caller's own tools: by the id of the response, and with all items each time.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_items_and_take_their_outputs() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let called = respond(&site, &with_tools(asking(CALL))).await;
    let item = &called["output"][0];
    assert_eq!(
        (&item["type"], &item["name"], &item["arguments"]),
        (&json!("function_call"), &json!("add"), &json!(r#"{"a":1}"#))
    );
    assert_eq!((&called["status"], outputs(&called).len()), (&json!("completed"), 2));
    let next = with(with_tools(asking("")), "input", outputs(&called));
    let answered = respond(&site, &with(next.clone(), "previous_response_id", called["id"].clone())).await;
    assert_eq!(
        (text_of(&answered).as_str(), &answered["session_id"]),
        ("TOOLS:ok one two", &called["session_id"])
    );
    let half = with(next, "input", outputs(&called)[..1].to_vec());
    let half = send(&site, &with(half, "previous_response_id", called["id"].clone())).await;
    assert_eq!(refused(&half).0, 400, "each call needs its output");

    let streamed = events(&send(&site, &with(with_tools(asking(CALL)), "stream", true)).await);
    let of_call =
        ["response.output_item.added", "response.function_call_arguments.done", "response.output_item.done"];
    let mut expected = vec!["response.created", "response.in_progress"];
    expected.extend(of_call.into_iter().chain(of_call));
    expected.push("response.completed");
    assert_eq!(kinds(&streamed), expected);
    let called = &streamed.last().unwrap()["response"];
    let mut items = vec![json!({ "role": "user", "content": CALL })];
    items.extend(called["output"].as_array().unwrap().iter().cloned().chain(outputs(called)));
    let answered = respond(&site, &with(with_tools(asking("")), "input", items)).await;
    assert_eq!(
        (text_of(&answered).as_str(), &answered["session_id"]),
        ("TOOLS:ok one two", &called["session_id"])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn format_makes_the_answer_a_document() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    let text = json!({ "format": { "type": "json_schema", "name": "n", "schema": schema, "strict": true } });
    for stream in [false, true] {
        let body =
            with(with(asking(r#"[[say:here]][[output:{"a":1}]]"#), "text", text.clone()), "stream", stream);
        let answer = send(&site, &body).await;
        let response =
            if stream { events(&answer).last().unwrap()["response"].clone() } else { answer.json() };
        assert_eq!(text_of(&response), r#"{"a":1}"#, "{response}");
        let bad =
            send(&site, &with(with(asking("plain words"), "text", text.clone()), "stream", stream)).await;
        assert!(bad.body.contains("output_invalid"), "{bad:?}");
    }
}
