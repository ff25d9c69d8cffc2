//! Asynchronous turns (`Prefer: respond-async`): accepted at once, answered later.
//!
//! A task reads the response of the turn, which is the one that its caller would have got, and keeps it under an
//! unguessable id. Events of a stream go into a ring, from which callers follow. The turn needs no caller: it ends by
//! itself, by a request to cancel it, or with the key that asked for it. Answers live in memory only.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::TurnControl;
use super::recorded::Recorded;
use super::replay::{Attached, Ring, last_event_id, streamed};
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::net::connection::Closing;
use crate::server::webhooks::Webhooks;
use crate::support::lock::MutexExt;

mod accept;
mod running;
mod store;

pub(super) use accept::Accepted;
use running::Running;
use store::State;

/// Maximum bytes of events kept of one turn, while it runs and afterwards. A long text has some hundred KiB, as a stream
/// ten times as much. The number of running turns is bounded by that of children.
const EVENT_BYTES: usize = 2 << 20;
/// Maximum time that a request waits for the end of a turn: less than what common proxies allow.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);
/// Maximum requests that wait for one turn at a time. Others are answered at once.
const MAX_WAITING: usize = 4;
/// Time to read the rest of all answers when the service stops.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of the sweep: an answer may stay in memory for that longer.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// A turn that runs without its caller, and afterwards.
pub(crate) struct AsyncTurn {
    pub(crate) id: String,
    pub(crate) user: UserId,
    pub(crate) session: String,
    pub(crate) created: SystemTime,
    pub(crate) is_stream: bool,
    form: ErrorForm,
    control: Arc<TurnControl>,
    ended_at: OnceLock<SystemTime>,
    over: CancellationToken,
    waiting: Semaphore,
}

/// An answer with its events, if it is a stream.
pub(crate) struct Kept {
    recorded: Recorded,
    events: Option<Arc<Ring>>,
}

/// What a request for a turn finds.
pub(crate) enum Found {
    Running,
    Answered(Arc<Kept>),
    NotKept,
}

type Live = Option<Arc<Ring>>;
type Store = store::Store<Arc<AsyncTurn>, Live, Arc<Kept>>;

#[derive(Clone)]
pub(crate) struct AsyncTurns {
    store: Arc<Mutex<Store>>,
    heartbeat: Duration,
    webhooks: Webhooks,
    tasks: TaskTracker,
    closing: Closing,
}

impl AsyncTurn {
    fn new(
        id: String,
        user: UserId,
        session: String,
        is_stream: bool,
        form: ErrorForm,
        control: Arc<TurnControl>,
    ) -> Self {
        let (created, ended_at) = (SystemTime::now(), OnceLock::new());
        let (over, waiting) = (CancellationToken::new(), Semaphore::new(MAX_WAITING));
        Self { id, user, session, created, is_stream, form, control, ended_at, over, waiting }
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.control.has_begun()
    }

    pub(crate) fn ended_at(&self) -> Option<SystemTime> {
        self.ended_at.get().copied()
    }

    /// Tokens and cost, if the CLI has reported the end.
    pub(crate) fn spent(&self) -> Option<(crate::model::Usage, f64)> {
        self.control.spent()
    }

    /// Code of the error in the place of an answer, once the turn has ended.
    pub(crate) fn error(&self) -> Option<&'static str> {
        self.control.error()
    }

    /// Interrupts it, if it runs.
    pub(crate) fn cancel(&self) {
        if !self.over.is_cancelled() {
            self.control.cancel();
        }
    }

    /// Waits for the end. Returns whether there was room to wait.
    pub(crate) async fn wait(&self, time: Duration, closing: &CancellationToken) -> bool {
        let Ok(_room) = self.waiting.try_acquire() else { return false };
        tokio::select! {
            () = self.over.cancelled() => {}
            () = sleep(time.min(MAX_WAIT)) => {}
            () = closing.cancelled() => {}
        }
        true
    }
}

impl Kept {
    pub(crate) fn status(&self) -> StatusCode {
        self.recorded.status
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.recorded.headers
    }

    /// The document; `None` for a stream.
    pub(crate) fn document(&self) -> Option<Vec<u8>> {
        let is_document = !self.recorded.body.is_empty();
        is_document.then(|| self.recorded.body.concat())
    }

    fn bytes(&self) -> usize {
        self.recorded.bytes() + self.events.as_ref().map_or(0, |events| events.bytes())
    }
}

impl AsyncTurns {
    pub(crate) fn new(heartbeat: Duration, webhooks: Webhooks, closing: Closing) -> Self {
        Self { store: Arc::default(), heartbeat, webhooks, tasks: TaskTracker::new(), closing }
    }

    /// Runs an accepted turn in a task of its own.
    fn start(
        &self,
        turn: Arc<AsyncTurn>,
        revoked: Option<CancellationToken>,
        request_id: String,
        answering: impl Future<Output = Response> + Send + 'static,
    ) {
        let events = turn.is_stream.then(|| Arc::new(Ring::new(EVENT_BYTES, turn.form, Arc::default())));
        let (id, user, session) = (turn.id.clone(), turn.user.clone(), turn.session.clone());
        self.store.lock_unpoisoned().begin(id, user, session, turn.clone(), events.clone());
        let webhooks = self.webhooks.clone();
        let running = Running::new(self.store.clone(), webhooks, turn, events);
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = running.run(answering, revoked, &request_id) => {}
                () = closing.now.cancelled() => {}
            }
        });
    }

    /// A turn and what there is of it.
    pub(crate) fn find(&self, id: &str) -> Option<(Arc<AsyncTurn>, Found)> {
        let mut store = self.store.lock_unpoisoned();
        store.sweep(Instant::now());
        let entry = store.get(id)?;
        let found = match &entry.state {
            State::Running(_) => Found::Running,
            State::Answered(kept) => Found::Answered(kept.clone()),
            State::NotKept => Found::NotKept,
        };
        Some((entry.turn.clone(), found))
    }

    /// The events of a turn: from the first, or after the one that the header names; then live.
    pub(crate) fn follow(&self, id: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
        let events = match self.store.lock_unpoisoned().get(id).map(|entry| &entry.state) {
            Some(State::Running(events)) => events.clone(),
            Some(State::Answered(kept)) => kept.events.clone(),
            Some(State::NotKept) | None => return Err(not_kept()),
        };
        let ring = events.ok_or_else(|| {
            let message = "this turn is no stream: its request has no `stream: true`; GET /v1/turns/{id} has its answer";
            ApiError::conflict("turn_not_streamed", message, None)
        })?;
        let last = last_event_id(headers)?;
        if last.is_none() && !ring.is_whole() {
            let message =
                "the first events of this turn are not kept any more: the stream is longer than what is kept";
            return Err(ApiError::new(StatusCode::GONE, "events_gone", message));
        }
        Ok(streamed(Attached::again(ring, last, self.heartbeat)?))
    }

    /// Forgets a turn with its answer.
    pub(crate) fn remove(&self, id: &str) {
        self.store.lock_unpoisoned().remove(id);
    }

    /// Drops the turns of a deleted session.
    pub(crate) fn forget(&self, user: &UserId, session: &str) {
        self.store.lock_unpoisoned().forget(user, Some(session));
    }

    /// Drops the turns of a deleted user.
    pub(crate) fn forget_user(&self, user: &UserId) {
        self.store.lock_unpoisoned().forget(user, None);
    }

    /// Drops answers that are too old.
    pub(crate) async fn sweep(self) {
        loop {
            sleep(SWEEP_INTERVAL).await;
            self.store.lock_unpoisoned().sweep(Instant::now());
        }
    }

    /// Waits until all turns are over, at most for a time. They have ended in their sessions.
    pub(crate) async fn settle(&self) {
        self.tasks.close();
        timeout(SETTLE_TIMEOUT, self.tasks.wait()).await.ok();
    }

    /// Cancelled when the service stops.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing.gracefully
    }
}

pub(crate) fn not_kept() -> ApiError {
    let message = "the answer of this turn is not kept any more: it was too long, or too old, or the user has too many of them";
    ApiError::new(StatusCode::GONE, "turn_not_kept", message)
}
