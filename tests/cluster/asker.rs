//! A caller who takes what comes: an answer, an error, or nothing at all. It checks that each turn has one end.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::common::shown;
use crate::common::sse::{Frame, Reader};

/// More than any turn of these tests takes. What takes longer hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// How a request has ended.
#[derive(Debug)]
pub enum End {
    /// The text, and whether the turn has reported that context is lost.
    Good { text: String, is_context_lost: bool },
    /// A stream that ended with an error event.
    Failed { code: String, events: Vec<Value> },
    /// An error in the place of a stream.
    Refused { status: u16, code: String },
    /// No connection: nothing listens.
    Unreached,
    /// The connection broke.
    Cut(String),
}

impl End {
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good { .. })
    }

    /// The text of a turn that went well, with nothing lost.
    #[track_caller]
    pub fn text(&self) -> &str {
        match self {
            Self::Good { text, is_context_lost: false } => text,
            other => panic!("not a good end: {other:?}"),
        }
    }

    /// Code of the error; the form of the end where there is none.
    pub fn code(&self) -> &str {
        match self {
            Self::Good { .. } => "good",
            Self::Failed { code, .. } | Self::Refused { code, .. } => code,
            Self::Unreached => "unreached",
            Self::Cut(_) => "cut",
        }
    }
}

/// Who asks. Cheap to clone.
#[derive(Clone)]
pub struct Asker {
    web: reqwest::Client,
    pub user: String,
    pub conversation: String,
}

impl Asker {
    pub fn new(user: &str, conversation: &str) -> Self {
        // No connection is kept: a node that ends closes it at any time.
        let web = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        Self { web, user: user.to_owned(), conversation: conversation.to_owned() }
    }

    /// A whole turn at the node of this address.
    pub async fn ask(&self, site: &str, text: &str) -> End {
        self.asked(site, text).await.0
    }

    /// The same with the time that it took, and the node that answered.
    pub async fn asked(&self, site: &str, text: &str) -> (End, Duration, Option<String>) {
        let began = now();
        let asked = timeout(ENDS_WITHIN, self.turn(site, text)).await;
        let (end, node) = asked.unwrap_or_else(|_| panic!("a turn of {} hangs: {text}", self.user));
        (end, began.elapsed(), node)
    }

    async fn turn(&self, site: &str, text: &str) -> (End, Option<String>) {
        let request = self.web.post(format!("{site}/v1/messages/keepalive"));
        let request = request.header("x-pilotlight-user", &self.user);
        let request = request.header("x-pilotlight-session", &self.conversation);
        let body = json!({ "messages": [{ "role": "user", "content": text }] });
        let answer = match request.json(&body).send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return (End::Unreached, None),
            Err(error) => return (End::Cut(format!("{error:?}")), None),
        };
        let node =
            answer.headers().get("x-pilotlight-node").and_then(|it| Some(it.to_str().ok()?.to_owned()));
        let status = answer.status().as_u16();
        if status == 200 {
            return (stream(answer).await, node);
        }
        let body = answer.text().await.unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("status {status}: {body}"));
        let code = body["error"]["code"].as_str().expect("a code").to_owned();
        (End::Refused { status, code }, node)
    }
}

/// The clock on the wall of the outside observer.
pub fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "real processes live in real time")]
    Instant::now()
}

/// Reads a stream, which has one end.
async fn stream(answer: reqwest::Response) -> End {
    let (mut reader, mut events, mut is_done) = (Reader::default(), Vec::new(), false);
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return End::Cut(format!("{error:?} after {}", shown(&events))),
        };
        for frame in reader.push(&piece) {
            assert!(!is_done, "{frame:?} after the end: {}", shown(&events));
            match frame {
                Frame::Event(event) => events.push(event),
                Frame::Done => is_done = true,
                Frame::Comment(_) => {}
            }
        }
    }
    if !is_done {
        return End::Cut(format!("no end after {}", shown(&events)));
    }
    let of_kind = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    match (of_kind("result").as_slice(), of_kind("error").as_slice()) {
        ([result], []) if result["is_error"] == false => End::Good {
            text: result["result"].as_str().expect("a text").to_owned(),
            is_context_lost: events.iter().any(|event| event["subtype"] == "context_lost"),
        },
        ([], [error]) => {
            let code = error["error"]["code"].as_str().expect("a code").to_owned();
            End::Failed { code, events }
        }
        _ => panic!("not one end: {}", shown(&events)),
    }
}
