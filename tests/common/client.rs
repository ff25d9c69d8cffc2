//! A client of the server, as an existing caller would be written.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::metrics::Scrape;
use crate::sse::{Frame, Reader};
use crate::{SOON, eventually_some, shown};

/// The longest that any turn of these tests takes, waiting in a queue included.
const TURN_WITHIN: Duration = Duration::from_secs(90);

/// Cheap to clone.
#[derive(Clone)]
pub struct Client {
    web: reqwest::Client,
    http: String,
    admin: String,
}

impl Client {
    pub fn new(http: &str, admin: &str) -> Self {
        let web = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { web, http: http.into(), admin: admin.into() }
    }

    /// Where callers go.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// Where the operator goes.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Sends one message and reads the answer to its end.
    pub async fn turn(&self, user: &str, text: &str) -> Turn {
        self.stream(user, text).await.rest().await
    }

    /// Sends one message; the events come as they are sent. Dropping it is hanging up.
    pub async fn stream(&self, user: &str, text: &str) -> Streaming {
        let body = json!({"messages": [{"role": "user", "content": text}]});
        let request = self.web.post(format!("{}/v1/messages/keepalive", self.http));
        let answer = timeout(TURN_WITHIN, request.header("x-pilotlight-user", user).json(&body).send());
        let answer = answer.await.expect("the answer begins in time").expect("an answer");
        let status = answer.status().as_u16();
        if status != 200 {
            panic!("status {status} for a turn: {}", answer.text().await.unwrap_or_default());
        }
        let pieces = answer.bytes_stream().map(|piece| piece.expect("the stream is not cut").to_vec());
        Streaming {
            pieces: pieces.boxed(),
            reader: Reader::default(),
            ready: Vec::new(),
            seen: Turn::default(),
        }
    }

    /// Sends any bytes as a turn's body; status and body of the answer.
    pub async fn raw(&self, user: &str, body: Vec<u8>) -> (u16, String) {
        let request = self.web.post(format!("{}/v1/messages/keepalive", self.http));
        let request = request.header("x-pilotlight-user", user).header("content-type", "application/json");
        let answer = request.body(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }

    /// Posts a body anywhere, for the conversation `default`; status and body of the answer.
    pub async fn post(&self, path: &str, user: &str, body: &Value) -> (u16, String) {
        let request = self.web.post(format!("{}{path}", self.http)).header("x-pilotlight-user", user);
        let request = request.header("x-pilotlight-session", "default").json(body);
        let answer = timeout(TURN_WITHIN, request.send()).await.expect("the answer begins in time");
        let answer = answer.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }

    /// Waits until turns are taken.
    pub async fn ready(&self) {
        let is_ready = async || (self.get("/readyz").await.0 == 200).then_some(());
        eventually_some("/readyz says 200", SOON, is_ready).await;
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.web.get(format!("{}{path}", self.http)).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    }

    pub async fn metrics(&self) -> Scrape {
        let answer = self.web.get(format!("{}/metrics", self.admin)).send().await.expect("an answer");
        Scrape::parse(&answer.text().await.expect("a body"))
    }

    /// The pool's entries whose child lives: what `active_users` says.
    pub async fn active(&self) -> Vec<Active> {
        let (status, body) = self.get("/v1/pool/stats").await;
        assert_eq!(status, 200, "{body}");
        let stats: Value = serde_json::from_str(&body).expect("JSON");
        let users = stats["active_users"].as_array().expect("active_users").clone();
        let entries = users.iter().map(|entry| Active {
            user: entry["user_id"].as_str().expect("user_id").into(),
            pid: entry["pid"].as_i64().and_then(|pid| pid.try_into().ok()),
            alive: entry["alive"].as_bool().expect("alive"),
        });
        entries.filter(|entry| entry.alive).collect()
    }

    /// The process that serves the only user.
    pub async fn pid(&self) -> i32 {
        let active = self.active().await;
        match active.as_slice() {
            [only] => only.pid.expect("an active user has a process"),
            other => panic!("not one active user but {other:?}"),
        }
    }
}

/// One user with a living child, from `/v1/pool/stats`.
#[derive(Debug, Clone)]
pub struct Active {
    pub user: String,
    pub pid: Option<i32>,
    pub alive: bool,
}

/// An answer on its way.
pub struct Streaming {
    pieces: BoxStream<'static, Vec<u8>>,
    reader: Reader,
    ready: Vec<Frame>,
    seen: Turn,
}

impl Streaming {
    /// The next event; nothing when the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            while !self.ready.is_empty() {
                match self.ready.remove(0) {
                    Frame::Event(event) => {
                        assert!(!self.seen.done, "an event after [DONE]: {event}");
                        self.seen.events.push(event.clone());
                        return Some(event);
                    }
                    Frame::Done => self.seen.done = true,
                    Frame::Comment(_) => {}
                }
            }
            let piece = timeout(TURN_WITHIN, self.pieces.next()).await;
            let piece =
                piece.unwrap_or_else(|_| panic!("the stream is silent after {}", shown(&self.seen.events)));
            let Some(piece) = piece else {
                assert!(self.reader.is_empty(), "the stream ended within an event");
                return None;
            };
            self.ready = self.reader.push(&piece);
        }
    }

    /// Reads up to the first event that `wanted` names.
    pub async fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        while let Some(event) = self.next().await {
            if wanted(&event) {
                return event;
            }
        }
        panic!("the stream ended before {what}: {}", shown(&self.seen.events));
    }

    /// Reads up to the first piece of the answer's text.
    pub async fn until_text(&mut self) {
        self.until("a text delta", |event| event["event"]["delta"]["type"] == "text_delta").await;
    }

    /// All events from the first to the last.
    pub async fn rest(mut self) -> Turn {
        while self.next().await.is_some() {}
        self.seen
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    pub events: Vec<Value>,
    /// Whether the stream ended with `[DONE]`.
    pub done: bool,
}

impl Turn {
    /// The final text of a turn that went well; fails for any other.
    pub fn text(&self) -> &str {
        assert!(self.done, "no [DONE] after {}", shown(&self.events));
        assert!(self.error().is_none(), "a turn went wrong: {}", shown(&self.events));
        let results: Vec<_> = self.events.iter().filter(|event| event["type"] == "result").collect();
        match results.as_slice() {
            [only] if only["is_error"] == false => only["result"].as_str().expect("result"),
            _ => panic!("not one good result: {}", shown(&self.events)),
        }
    }

    /// The pieces of the answer as they came, put together.
    pub fn deltas(&self) -> String {
        let pieces = self.events.iter().map(|event| &event["event"]["delta"]);
        pieces
            .filter(|delta| delta["type"] == "text_delta")
            .filter_map(|delta| delta["text"].as_str())
            .collect()
    }

    /// What the error event says, if there is one: its code and message.
    pub fn error(&self) -> Option<(&str, &str)> {
        let event = self.events.iter().find(|event| event["type"] == "error")?;
        let error = &event["error"];
        Some((error["code"].as_str().expect("code"), error["message"].as_str().expect("message")))
    }
}
