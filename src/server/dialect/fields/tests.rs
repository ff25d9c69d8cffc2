use serde_json::{Map, json};

use super::*;

const DIALECTS: [(Dialect, &str, &[&str]); 4] = [
    (Dialect::Legacy, "The original dialect", &["OriginalRequest", "OriginalMessageRequest"]),
    (Dialect::Anthropic, "The Anthropic dialect", &["AnthropicRequest"]),
    (Dialect::OpenAi, "The OpenAI dialect", &["ChatCompletionRequest"]),
    (Dialect::Responses, "The Responses API", &["ResponseRequest"]),
];

fn names(dialect: Dialect, body: &Value) -> Vec<String> {
    judge(dialect, body.to_string().as_bytes()).unwrap().names
}

#[test]
fn unknown_fields_are_named_in_every_dialect() {
    for (dialect, _, _) in DIALECTS {
        let list = if dialect == Dialect::Responses { "input" } else { "messages" };
        let body = json!({ list: [{ "role": "user", "content": "a", "weight": 1 }], "made_up": 7,
            "nothing": null, "a\r\nb,c": true });
        let ignored = judge(dialect, body.to_string().as_bytes()).unwrap();
        assert_eq!(ignored.names, ["a??b?c", "made_up", &format!("{list}.weight")]);
        assert!(ignored.is_refused_by_strict);
        let mut many = Map::new();
        (0..1000).for_each(|number| drop(many.insert(format!("{number}{}", "x".repeat(1000)), json!(1))));
        let names = names(dialect, &Value::Object(many));
        assert!(names.len() == MAX_NAMES && names.iter().all(|name| name.len() <= MAX_NAME));
    }
}

#[test]
fn fields_of_a_message_are_those_of_its_dialect() {
    use Dialect::{Anthropic, Legacy, OpenAi};
    let other = json!([{ "role": "assistant", "content": "a", "tool_calls": [], "function_call": {}, "audio": {},
        "refusal": "no", "tool_call_id": "t", "reasoning_content": "r", "annotations": [], "name": "n" }]);
    let body = json!({ "messages": other });
    for dialect in [Legacy, Anthropic] {
        let named = names(dialect, &body);
        for field in OPENAI_MESSAGE.iter().chain(&["name"]) {
            assert!(named.contains(&format!("messages.{field}")), "{field} in {named:?}");
        }
    }
    assert_eq!(names(OpenAi, &body), ["messages.name"]);
    let result = json!({ "messages": [{ "role": "function", "name": "n", "content": "a" }] });
    assert_eq!(names(OpenAi, &result), [] as [String; 0]);
    let nothing = json!({ "messages": [{ "role": "user", "content": "a", "name": null }] });
    assert_eq!(names(Anthropic, &nothing), [] as [String; 0]);
}

#[test]
fn fields_of_the_api_are_used_named_or_refused() {
    use Dialect::{Anthropic, Legacy, OpenAi, Responses};
    let named = [
        (Legacy, json!({ "thinking": true }), "thinking"),
        (Anthropic, json!({ "max_tokens": 1 }), "max_tokens"),
        (Anthropic, json!({ "service_tier": "standard_only" }), "service_tier"),
        (Anthropic, json!({ "context_management": { "edits": [] } }), "context_management"),
        (Anthropic, json!({ "container": "c" }), "container"),
        (Anthropic, json!({ "output_config": { "effort": "high" } }), "output_config.effort"),
        (Anthropic, json!({ "metadata": { "user_id": "u", "other": 1 } }), "metadata.other"),
        (Anthropic, json!({ "thinking": { "type": "adaptive" } }), "thinking"),
        (Anthropic, json!({ "diagnostics": { "previous_message_id": "m" } }), "diagnostics"),
        (Anthropic, json!({ "fallbacks": [{ "model": "m" }] }), "fallbacks"),
        (OpenAi, json!({ "prompt_cache_options": { "ttl": "30m" } }), "prompt_cache_options"),
        (OpenAi, json!({ "parallel_tool_calls": false }), "parallel_tool_calls"),
        (OpenAi, json!({ "verbosity": "low" }), "verbosity"),
        (OpenAi, json!({ "web_search_options": {} }), "web_search_options"),
        (OpenAi, json!({ "store": true }), "store"),
        (Responses, json!({ "max_output_tokens": 1 }), "max_output_tokens"),
        (Responses, json!({ "text": { "verbosity": "low" } }), "text.verbosity"),
        (Responses, json!({ "include": ["reasoning.encrypted_content"] }), "include"),
        (Responses, json!({ "truncation": "auto" }), "truncation"),
        (
            Responses,
            json!({ "input": [{ "type": "function_call", "call_id": "c", "name": "n", "weight": 1 }] }),
            "input.weight",
        ),
        (
            OpenAi,
            json!({ "stream_options": { "include_obfuscation": true } }),
            "stream_options.include_obfuscation",
        ),
    ];
    for (dialect, body, name) in named {
        assert_eq!(names(dialect, &body), [name], "{body}");
    }
    for (dialect, body) in [
        (Anthropic, json!({ "inference_geo": "us" })),
        (Anthropic, json!({ "thread": { "type": "create" } })),
        (Anthropic, json!({ "compaction": { "type": "summarize" } })),
        (Anthropic, json!({ "billing_policy": { "type": "billing_policy", "bill_to": "user_profile" } })),
        (OpenAi, json!({ "moderation": { "model": "omni-moderation-latest" } })),
        (OpenAi, json!({ "function_call": { "name": "t" } })),
        (OpenAi, json!({ "modalities": ["text", "audio"] })),
        (Responses, json!({ "prompt": { "id": "p" } })),
        (Responses, json!({ "moderation": { "model": "m" } })),
    ] {
        let refused = judge(dialect, body.to_string().as_bytes()).unwrap_err();
        assert_eq!(refused.code(), "unsupported_field", "{body}");
    }
    for (dialect, body) in [
        (Legacy, json!({ "thinking": false, "stream": true })),
        (
            Anthropic,
            json!({ "tools": [], "tool_choice": { "type": "auto" }, "service_tier": "auto", "system": "s",
                "fallbacks": [], "billing_policy": { "type": "billing_policy", "bill_to": "self" } }),
        ),
        (
            OpenAi,
            json!({ "response_format": { "type": "text" }, "modalities": ["text"], "tool_choice": "auto",
            "logprobs": false, "stream_options": { "include_usage": true }, "user": "u", "stop": null }),
        ),
        (
            Responses,
            json!({ "text": { "format": { "type": "text" } }, "truncation": "disabled", "background": true,
                "tools": [], "include": [], "store": false, "metadata": { "a": "b" }, "reasoning": {},
                "input": [{ "type": "reasoning", "id": "rs", "summary": [] },
                    { "type": "message", "role": "user", "content": "a", "id": "m", "status": "completed" }] }),
        ),
    ] {
        assert_eq!(judge(dialect, body.to_string().as_bytes()).unwrap(), Ignored::default(), "{body}");
    }
    let required = judge(Anthropic, br#"{"max_tokens":1}"#).unwrap();
    assert!(!required.is_refused_by_strict, "no request could be without it");
}

#[test]
fn openapi_knows_the_same_fields() {
    let document: Value = serde_json::from_str(include_str!("../../api/openapi.json")).unwrap();
    let mut wrong = Vec::new();
    for (dialect, _, schemas) in DIALECTS {
        for schema in schemas {
            let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
            let table = tables::of(dialect).iter().filter(|field| !field.name.contains('.'));
            for field in table.clone() {
                let described = &properties.get(field.name).unwrap_or(&Value::Null)["description"];
                let text = described.as_str().unwrap_or_default();
                let right = match field.fate {
                    Fate::Used => properties.contains_key(field.name),
                    Fate::Ignored | Fate::Unheeded => {
                        text.starts_with("Ignored:") && text.contains(field.why)
                    }
                    Fate::Refused => text.starts_with("Refused:") && text.contains(field.why),
                };
                if !right {
                    wrong.push(format!("{schema}.{}: {:?}: {}", field.name, field.fate, field.why));
                }
            }
            // A body with credentials is in the legacy dialect.
            let others = properties.keys().filter(|name| *name != "oauth_credentials");
            for name in others.filter(|name| !table.clone().any(|field| field.name == **name)) {
                wrong.push(format!("{schema}.{name} is in no table"));
            }
        }
    }
    assert!(wrong.is_empty(), "openapi.json differs: {wrong:#?}");
}

/// The tables as in the documentation.
fn documented() -> String {
    let mut text = String::new();
    for (dialect, title, _) in DIALECTS {
        text += &format!("### {title}\n\n| field | | |\n|---|---|---|\n");
        for field in tables::of(dialect) {
            let fate = match field.fate {
                Fate::Used => "used",
                Fate::Ignored => "ignored",
                Fate::Unheeded => "ignored, also with `http.strict`",
                Fate::Refused => "refused",
            };
            let harmless: Vec<_> = field
                .harmless
                .iter()
                .map(|it| match it.strip_prefix('~') {
                    Some(kind) => format!("`{{\"type\": \"{kind}\"}}`"),
                    None => format!("`{it}`"),
                })
                .collect();
            let except = if harmless.is_empty() {
                String::new()
            } else {
                format!(", but for {}", harmless.join(", "))
            };
            text += &format!("| `{}` | {fate}{except} | {} |\n", field.name, field.why);
        }
        text.push('\n');
    }
    text
}

#[test]
fn documentation_holds_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http-api.md");
    let written = std::fs::read_to_string(path).unwrap();
    let tables = documented();
    assert!(written.contains(tables.trim_end()), "docs/http-api.md must hold:\n{tables}");
}
