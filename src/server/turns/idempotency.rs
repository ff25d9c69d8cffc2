//! `Idempotency-Key`: a repeated request for a turn gets the same answer, and never a second turn.
//!
//! A task reads the turn into a record while the caller reads along. If the caller disconnects, the turn continues, so
//! that a repetition finds the answer. During the turn a repetition is 409; afterwards it gets the record for a time.
//! Requests that no child received are not recorded. Records live in memory only.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::prefer::Prefer;
use super::recorded::Recorded;
use super::{ON_DISCONNECT_HEADER, SESSION_HEADER};
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::Replayed;
use crate::server::auth::caller::Caller;
use crate::server::net::connection::Closing;
use crate::server::turns::mcp::MCP_HEADER;
use crate::support::lock::MutexExt;

mod records;
mod reservation;

use records::{Digest, Lookup, Named, Records};
pub(super) use reservation::Reservation;

const KEY_HEADER: &str = "idempotency-key";
/// Header that marks a replayed answer.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotent-replayed");
const MAX_KEY_BYTES: usize = 255;
const RUNNING_PAUSE: Duration = Duration::from_secs(1);

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
        request.update([u8::from(Prefer::of(headers).respond_async)]);
        let request = request.chain_update(body).finalize().into();
        let continues = headers.get(ON_DISCONNECT_HEADER).is_none_or(|value| value != "interrupt");
        Ok(Some(Self { id: id.as_bytes().to_vec(), request, continues }))
    }
}

pub(crate) struct Idempotency {
    records: Arc<Mutex<Records>>,
    tasks: TaskTracker,
    closing: Closing,
}

/// Result of a request with a key.
pub(super) enum Begin {
    /// The key is new: run the turn.
    New(Reservation),
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
        let named = Named { owner, user: digest(&[user.as_bytes()]), request: request.request };
        let known = self.records.lock_unpoisoned().begin(key, named, Instant::now());
        match known {
            Lookup::New => {
                let records = self.records.clone();
                Ok(Begin::New(Reservation::new(records, key, request.continues)))
            }
            Lookup::Answered(recorded) => Ok(Begin::Replay(again(recorded))),
            Lookup::Other => {
                let message = "this Idempotency-Key came with another request before; use a new key";
                Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", message))
            }
            Lookup::Running => {
                let message =
                    "the turn of this Idempotency-Key still runs; the same request gets its answer later";
                Err(ApiError::conflict("idempotency_running", message, Some(RUNNING_PAUSE)))
            }
            Lookup::NotKept => {
                let message = "the turn of this Idempotency-Key has run; its answer was cut off or too long to be kept. \
                               Ask for a new turn with a new key, or look at the session";
                Err(ApiError::conflict("idempotency_not_kept", message, None))
            }
            Lookup::Full { of_one: true } => {
                let message = "too many Idempotency-Keys of this user are remembered";
                Err(ApiError::limited("too_many_idempotency_keys", message, RUNNING_PAUSE))
            }
            Lookup::Full { of_one: false } => {
                Err(ApiError::overloaded("too many Idempotency-Keys are remembered", RUNNING_PAUSE))
            }
        }
    }

    /// Drops the keys and the answers of a deleted user.
    pub(crate) fn forget(&self, user: &UserId) {
        self.records.lock_unpoisoned().forget_user(digest(&[user.as_bytes()]));
    }

    /// Runs an accepted turn in a task that records the answer. The returned response reads along.
    pub(super) async fn record(
        &self,
        mut reservation: Reservation,
        (form, request_id): (ErrorForm, String),
        answering: impl Future<Output = Response> + Send + 'static,
    ) -> Result<Response, ApiError> {
        reservation.start();
        let (head, begun) = oneshot::channel();
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = reservation.fill(answering, head, form, &request_id) => {}
                () = closing.now.cancelled() => {}
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
