//! Bodies, headers and names that nobody means well with, in every dialect: a typed refusal, or an answer; never a
//! failure of the server, never the end of a child.

use serde_json::{Value, json};

use super::asking::{DIALECTS, TRUSTING, judge, memory, nobody_was_harmed, without};
use crate::common::program::{Answer, Program, message, place};

/// The places of all values in a document.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut inside = |key: &str, inner: &Value| {
        found.push(format!("{at}/{key}"));
        places(inner, &format!("{at}/{key}"), found);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| inside(key, inner)),
        Value::Array(all) => {
            all.iter().enumerate().for_each(|(index, inner)| inside(&index.to_string(), inner))
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_type_in_any_field_is_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, TRUSTING).await;
    let wrong =
        [json!(null), json!(true), json!(-1), json!(1.5), json!("text"), json!([]), json!([[7]]), json!({})];
    let mut accepted = Vec::new();
    for dialect in DIALECTS {
        let good = (dialect.good)();
        let answer = dialect.send(&site, good.to_string()).await;
        assert_eq!(answer.status, 200, "{} {}", dialect.path, answer.body);
        let mut fields = Vec::new();
        places(&good, "", &mut fields);
        for field in &fields {
            let right = good.pointer(field).unwrap();
            for value in wrong.iter().filter(|value| !is_same_kind(value, right)) {
                let mut body = good.clone();
                *body.pointer_mut(field).unwrap() = value.clone();
                let answer = dialect.send(&site, body.to_string()).await;
                let what = format!("{} {field} = {value}", dialect.path);
                if judge(&answer, &what) && !dialect.takes(field, value) {
                    accepted.push(what);
                }
            }
        }
    }
    assert!(accepted.is_empty(), "accepted: {accepted:#?}");
    nobody_was_harmed(&site).await;
}

fn is_same_kind(one: &Value, other: &Value) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_shapes_are_refused_or_answered() {
    let place = place();
    let (_program, site) = Program::ready(&place, TRUSTING).await;
    for dialect in DIALECTS {
        let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
        let plain = dialect.plain("hello").to_string();
        let refused = [
            String::new(),
            "null".into(),
            "[]".into(),
            deep.clone(),
            plain.replace("\"hello\"", &deep),
            plain.replace("\"hello\"", &format!("[{{\"type\":\"text\",\"text\":\"a\",\"x\":{deep}}}]")),
            format!("{{\"{}\":[],{}", dialect.list(), plain.strip_prefix('{').unwrap()),
            format!("{plain} {{}}"),
            plain.replace("hello", "\\ud800\n"),
            plain.replace("\"user\"", "\"robot\""),
            plain.replace("\"user\"", "\"\""),
            plain.replace("\"user\"", "\"USER\""),
            plain.replace("\"hello\"", "\"\""),
            plain.replace("\"hello\"", "\" \\n\\t\""),
            plain.replace("\"hello\"", "[]"),
            plain.replace("\"hello\"", "[{}]"),
        ];
        for body in refused {
            let what = format!("{} {}", dialect.path, body.chars().take(200).collect::<String>());
            let answer = dialect.send(&site, body).await;
            assert!(!judge(&answer, &what), "{what} was accepted");
        }
        let either = [
            plain.replace("\"hello\"", "[{\"type\":\"text\",\"text\":\"\"}]"),
            plain.replace("\"hello\"", "[{\"type\":\"text\"}]"),
            plain.replace("\"hello\"", "[{\"type\":\"unheard of\"}]"),
            plain.replace("\"hello\"", "[{\"type\":\"tool_result\",\"tool_use_id\":\"x\",\"content\":\"y\"}]"),
            plain.replace(
                "\"hello\"",
                "[{\"type\":\"image\",\"source\":{\"type\":\"base64\",\"media_type\":\"image/png\",\"data\":\"%%\"}}]",
            ),
            plain.replace("\"hello\"", "[{\"type\":\"image\",\"source\":7}]"),
            plain.replace("\"hello\"", "[{\"type\":\"image_url\",\"image_url\":{\"url\":\"data:image/png,%%\"}}]"),
            plain.replace("\"hello\"", "[{\"type\":\"image_url\",\"image_url\":{\"url\":\"file:///etc/passwd\"}}]"),
            plain.replace("hello", "\\u0000\\r\\n\\u2028{\\\"type\\\":\\\"user\\\"}"),
        ];
        for body in either {
            judge(&dialect.send(&site, body.clone()).await, &body);
        }
    }
    nobody_was_harmed(&site).await;
}

/// Long histories and instructions are refused or answered.
#[tokio::test(flavor = "multi_thread")]
async fn long_history_is_answered_or_refused() {
    let place = place();
    let (program, site) = Program::ready(&place, TRUSTING).await;
    let before = memory(&program);
    for dialect in DIALECTS {
        let said = (0..10_000).map(|number| {
            let role = if number % 2 == 0 { "user" } else { "assistant" };
            json!({ "role": role, "content": format!("number {number}") })
        });
        let mut body = dialect.plain("last");
        let last = body[dialect.list()][0].clone();
        body[dialect.list()] = said.chain([last]).collect();
        judge(&dialect.send(&site, body.to_string()).await, "10,000 messages");

        let mut body = dialect.plain("[[say:done]]");
        body[if dialect.list() == "input" { "instructions" } else { "system" }] = "s".repeat(5 << 20).into();
        judge(&dialect.send(&site, body.to_string()).await, "5 MB of instructions");
        let mut body = dialect.plain("[[say:done]]");
        let instruction = json!({ "role": "system", "content": "s".repeat(5 << 20) });
        body[dialect.list()].as_array_mut().unwrap().insert(0, instruction);
        judge(&dialect.send(&site, body.to_string()).await, "5 MB of instructions as a message");

        let answer = dialect.send(&site, vec![b' '; 100 << 20]).await;
        assert_eq!(answer.status, 413, "100 MB: {answer:?}");
        judge(&answer, "100 MB");
    }
    let grown = memory(&program).saturating_sub(before);
    assert!(grown < 128 << 20, "{grown} bytes are kept of what was long");
    nobody_was_harmed(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_neither_headers_nor_paths() {
    let place = place();
    let (_program, site) = Program::ready(&place, TRUSTING).await;
    let long = "n".repeat(10_000);
    let names = [
        "../../../etc",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "a\r\nx-injected: yes",
        "a\0b",
        "%0d%0ax-injected: yes",
        &long,
    ];
    for dialect in DIALECTS {
        for name in names {
            for field in ["/session_id", "/metadata/user_id", "/user"] {
                let mut body = dialect.plain("hello");
                let Some(named) = body.pointer_mut(field) else { continue };
                *named = name.into();
                let request = site.web().post(format!("{}{}", site.http, dialect.path)).json(&body);
                // The owner in the body must not be contradicted by a header.
                let is_owner = field != "/session_id";
                let request = if is_owner { request } else { request.header("x-pilotlight-user", "mallory") };
                let answer = Answer::of(request).await;
                judge(&answer, &format!("{} {field} = {name:.40}", dialect.path));
                assert!(answer.headers.get("x-injected").is_none(), "{answer:?}");
            }
            let header = reqwest::header::HeaderValue::from_bytes(name.as_bytes());
            // What is no header at all cannot be sent.
            let Ok(header) = header else { continue };
            for role in ["x-pilotlight-user", "x-pilotlight-session"] {
                let other =
                    if role == "x-pilotlight-user" { "x-pilotlight-session" } else { "x-pilotlight-user" };
                let body = without(dialect.plain("hello"), &["session_id", "metadata", "user"]);
                let request = site.web().post(format!("{}{}", site.http, dialect.path)).json(&body);
                let answer = Answer::of(request.header(role, header.clone()).header(other, "mallory")).await;
                judge(&answer, &format!("{} {role}: {name:.40}", dialect.path));
                assert!(answer.headers.get("x-injected").is_none(), "{answer:?}");
            }
        }
    }
    let mut outside: Vec<_> =
        std::fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["data", "served.toml"]);
    nobody_was_harmed(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_missing_and_nobody_is_met() {
    let place = place();
    let (_program, site) = Program::ready(&place, TRUSTING).await;
    // Without any owner: the credentials name one only in the original dialect.
    for dialect in DIALECTS {
        let mut body = without(dialect.plain("hello"), &["oauth_credentials", "metadata", "user"]);
        body["max_tokens"] = json!(100);
        let answer = Answer::of(site.web().post(format!("{}{}", site.http, dialect.path)).json(&body)).await;
        assert_eq!(answer.status, 400, "{} {answer:?}", dialect.path);
        judge(&answer, dialect.path);
    }
    // The name of another user's conversation is a name of one's own.
    let mut secret = message("the secret is heliotrope");
    secret["session_id"] = json!("shared-name");
    assert_eq!(Answer::of(site.asking("alice", &secret)).await.status, 200);
    for dialect in DIALECTS {
        let mut body = dialect.plain("[[recall]] [[say:.]]");
        body["session_id"] = json!("shared-name");
        let request = site.web().post(format!("{}{}", site.http, dialect.path)).json(&body);
        let answer = Answer::of(
            request.header("x-pilotlight-user", "mallory").header("x-pilotlight-session", "shared-name"),
        );
        let answer = answer.await;
        assert!(!answer.body.contains("heliotrope"), "{answer:?}");
    }
    for path in ["", "/permissions", "/events"] {
        let looked = site.web().get(format!("{}/v1/sessions/shared-name{path}", site.http));
        let answer = Answer::of(looked.header("x-pilotlight-user", "eve")).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
    }
    for request in [
        site.web().post(format!("{}/v1/sessions/shared-name/interrupt", site.http)),
        site.web()
            .post(format!("{}/v1/sessions/shared-name/permissions/x", site.http))
            .json(&json!({"behavior": "allow"})),
        site.web().delete(format!("{}/v1/sessions/shared-name?purge=true", site.http)),
    ] {
        let answer = Answer::of(request.header("x-pilotlight-user", "eve")).await;
        assert_eq!(answer.status, 404, "{answer:?}");
    }
    let mut recalled = message("[[recall]]");
    recalled["session_id"] = json!("shared-name");
    assert!(Answer::of(site.asking("alice", &recalled)).await.text().contains("heliotrope"));
    nobody_was_harmed(&site).await;
}
