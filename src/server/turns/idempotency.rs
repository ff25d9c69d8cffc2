//! `Idempotency-Key`: a repeated request for a turn gets the same answer, and never a second turn.
//!
//! A task reads the turn into a record while the caller reads along. If the caller disconnects, the turn continues, so
//! that a repetition finds the answer. During the turn a repetition is 409; afterwards it gets the record for a time.
//! Requests that no child received are not recorded. Records live in memory only.

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

/// Header with the key.
const KEY_HEADER: &str = "idempotency-key";
/// Header that marks a replayed answer.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Longest key.
const MAX_KEY_BYTES: usize = 255;
/// Maximum buffered pieces for the caller; a slow caller slows its own CLI, as without a key.
const WAITING_PIECES: usize = 4;
/// Retry delay while the turn runs.
const RUNNING_PAUSE: Duration = Duration::from_secs(1);

/// A key and the digest of its request.
pub(super) struct IdempotencyKey {
    id: Vec<u8>,
    request: Digest,
    /// Whether the turn continues without its caller.
    continues: bool,
}

impl IdempotencyKey {
    /// Parses the key of a request and hashes its body.
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
        let continues = headers.get(ON_DISCONNECT_HEADER).is_none_or(|value| value != "interrupt");
        Ok(Some(Self { id: id.as_bytes().to_vec(), request, continues }))
    }
}

/// All records.
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

/// Result of a request with a key.
pub(super) enum Begin {
    /// The key is new: run the turn.
    New(Reservation),
    /// The recorded answer.
    Replay(Response),
}

impl Idempotency {
    pub(crate) fn new(tasks: TaskTracker, closing: Closing) -> Self {
        Self { records: Arc::default(), tasks, closing }
    }

    /// Reserves the key for a turn, or returns its recorded answer.
    pub(super) fn begin(
        &self,
        request: &IdempotencyKey,
        caller: &Caller,
        user: &UserId,
        route: &str,
    ) -> Result<Begin, ApiError> {
        let owner = digest(&[caller.key_id().unwrap_or_default().as_bytes(), user.as_bytes()]);
        let key = digest(&[&owner, route.as_bytes(), &request.id]);
        let known = self.records.lock_unpoisoned().begin(key, owner, request.request, Instant::now());
        match known {
            Known::New => {
                let records = self.records.clone();
                Ok(Begin::New(Reservation {
                    records,
                    key,
                    continues: request.continues,
                    progress: Progress::Reserved,
                }))
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

    /// Runs an accepted turn in a task that records the answer. The returned response reads along.
    pub(super) async fn record(
        &self,
        mut reservation: Reservation,
        (form, request_id): (ErrorForm, String),
        answering: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, ApiError> {
        reservation.progress = Progress::Running;
        let (head, begun) = oneshot::channel();
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = reservation.fill(answering, head, form, &request_id) => {}
                () = closing.now.cancelled() => return,
            }
            if reservation.progress == Progress::Running {
                reservation.end(None);
            }
        });
        begun.await.map_err(|_| TurnError::Internal("the turn was not read").into())
    }
}

/// Hashes the parts, each with its length.
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

/// State of a reserved key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// No turn accepted yet.
    Reserved,
    /// The turn runs.
    Running,
    /// The turn has ended.
    Ended,
    /// Removed; the key may belong to another request by now.
    Removed,
}

/// Exclusive right to run the turn of a key. Dropped before a turn was accepted, it removes the key; dropped during the
/// turn, it keeps the key without an answer.
pub(super) struct Reservation {
    records: Arc<Mutex<Records>>,
    key: Digest,
    continues: bool,
    progress: Progress,
}

impl Reservation {
    fn end(&mut self, recorded: Option<Recorded>) {
        self.records.lock_unpoisoned().end(self.key, recorded, Instant::now());
        self.progress = Progress::Ended;
    }

    fn forget(&mut self) {
        self.records.lock_unpoisoned().forget(self.key);
        self.progress = Progress::Removed;
    }

    /// Reads the answer to its end, or until its reader disconnects if the turn ends with it.
    async fn fill(
        &mut self,
        answering: impl Future<Output = Response>,
        mut head: oneshot::Sender<Response>,
        form: ErrorForm,
        request_id: &str,
    ) {
        let response = tokio::select! {
            response = answering => response,
            () = head.closed(), if !self.continues => return,
        };
        if let Some(error) = response.extensions().get::<ApiError>() {
            if error.is_refusal() {
                self.forget();
            } else {
                self.end(of_error(error, form, request_id, response.headers()).await);
            }
            // A disconnected caller repeats the request.
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
                () = gone, if !self.continues => return,
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
        match self.progress {
            Progress::Reserved => self.records.lock_unpoisoned().forget(self.key),
            Progress::Running => self.records.lock_unpoisoned().end(self.key, None, Instant::now()),
            Progress::Ended | Progress::Removed => {}
        }
    }
}

/// Record of a turn that ended with an error before its first event.
async fn of_error(error: &ApiError, form: ErrorForm, request_id: &str, sent: &HeaderMap) -> Option<Recorded> {
    let (mut parts, body) = error.render(form, request_id).into_parts();
    if let Some(session) = sent.get(&SESSION_HEADER) {
        parts.headers.insert(SESSION_HEADER, session.clone());
    }
    with_request_id(&mut parts.headers, request_id);
    let body = body.collect().await.ok()?.to_bytes();
    Some(Recorded { status: parts.status, headers: parts.headers, body: vec![body] })
}

/// Stream of the answer for the caller that reads along.
struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}
