//! A small Messages API on loopback, for the real CLI (`ANTHROPIC_BASE_URL`). The user's message scripts its
//! answer (`script`); every request is written down; tests wait for what happens in it instead of sleeping.

use std::collections::HashSet;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::SOON;
use crate::answer::Answer;
use crate::request::{Fate, Request};

/// The running API; it ends with this value.
pub struct Api {
    url: String,
    book: Book,
    _serving: JoinSet<()>,
}

/// All that happened so far; each waiting test watches it.
pub type Book = watch::Sender<Entries>;

#[derive(Default)]
pub struct Entries {
    pub requests: Vec<Request>,
    /// The holds that tests have let go.
    pub released: HashSet<String>,
}

impl Api {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let url = format!("http://{}", listener.local_addr().expect("the port just bound"));
        let book = Book::default();
        let routes = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(async || Json(json!({"input_tokens": 4321}))))
            .fallback(async || Json(json!({})))
            .layer(DefaultBodyLimit::disable())
            .with_state(book.clone());
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, routes).await.expect("the API serves") });
        Self { url, book, _serving: serving }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.book.borrow().requests.clone()
    }

    /// How many requests came for messages that contain `needle`.
    pub fn count(&self, needle: &str) -> usize {
        self.book.borrow().requests.iter().filter(|request| request.last().contains(needle)).count()
    }

    /// Waits until `count` requests have reached `[[hold:NAME]]`.
    pub async fn entered(&self, name: &str, count: usize) {
        let reached = |request: &&Request| request.held.iter().any(|held| held == name);
        let met = |entries: &Entries| entries.requests.iter().filter(reached).count() >= count;
        self.until(&format!("{count} requests at [[hold:{name}]]"), met).await;
    }

    /// Lets all requests at `[[hold:NAME]]` go on, those to come as well.
    pub fn release(&self, name: &str) {
        self.book.send_modify(|entries| entries.released.extend([name.to_owned()]));
    }

    /// Waits until the caller of a message that contains `needle` has gone away before the answer's end.
    pub async fn aborted(&self, needle: &str) {
        let met = |entries: &Entries| {
            entries
                .requests
                .iter()
                .any(|request| request.fate == Fate::Aborted && request.last().contains(needle))
        };
        self.until(&format!("the request of `{needle}` aborted"), met).await;
    }

    /// Waits for anything that the book records.
    pub async fn until(&self, what: &str, met: impl FnMut(&Entries) -> bool) {
        let mut changes = self.book.subscribe();
        if timeout(SOON, changes.wait_for(met)).await.is_err() {
            panic!("not within {SOON:?}: {what}; requests so far: {:#?}", self.requests());
        }
    }
}

async fn messages(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let request = Request::read(uri.path(), &headers, &body);
    let mut answer = Answer::to(request, book);
    if let Some(instead) = answer.instead().await {
        answer.complete();
        return instead;
    }
    if !answer.streams() {
        return answer.whole().await.into_response();
    }
    let events = stream::unfold(answer, |mut answer| async {
        let events = answer.events().await?;
        Some((events.map(Bytes::from), answer))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}
