//! Equal and different meaning of histories.

use serde_json::json;

use super::*;

fn digest(messages: Value) -> Digest {
    let messages: Vec<Message> = serde_json::from_value(messages).unwrap();
    messages.iter().fold(Digest::EMPTY, Digest::append)
}

fn user(content: Value) -> Digest {
    digest(json!([{ "role": "user", "content": content }]))
}

fn answer(content: Value) -> Digest {
    digest(json!([{ "role": "assistant", "content": content }]))
}

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

#[test]
fn equal_meaning_gives_equal_digest() {
    let image = |key: &str| {
        let source: Value = serde_json::from_str(key).unwrap();
        json!([{ "type": "image", "source": source }, text("what?")])
    };
    let cached = json!([{ "text": "a", "cache_control": { "type": "ephemeral" }, "type": "text" }]);
    let result = |cache: Value| {
        let mut inner = json!({ "type": "image", "source": { "type": "url", "url": "u" } });
        if !cache.is_null() {
            inner["cache_control"] = cache;
        }
        json!([{ "type": "tool_result", "tool_use_id": "t", "content": [inner] }])
    };
    let same = [
        (user(json!("a")), user(json!([text("a")])), "a string is a block of text"),
        (user(cached), user(json!("a")), "cache_control does not count"),
        (user(json!([text("a"), text("")])), user(json!("a")), "an empty block does not count"),
        (user(result(json!({ "type": "ephemeral" }))), user(result(json!(null))), "nor within a block"),
        (
            user(image(r#"{"type":"base64","media_type":"image/png","data":"AA"}"#)),
            user(image(r#"{"data":"AA","type":"base64","media_type":"image/png"}"#)),
            "keys have no order",
        ),
        (answer(json!([text("a"), text("b")])), answer(json!("ab")), "an answer is its text"),
        (answer(json!("ab \n")), answer(json!([text("ab"), text("\n "), text("")])), "but for its end"),
        (
            answer(json!([{ "type": "thinking", "thinking": "h", "signature": "s" }, text("a"),
                { "type": "redacted_thinking", "data": "x" }])),
            answer(json!("a")),
            "thinking does not count",
        ),
        (
            answer(json!([text("a"), { "type": "tool_use", "id": "t", "name": "n", "input": { "a": 1.0 } }])),
            Digest::EMPTY.append_said("a", &["t"]),
            "a call is its id",
        ),
        (Digest::EMPTY.append_text("ab\n"), answer(json!("ab")), "a recorded answer comes back"),
        (answer(json!("")), Digest::EMPTY, "an answer without a word is none"),
        (answer(json!([])), Digest::EMPTY, "also as blocks"),
    ];
    for (a, b, what) in same {
        assert_eq!(a, b, "{what}");
    }
}

#[test]
fn different_meaning_gives_different_digest() {
    let image = |data: &str| json!([{ "type": "image", "source": { "type": "base64", "data": data } }]);
    let all = [
        Digest::EMPTY,
        user(json!("")),
        user(json!("a")),
        user(json!(" a")),
        user(json!("a ")),
        user(json!("ab")),
        user(json!([text("a"), text("b")])),
        answer(json!("a")),
        answer(json!(" a")),
        answer(json!([text("a"), image("AA")[0]])),
        digest(json!([{ "role": "system", "content": "a" }])),
        user(image("AA")),
        user(image("AB")),
        user(json!([text("x"), image("AA")[0]])),
        user(json!([image("AA")[0], text("x")])),
        user(json!([{ "type": "tool_result", "content": { "cache_control": 1 } }])),
        user(json!([{ "type": "tool_result", "content": {} }])),
        user(json!([{ "type": "x", "y": null }])),
        user(json!([{ "type": "x", "y": false }])),
        user(json!([{ "type": "x", "y": true }])),
        user(json!([{ "type": "x", "y": 1 }])),
        user(json!([{ "type": "x", "y": "1" }])),
        user(json!([{ "type": "x", "y": [] }])),
        user(json!([{ "type": "x", "y": [[]] }])),
        digest(json!([{ "role": "user", "content": "a" }, { "role": "user", "content": "b" }])),
        digest(json!([{ "role": "user", "content": "b" }, { "role": "user", "content": "a" }])),
        digest(json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }])),
    ];
    for (index, a) in all.iter().enumerate() {
        for (other, b) in all.iter().enumerate().skip(index + 1) {
            assert_ne!(a, b, "{index} and {other}");
        }
    }
}

#[test]
fn system_prompt_is_distinguished() {
    let digest_of = |system| {
        HistoryDigest::of(
            &[],
            &serde_json::from_value(json!({ "role": "user", "content": "a" })).unwrap(),
            system,
        )
    };
    assert_eq!(digest_of(None).system, digest_of(Some("")).system);
    assert_ne!(digest_of(None).system, digest_of(Some("be brief")).system);
    assert_eq!(digest_of(Some("be brief")).asked, user(json!("a")));
}

proptest::proptest! {
    #[test]
    fn answer_digest_ignores_block_boundaries(pieces: Vec<String>) {
        let blocks: Vec<Value> = pieces.iter().map(|piece| text(piece)).collect();
        proptest::prop_assert_eq!(answer(json!(blocks)), Digest::EMPTY.append_text(&pieces.concat()));
    }

    #[test]
    fn extended_digest_equals_whole_digest(turns: Vec<(String, String)>) {
        let mut carried = Digest::EMPTY;
        let mut whole = Vec::new();
        for (asked, said) in turns {
            let last: Message = serde_json::from_value(json!({ "role": "user", "content": asked })).unwrap();
            carried = carried.append(&last).append_text(&said);
            whole.push(json!({ "role": "user", "content": [text(&asked)] }));
            whole.push(json!({ "role": "assistant", "content": [text(&said)] }));
        }
        proptest::prop_assert_eq!(digest(json!(whole)), carried);
    }
}
