//! `Idempotency-Key`: a request for a turn that is sent again with the same key gets the same answer, and never a second
//! turn.
//!
//! A turn with a key is read by a task of its own into a record; the caller reads along, and if it leaves the turn goes
//! on, so that the one who comes again finds the answer. While it runs a repetition is 409; afterwards it gets the record
//! for a time. What the child has not seen is not remembered. All of it is in memory: a restart forgets it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_core::Stream;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{ON_DISCONNECT_HEADER, SESSION_HEADER};
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::{Replayed, with_request_id};
use crate::server::auth::caller::Caller;
use crate::server::net::connection::Closing;
use crate::server::turns::mcp::MCP_HEADER;
use crate::support::lock::MutexExt;

mod records;

use records::{Digest, Known, LONGEST, Recorded, Records};

/// The header with the key.
const KEY_HEADER: &str = "idempotency-key";
/// Says that an answer is a repetition.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key.
const MAX_KEY_BYTES: usize = 255;
/// Pieces of an answer that wait for the caller; a slow one slows its own CLI, as without a key.
const WAITING_PIECES: usize = 4;
/// When to come again while the turn runs.
const RUNNING_PAUSE: Duration = Duration::from_secs(1);

/// A key with the digest of its request.
pub(super) struct IdempotencyKey {
    id: Vec<u8>,
    request: Digest,
    /// The turn goes on without its caller, unless the request says otherwise.
    goes_on: bool,
}

impl IdempotencyKey {
    /// The key of a request, if it has one. Reads the whole body once.
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let Some(id) = values.next() else { return Ok(None) };
        if values.next().is_some() || !(1..=MAX_KEY_BYTES).contains(&id.len()) {
            let message = format!("{KEY_HEADER} must be there once and have 1 to {MAX_KEY_BYTES} bytes");
            return Err(ApiError::invalid("invalid_header", message));
        }
        let mut request = Sha256::new();
        for name in [SESSION_HEADER.as_str(), ON_DISCONNECT_HEADER, MCP_HEADER] {
            let value = headers.get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            request.update((value.len() as u64).to_le_bytes());
            request.update(value);
        }
        let request = request.chain_update(body).finalize().into();
        let goes_on = headers.get(ON_DISCONNECT_HEADER).is_none_or(|value| value != "interrupt");
        Ok(Some(Self { id: id.as_bytes().to_vec(), request, goes_on }))
    }
}

/// All that is remembered.
pub(crate) struct Idempotency {
    records: Arc<Mutex<Records>>,
    tasks: TaskTracker,
    closing: Closing,
}

impl std::fmt::Debug for Idempotency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idempotency(redacted)")
    }
}

/// What a request with a key gets.
pub(super) enum Begin {
    /// A turn.
    New(Reservation),
    /// The answer that there was.
    Replay(Response),
}

impl Idempotency {
    pub(crate) fn new(tasks: TaskTracker, closing: Closing) -> Self {
        Self { records: Arc::default(), tasks, closing }
    }

    /// The right to run a turn for this key, or what became of it.
    pub(super) fn begin(
        &self,
        asked: &IdempotencyKey,
        caller: &Caller,
        user: &UserId,
        route: &str,
    ) -> Result<Begin, ApiError> {
        let owner = digest(&[caller.key_id().unwrap_or_default().as_bytes(), user.as_bytes()]);
        let key = digest(&[&owner, route.as_bytes(), &asked.id]);
        let known = self.records.lock_unpoisoned().begin(key, owner, asked.request, Instant::now());
        match known {
            Known::New => {
                let records = self.records.clone();
                Ok(Begin::New(Reservation { records, key, goes_on: asked.goes_on, left: Left::Nothing }))
            }
            Known::Answered(recorded) => Ok(Begin::Replay(again(recorded))),
            Known::Other => {
                let message = "this Idempotency-Key came with another request before; use a new key";
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message))
            }
            Known::Running => {
                let message =
                    "the turn of this Idempotency-Key still runs; the same request gets its answer later";
                Err(ApiError::conflict("idempotency_running", message, Some(RUNNING_PAUSE)))
            }
            Known::NotKept => {
                let message = "the turn of this Idempotency-Key has run; its answer was cut off or too long to be kept. \
                               Ask for a new turn with a new key, or look at the session";
                Err(ApiError::conflict("idempotency_not_kept", message, None))
            }
            Known::Full { of_one: true } => {
                let message = "too many Idempotency-Keys of this user are remembered";
                Err(ApiError::limited("too_many_idempotency_keys", message, RUNNING_PAUSE))
            }
            Known::Full { of_one: false } => {
                Err(ApiError::overloaded("too many Idempotency-Keys are remembered", RUNNING_PAUSE))
            }
        }
    }

    /// Has an accepted turn answered by a task of its own, and recorded. What is returned reads along.
    pub(super) async fn record(
        &self,
        mut reservation: Reservation,
        (form, request_id): (ErrorForm, String),
        answering: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, ApiError> {
        reservation.left = Left::ATurn;
        let (head, begun) = oneshot::channel();
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = reservation.fill(answering, head, form, &request_id) => {}
                () = closing.now.cancelled() => return,
            }
            if reservation.left == Left::ATurn {
                reservation.end(None);
            }
        });
        begun.await.map_err(|_| TurnError::Internal("the turn was not read").into())
    }
}

/// The parts, each with its length before it.
fn digest(parts: &[&[u8]]) -> Digest {
    let hash =
        |hash: Sha256, part: &&[u8]| hash.chain_update((part.len() as u64).to_le_bytes()).chain_update(part);
    parts.iter().fold(Sha256::new(), hash).finalize().into()
}

fn again(recorded: Recorded) -> Response {
    let mut response = Response::new(Body::from(recorded.body.concat()));
    *response.status_mut() = recorded.status;
    *response.headers_mut() = recorded.headers;
    response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    response.extensions_mut().insert(Replayed);
    response
}

/// What a key leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// No turn was accepted.
    Nothing,
    /// A turn runs.
    ATurn,
    /// It has ended.
    AnAnswer,
    /// It is forgotten; the key may be another request's by now.
    Forgotten,
}

/// The right to run the turn of a key. Dropped before a turn was accepted it forgets the key, dropped in mid-turn it
/// remembers that there was one.
pub(super) struct Reservation {
    records: Arc<Mutex<Records>>,
    key: Digest,
    goes_on: bool,
    left: Left,
}

impl Reservation {
    fn end(&mut self, recorded: Option<Recorded>) {
        self.records.lock_unpoisoned().end(self.key, recorded, Instant::now());
        self.left = Left::AnAnswer;
    }

    fn forget(&mut self) {
        self.records.lock_unpoisoned().forget(self.key);
        self.left = Left::Forgotten;
    }

    /// Reads the answer to its end, or to that of its reader if the turn ends with it.
    async fn fill(
        &mut self,
        answering: impl Future<Output = Response>,
        mut head: oneshot::Sender<Response>,
        form: ErrorForm,
        request_id: &str,
    ) {
        let response = tokio::select! {
            response = answering => response,
            () = head.closed(), if !self.goes_on => return,
        };
        if let Some(error) = response.extensions().get::<ApiError>() {
            if error.is_refusal() {
                self.forget();
            } else {
                self.end(of_error(error, form, request_id, response.headers()).await);
            }
            // Whoever has left comes again.
            head.send(response).ok();
            return;
        }
        let (parts, mut body) = response.into_parts();
        let mut headers = parts.headers.clone();
        with_request_id(&mut headers, request_id);
        let mut recorded = Recorded { status: parts.status, headers, body: Vec::new() };
        let (live, pieces) = mpsc::channel(WAITING_PIECES);
        let is_read = head.send(Response::from_parts(parts, Body::from_stream(Pieces(pieces)))).is_ok();
        let mut live = Some(live).filter(|_| is_read);
        let (mut bytes, mut is_whole) = (0, true);
        loop {
            let gone = async {
                match &live {
                    Some(live) => live.closed().await,
                    None => std::future::ready(()).await,
                }
            };
            let frame = tokio::select! {
                biased;
                () = gone, if !self.goes_on => return,
                frame = body.frame() => frame,
            };
            let Some(frame) = frame else { break };
            let Ok(frame) = frame else {
                is_whole = false;
                break;
            };
            let Ok(piece) = frame.into_data() else { continue };
            bytes += piece.len();
            if bytes <= LONGEST {
                recorded.body.push(piece.clone());
            } else {
                recorded.body = Vec::new();
            }
            if let Some(reader) = &live
                && reader.send(piece).await.is_err()
            {
                live = None;
            }
        }
        self.end(Some(recorded).filter(|_| is_whole && bytes <= LONGEST));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.left {
            Left::Nothing => self.records.lock_unpoisoned().forget(self.key),
            Left::ATurn => self.records.lock_unpoisoned().end(self.key, None, Instant::now()),
            Left::AnAnswer | Left::Forgotten => {}
        }
    }
}

/// The record of a turn that ended with an error before its first event.
async fn of_error(error: &ApiError, form: ErrorForm, request_id: &str, sent: &HeaderMap) -> Option<Recorded> {
    let (mut parts, body) = error.render(form, request_id).into_parts();
    if let Some(session) = sent.get(&SESSION_HEADER) {
        parts.headers.insert(SESSION_HEADER, session.clone());
    }
    with_request_id(&mut parts.headers, request_id);
    let body = body.collect().await.ok()?.to_bytes();
    Some(Recorded { status: parts.status, headers: parts.headers, body: vec![body] })
}

/// The answer on its way to the caller who reads along.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}
