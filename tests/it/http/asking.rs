//! The dialects as ways to ask for a turn: a good request in each, and what an answer to a bad one must be.

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site};

/// Exits of a child that a caller's words must never bring about.
const DEATHS: [&str; 5] = ["crash", "signal", "oom", "hang", "protocol"];

/// Callers may define MCP servers of their own.
pub(crate) const TRUSTING: &str = "[mcp]\ncallers = \"all\"\n";

/// A way to ask for a turn.
pub(crate) struct Dialect {
    pub(crate) path: &'static str,
    /// A request with every field that it knows.
    pub(crate) good: fn() -> Value,
    /// Where something of any kind will do: fields without effect, and what is passed on as it is.
    any: &'static [&'static str],
    /// Where null is not the same as nothing.
    required: &'static [&'static str],
}

pub(crate) const DIALECTS: [Dialect; 5] = [
    Dialect {
        path: "/v1/messages/keepalive",
        good: original,
        any: &["/thinking"],
        required: &["/messages", "/messages/0/role", "/messages/0/content"],
    },
    Dialect {
        path: "/v1/messages",
        good: original,
        any: &["/thinking"],
        required: &[
            "/messages",
            "/messages/2/role",
            "/messages/2/content",
            "/oauth_credentials/access_token",
        ],
    },
    Dialect {
        path: "/v1/messages",
        good: anthropic,
        any: &["/temperature", "/top_p", "/top_k", "/stop_sequences", "/tools", "/tool_choice"],
        required: &["/model", "/max_tokens", "/messages", "/messages/2/role", "/messages/2/content"],
    },
    Dialect {
        path: "/v1/chat/completions",
        good: openai,
        any: &[
            "/temperature",
            "/top_p",
            "/max_tokens",
            "/stop",
            "/tools",
            "/tool_choice",
            "/messages/2/content",
        ],
        required: &["/model", "/messages", "/messages/3/role", "/messages/3/content"],
    },
    Dialect {
        path: "/v1/responses",
        good: responses,
        any: &[
            "/temperature",
            "/max_output_tokens",
            "/reasoning",
            "/tools",
            "/input/1/content/0/annotations",
            "/input/2/content/1/detail",
        ],
        required: &["/model", "/input", "/input/2/role", "/input/2/content"],
    },
];

fn original() -> Value {
    json!({
        "oauth_credentials": {
            "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64,
            "scopes": ["user:inference"], "subscription_type": "max",
        },
        "messages": [
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": [{ "type": "text", "text": "b" }] },
            { "role": "user", "content": [{ "type": "text", "text": "c" }] },
        ],
        "session_id": "work", "model": "sonnet", "fallback_model": "haiku", "thinking": false,
        "include_files": false, "stream": false,
        "mcp_servers": { "m": { "command": "cat", "args": ["-"], "env": { "A": "b" } } },
    })
}

fn anthropic() -> Value {
    json!({
        "model": "claude-sonnet-4-5", "max_tokens": 100,
        "system": [{ "type": "text", "text": "be brief" }],
        "messages": [
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": [{ "type": "text", "text": "b" }] },
            { "role": "user", "content": [{ "type": "text", "text": "c" }] },
        ],
        "metadata": { "user_id": "mallory" }, "stream": false,
        "temperature": 0.5, "top_p": 0.5, "top_k": 5, "stop_sequences": ["x"],
        "tools": [{ "name": "t", "input_schema": { "type": "object" } }], "tool_choice": { "type": "auto" },
    })
}

fn openai() -> Value {
    json!({
        "model": "claude-sonnet-4-5",
        "messages": [
            { "role": "system", "content": "be brief" },
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": "b" },
            { "role": "user", "content": [
                { "type": "text", "text": "c" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBORw0KGgo=" } },
            ] },
        ],
        "user": "mallory", "stream": false, "temperature": 0.5, "top_p": 0.5, "max_tokens": 100, "stop": ["x"],
        "tools": [{ "type": "function", "function": { "name": "t" } }], "tool_choice": "auto",
    })
}

fn responses() -> Value {
    json!({
        "model": "claude-sonnet-4-5", "instructions": "be brief",
        "input": [
            { "role": "user", "content": "a" },
            { "type": "message", "role": "assistant",
                "content": [{ "type": "output_text", "text": "b", "annotations": [] }] },
            { "role": "user", "content": [
                { "type": "input_text", "text": "c" },
                { "type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,iVBORw0KGgo=" },
            ] },
        ],
        "user": "mallory", "stream": false, "store": true, "metadata": { "a": "b" }, "background": false,
        "stream_options": { "include_obfuscation": false }, "text": { "format": { "type": "text" } },
        "temperature": 0.5, "max_output_tokens": 100, "reasoning": { "effort": "low" },
        "tools": [{ "type": "function", "name": "t" }], "tool_choice": "auto",
    })
}

impl Dialect {
    /// The field with the messages.
    pub(crate) fn list(&self) -> &'static str {
        if self.path == "/v1/responses" { "input" } else { "messages" }
    }

    /// A request of mallory's, always in the same conversation.
    pub(crate) async fn send(&self, site: &Site, body: impl Into<reqwest::Body>) -> Answer {
        let request = site.web().post(format!("{}{}", site.http, self.path)).body(body);
        let request = request.header("content-type", "application/json");
        Answer::of(request.header("x-pilotlight-user", "mallory").header("x-pilotlight-session", "work"))
            .await
    }

    /// A request with one message.
    pub(crate) fn plain(&self, text: &str) -> Value {
        let mut body = (self.good)();
        body[self.list()] = json!([{ "role": "user", "content": text }]);
        body
    }

    /// Whether a field may hold this value.
    pub(crate) fn takes(&self, field: &str, value: &Value) -> bool {
        let is_text_or_blocks = |name: &str| field.ends_with(name) && (value.is_string() || value.is_array());
        self.any.iter().any(|any| field.starts_with(any))
            || (value.is_null() && !self.required.contains(&field) && !field.starts_with("/messages/"))
            // A list of names that names none.
            || (field == "/mcp_servers" && *value == json!([]))
            || is_text_or_blocks("/content")
            || is_text_or_blocks("/system")
            || is_text_or_blocks("/input")
    }
}

/// An answer that is none of the server's failures: a good one, or a refusal with a type.
pub(crate) fn judge(answer: &Answer, what: &str) -> bool {
    if answer.status == 200 {
        return true;
    }
    assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
    let body = answer.json();
    assert!(body["error"]["type"].is_string() && body["error"]["message"].is_string(), "{what}: {body}");
    assert!(!answer.header("x-request-id").is_empty(), "{what}");
    false
}

/// No child has died, and the next turn is served.
pub(crate) async fn nobody_was_harmed(site: &Site) {
    for reason in DEATHS {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(site.metric("exits_total", &[&label]).await, 0.0, "children have died: {reason}");
    }
    assert_eq!(site.metric("actor_panics_total", &[]).await, 0.0);
    let next = site.turn("bob", "still").await.text();
    assert!(next.ends_with("still"), "{next}");
}

/// A body without these fields.
pub(crate) fn without(mut body: Value, fields: &[&str]) -> Value {
    body.as_object_mut().expect("an object").retain(|key, _| !fields.contains(&key.as_str()));
    body
}

/// Memory of its own that a process holds.
pub(crate) fn memory(program: &Program) -> u64 {
    let process = program.process();
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
