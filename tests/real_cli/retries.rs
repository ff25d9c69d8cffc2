//! An API that keeps failing: in every dialect and with every kind of model name the caller gets the typed error after
//! the configured retries, and a stream shows them while they last.

use serde_json::{Value, json};
use tokio::time::timeout;

use super::bench::Bench;
use crate::common::SOON;
use crate::common::client::Client;

/// Requests to the API for one turn: the first, and `cli.api_retries` more.
const REQUESTS: usize = 2;
const STATUSES: [u16; 3] = [529, 500, 504];
/// By whom no model is named, an alias, another, and a full id.
const MODELS: [(&str, Option<&str>); 4] = [
    ("none", None),
    ("sonnet", Some("sonnet")),
    ("opus", Some("opus")),
    ("full", Some("claude-haiku-4-5-20251001")),
];

/// They make a body one of the original dialect.
fn credentials() -> Value {
    json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Dialect {
    Original,
    Anthropic,
    OpenAi,
}

impl Dialect {
    const ALL: [Self; 3] = [Self::Original, Self::Anthropic, Self::OpenAi];

    fn path(self) -> &'static str {
        match self {
            Self::Original | Self::Anthropic => "/v1/messages",
            Self::OpenAi => "/v1/chat/completions",
        }
    }

    fn body(self, model: Option<&str>, text: &str, stream: bool) -> Value {
        let mut body = json!({ "messages": [{ "role": "user", "content": text }], "stream": stream });
        if let Some(model) = model {
            body["model"] = model.into();
        }
        match self {
            Self::Original => body["oauth_credentials"] = credentials(),
            Self::Anthropic => body["max_tokens"] = 1000.into(),
            Self::OpenAi => {}
        }
        body
    }

    /// What a stream shows of a retry.
    fn sign(self) -> &'static str {
        match self {
            Self::Original => r#""subtype":"api_retry""#,
            // Before the answer has begun it is a comment.
            Self::Anthropic => ": ping",
            Self::OpenAi => ": ",
        }
    }

    /// The error in the body of an answer, or in the last event of a stream.
    fn error(self, answer: &str, stream: bool) -> Value {
        let data = answer.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = data.filter_map(|data| serde_json::from_str(data).ok()).collect();
        let body = if stream {
            events.into_iter().rfind(|event| event["error"].is_object())
        } else {
            serde_json::from_str(answer).ok()
        };
        body.unwrap_or_else(|| panic!("no error: {answer}"))["error"].clone()
    }
}

/// One turn that must fail; the next one of the same session is served by the same process.
async fn fails(
    bench: &Bench,
    client: &Client,
    row: (&str, Option<&str>),
    dialect: Dialect,
    upstream: u16,
    stream: bool,
) {
    let (user, model) = row;
    let text = format!("[[error:{upstream}]] {user} {dialect:?}");
    let about = format!("{text}, stream: {stream}");
    let (status, answer) = client.post(dialect.path(), user, &dialect.body(model, &text, stream)).await;
    let error = dialect.error(&answer, stream);
    assert_eq!(error["code"], "server_error", "{about}: {answer}");
    let kind = match (dialect, upstream) {
        // Its streams name the code alone.
        (Dialect::Original, _) if stream => Value::Null,
        (_, 529) => "overloaded_error".into(),
        (_, 504) => "timeout_error".into(),
        _ => "api_error".into(),
    };
    assert_eq!(error["type"], kind, "{about}: {answer}");
    assert!(
        error["message"].as_str().is_some_and(|text| text.contains(&upstream.to_string())),
        "{about}: {answer}"
    );
    if stream {
        assert_eq!(status, 200, "{about}: {answer}");
        assert!(answer.contains(dialect.sign()), "{about}: {answer}");
    } else {
        assert_eq!(status, upstream, "{about}: {answer}");
    }
    assert_eq!(bench.api.count(&text), REQUESTS, "{about}");
}

/// As configured by default: the caller of an overloaded API is not kept waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_ends_soon_with_the_default_retries() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve("").await;
    let client = server.client();
    for (dialect, stream) in [(Dialect::Anthropic, false), (Dialect::OpenAi, true)] {
        let text = format!("[[error:529]] {dialect:?}");
        let body = dialect.body(Some("sonnet"), &text, stream);
        let asked = client.post(dialect.path(), "alice", &body);
        let (_, answer) = timeout(SOON, asked).await.expect("the error comes within seconds");
        assert_eq!(dialect.error(&answer, stream)["type"], "overloaded_error", "{answer}");
        assert!(!stream || answer.contains(dialect.sign()), "{answer}");
        let retries = pilotlight::Config::default().cli.api_retries as usize;
        assert_eq!(bench.api.count(&text), 1 + retries, "{text}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_api_is_a_typed_error_after_the_retries() {
    let Some(bench) = Bench::of_newest().await else { return };
    let server = bench.serve_cli(&format!("api_retries = {}\n", REQUESTS - 1), "").await;
    let client = server.client();
    // One process per name; the dialects share it.
    let rows = MODELS.iter().enumerate().map(|(number, row)| {
        let (bench, client) = (&bench, &client);
        async move {
            let mut number = number;
            let dialects = Dialect::ALL.into_iter().filter(|it| row.1.is_some() || *it == Dialect::Original);
            for dialect in dialects {
                for upstream in STATUSES {
                    number += 1;
                    fails(bench, client, *row, dialect, upstream, number.is_multiple_of(2)).await;
                }
            }
            let fine = format!("[[say:fine]] {}", row.0);
            let body = Dialect::Original.body(row.1, &fine, false);
            let (status, answer) = client.post(Dialect::Original.path(), row.0, &body).await;
            assert!(status == 200 && answer.contains("fine"), "{status}: {answer}");
        }
    });
    futures_util::future::join_all(rows).await;
    let metrics = client.metrics().await;
    assert_eq!(metrics.sum("pilotlight_spawns_total", &["outcome=\"ok\""]), MODELS.len() as f64);
    assert_eq!(metrics.sum("pilotlight_restarts_total", &[]), 0.0);
}
