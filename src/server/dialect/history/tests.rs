use serde_json::json;

use super::*;

fn brought(messages: Value) -> Result<BroughtIn, String> {
    let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
    bring_in(messages).map_err(|error| format!("{error:?}"))
}

fn blocks(messages: Value) -> Vec<Value> {
    let history = brought(messages).unwrap().history.unwrap();
    let blocks = history.messages().iter().flat_map(|message| message.content.clone());
    blocks.map(|block| serde_json::to_value(block).unwrap()).collect()
}

fn image() -> Value {
    json!({ "type": "image", "source": { "type": "url", "url": "https://h/a.png" } })
}

#[test]
fn content_is_taken_as_it_is() {
    let whole = json!([
        { "type": "text", "text": "a" },
        image(),
        { "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "d" }, "title": "t" },
        { "type": "search_result", "source": "https://h", "title": "t", "content": [] },
        { "type": "tool_result", "tool_use_id": "x", "content": [image()], "is_error": true },
    ]);
    assert_eq!(json!(blocks(json!([{ "role": "user", "content": whole }]))), whole);
    let said = json!([
        { "type": "thinking", "thinking": "", "signature": "s" },
        { "type": "redacted_thinking", "data": "d" },
        { "type": "text", "text": "a" },
        { "type": "tool_use", "id": "x", "name": "n", "input": { "a": [1] } },
    ]);
    assert_eq!(json!(blocks(json!([{ "role": "assistant", "content": said }]))), said);
    let cached = json!([{ "type": "text", "text": "a", "cache_control": { "type": "ephemeral" } }]);
    let brought = brought(json!([{ "role": "user", "content": cached }])).unwrap();
    assert_eq!(brought.left_out, [""; 0]);
}

#[test]
fn what_cannot_be_held_is_named() {
    let user = |block: Value| json!([{ "role": "user", "content": [block] }]);
    let assistant =
        |block: Value| json!([{ "role": "assistant", "content": [block, { "type": "text", "text": "a" }] }]);
    let file = json!({ "type": "file", "file_id": "f" });
    for (messages, name) in [
        (user(json!({ "type": "input_audio", "x": 1 })), "messages.input_audio"),
        (user(json!({ "type": "a\r\nb,c" })), "messages.abc"),
        (user(json!({ "type": "x".repeat(1000) })), &format!("messages.{}", "x".repeat(MAX_NAME))),
        (user(json!({ "type": "tool_use", "id": "x", "name": "n", "input": {} })), "messages.tool_use"),
        (user(json!({ "type": "document", "source": file })), "messages.document.file"),
        (
            user(
                json!({ "type": "tool_result", "tool_use_id": "x", "content": [{ "type": "tool_reference" }] }),
            ),
            "messages.tool_reference",
        ),
        (assistant(image()), "messages.image"),
        (assistant(json!({ "type": "thinking", "thinking": "t" })), "messages.thinking"),
        (assistant(json!({ "type": "server_tool_use", "id": "x" })), "messages.server_tool_use"),
        (assistant(json!({ "type": "text", "text": "a", "citations": [{}] })), "messages.citations"),
        (
            json!([{ "role": "assistant", "content": [{ "type": "thinking", "thinking": "t", "signature": "s" }] }]),
            "messages.thinking",
        ),
    ] {
        assert_eq!(brought(messages).unwrap().left_out, [name]);
    }
    let many: Vec<_> = (0..100).map(|number| json!({ "type": format!("t{number}") })).collect();
    let brought = brought(json!([{ "role": "user", "content": many }])).unwrap();
    assert_eq!((brought.left_out.len(), brought.history), (MAX_NAMES, None));
}

#[test]
fn newest_media_are_kept() {
    let numbered = |number: usize| json!({ "type": "image", "source": { "type": "url", "url": format!("https://h/{number}") } });
    let result = json!({ "type": "tool_result", "tool_use_id": "x", "content": [numbered(0), { "type": "text", "text": "a" }, numbered(1)] });
    let mut content = vec![result];
    content.extend((2..=MAX_MEDIA).map(numbered));
    let brought = brought(json!([{ "role": "user", "content": content }])).unwrap();
    assert_eq!(brought.left_out, ["messages.image"]);
    let history = brought.history.unwrap();
    let text = serde_json::to_string(&history.messages()[0].content).unwrap();
    assert!(!text.contains("https://h/0\"") && text.contains("https://h/1\"") && text.contains("\"a\""));
    assert_eq!(text.matches("https://h/").count(), MAX_MEDIA);
}

#[test]
fn block_that_spoils_every_turn_is_refused() {
    let large = "A".repeat(MAX_IMAGE + 4);
    for (block, problem) in [
        (
            json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } }),
            "not of its",
        ),
        (
            json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": large } }),
            "5 MiB",
        ),
        (json!({ "type": "image" }), "source"),
        (json!({ "type": "document", "source": { "type": "base64" } }), "complete"),
        (json!({ "type": "search_result" }), "search_result"),
        (json!({ "type": "tool_result" }), "tool_use_id"),
        (json!({ "type": "tool_result", "tool_use_id": "x", "content": 7 }), "content"),
    ] {
        let error = brought(
            json!([{ "role": "user", "content": "a" }, { "role": "user", "content": [image(), block] }]),
        );
        let error = error.unwrap_err();
        assert!(error.contains("messages[1].content[1]") && error.contains(problem), "{error}");
    }
    for block in
        [json!({ "type": "tool_use" }), json!({ "type": "tool_use", "id": "x", "name": "n", "input": 7 })]
    {
        assert!(brought(json!([{ "role": "assistant", "content": [block] }])).is_err());
    }
}
