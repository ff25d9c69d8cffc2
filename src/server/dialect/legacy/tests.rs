//! Parser of the legacy dialect: defaults, refusals, arbitrary bytes.

use super::*;
use crate::model::Prompt;
use crate::model::{Block, History, Message, Role};

fn request(text: &str) -> Result<TurnRequest, String> {
    parse(text.as_bytes()).map_err(|error| format!("{error:?}"))
}

#[test]
fn last_message_is_the_prompt() {
    let request = request(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
            {"role":"user","content":[{"type":"text","text":"c"}]}],
            "session_id":"work","model":"claude-sonnet-4-5@20250929","stream":true,"thinking":true,
            "include_files":true,"mcp_servers":null,"something":{"new":[1]}}"#,
    )
    .unwrap();
    assert!(request.stream);
    assert!(request.prompt == Prompt::Blocks(vec![serde_json::json!({"type":"text","text":"c"})]));
    let text = |role, text: &str| Message { role, content: vec![Block::Text(text.into())] };
    let expected = History::new(vec![text(Role::User, "a"), text(Role::Assistant, "b")]);
    assert!(request.options.history == Some(expected));
    assert_eq!(request.conversation.as_deref(), Some("work"));
    assert!(request.include_files && request.credentials.is_none());
}

#[test]
fn credentials_have_defaults() {
    let request = request(
        r#"{"messages":[{"role":"user","content":"a"}],
            "oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":1}}"#,
    )
    .unwrap();
    let credentials = request.credentials.unwrap();
    assert_eq!(credentials.scopes, ["user:inference", "user:profile"]);
    assert_eq!(credentials.subscription_type, "max");
}

#[test]
fn every_refusal_names_the_field() {
    let cases = [
        ("", "EOF"),
        ("[]", "invalid type: sequence, expected an object"),
        (r#"[[{"role":"user","content":"a"}]]"#, "expected an object"),
        (r#"{"messages":[["user","a"]]}"#, "messages[0]: invalid type: sequence"),
        ("{\"messages\":", "EOF"),
        ("{}", "missing field `messages`"),
        (r#"{"messages":[]}"#, "messages: must not be empty"),
        (r#"{"messages":[{"content":"a"}]}"#, "messages[0]: missing field `role`"),
        (r#"{"messages":[{"role":"user"}]}"#, "messages[0]: missing field `content`"),
        (r#"{"messages":[{"role":"user","content":7}]}"#, "messages[0].content: invalid type"),
        (r#"{"messages":[{"role":"user","content":null}]}"#, "messages[0].content: invalid type"),
        (r#"{"messages":[{"role":"user","content":" \n"}]}"#, "messages[0].content: must not be empty"),
        (r#"{"messages":[{"role":"user","content":[]}]}"#, "messages[0].content: must not be empty"),
        (r#"{"messages":[{"role":"user","content":["a"]}]}"#, "messages[0].content[0]: must be an object"),
        (r#"{"messages":[{"role":"robot","content":"a"}]}"#, "messages[0].role: unknown variant"),
        (
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            "messages[1].role: the last message",
        ),
        (r#"{"messages":[{"role":"user","content":"a"}],"model":"--help"}"#, "model: must be"),
        (r#"{"messages":[{"role":"user","content":"a"}],"model":5}"#, "model: invalid type"),
        (r#"{"messages":[{"role":"user","content":"a"}],"fallback_model":"a b"}"#, "fallback_model"),
        (r#"{"messages":[{"role":"user","content":"a"}],"include_files":"yes"}"#, "include_files"),
        (r#"{"messages":[{"role":"user","content":"a"}],"session_id":[]}"#, "session_id"),
        (r#"{"messages":[{"role":"user","content":"a"}],"mcp_servers":"m"}"#, "mcp_servers: must be"),
        (
            r#"{"messages":[{"role":"user","content":"a"}],"oauth_credentials":{"access_token":"a"}}"#,
            "oauth_credentials: missing field",
        ),
        (
            r#"{"messages":[{"role":"user","content":"a"}],
            "oauth_credentials":{"access_token":"","refresh_token":"r","expires_at":1}}"#,
            "oauth_credentials.access_token: must not be empty",
        ),
        (r#"{"messages":[{"role":"user","content":"a"}]} {}"#, "trailing"),
    ];
    for (body, named) in cases {
        let error = request(body).err().unwrap_or_else(|| panic!("{body} was accepted"));
        assert!(error.contains(named), "{body} gave {error}");
    }
    assert!(request(&format!("{}1", "[".repeat(100_000))).is_err());
}

#[test]
fn no_refusal_repeats_a_value() {
    let error = request(
        r#"{"messages":[],"oauth_credentials":{"access_token":"a","refresh_token":"r","expires_at":"sk-\"secret"}}"#,
    );
    let error = error.err().unwrap();
    assert!(error.contains("oauth_credentials.expires_at") && !error.contains("secret"), "{error}");
    assert!(error.contains("expected i64"), "{error}");
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic(bytes: Vec<u8>) {
        // Only panics matter.
        parse(&bytes).ok();
    }
}
