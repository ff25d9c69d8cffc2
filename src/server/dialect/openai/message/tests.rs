use serde_json::json;

use super::*;

fn assistant_of(message: Value) -> Value {
    let sent: Sent = serde_json::from_value(message).unwrap();
    let message = assistant(sent, "m").unwrap();
    match message.content {
        Content::Text(text) => text.into(),
        Content::Blocks(blocks) => blocks.into(),
    }
}

#[test]
fn calls_become_blocks_with_arguments() {
    let call = |arguments: &str| {
        let call =
            json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": arguments } });
        assistant_of(json!({ "role": "assistant", "content": null, "tool_calls": [call] }))[0]["input"]
            .clone()
    };
    assert_eq!(call(r#"{"a":1}"#), json!({ "a": 1 }));
    assert_eq!(call(" "), json!({}));
    for odd in ["[1]", "{\"a\":", "null"] {
        assert_eq!(call(odd), json!({ "arguments": odd }));
    }
    let custom = json!({ "id": "c", "type": "custom", "custom": { "name": "f", "input": "x" } });
    let said =
        assistant_of(json!({ "role": "assistant", "content": "a", "tool_calls": [custom], "refusal": "no" }));
    assert_eq!(
        said,
        json!([
            { "type": "text", "text": "a" },
            { "type": "text", "text": "no" },
            { "type": "tool_use", "id": "c", "name": "f", "input": { "input": "x" } },
        ])
    );
    let old =
        json!({ "role": "assistant", "content": "", "function_call": { "name": "f", "arguments": "" } });
    assert_eq!(assistant_of(old)[1]["id"], "f");
    let plain =
        json!({ "role": "assistant", "content": "a", "tool_calls": null, "refusal": null, "audio": null });
    assert_eq!(assistant_of(plain), "a");
}

#[test]
fn results_name_their_call() {
    for (message, id) in [
        (json!({ "role": "tool", "tool_call_id": "c", "content": "r" }), "c"),
        (json!({ "role": "function", "name": "f", "content": "r" }), "f"),
    ] {
        let sent: Sent = serde_json::from_value(message).unwrap();
        let Content::Blocks(blocks) = tool(sent, "m").unwrap().content else { panic!("blocks") };
        let content = json!([{ "type": "text", "text": "r" }]);
        assert_eq!(blocks, [json!({ "type": "tool_result", "tool_use_id": id, "content": content })]);
    }
}

#[test]
fn parts_become_blocks_or_are_refused() {
    let pdf = json!({ "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA" } });
    let expected = json!({ "type": "document", "title": "a.pdf",
        "source": { "type": "base64", "media_type": "application/pdf", "data": "AAAA" } });
    assert_eq!(block(pdf, true).unwrap(), expected);
    let audio = json!({ "type": "input_audio", "input_audio": {} });
    assert!(block(audio.clone(), true).is_err());
    assert_eq!(block(audio.clone(), false).unwrap(), audio);
    let uploaded = json!({ "type": "file", "file": { "file_id": "f" } });
    assert!(block(uploaded.clone(), true).is_err());
    assert_eq!(block(uploaded, false).unwrap()["type"], "file");
    let other = json!({ "type": "file", "file": { "file_data": "data:text/csv;base64,AAAA" } });
    assert!(block(other, false).unwrap_err().contains("application/pdf"));
}
