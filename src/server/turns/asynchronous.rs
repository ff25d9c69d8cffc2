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

use super::PendingTurn;
use super::control::TurnControl;
use super::recorded::Recorded;
use super::replay::{Attached, Ring, last_event_id, streamed};
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::dialect::responses::Background;
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
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);
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
    /// It is a response in the background.
    pub(crate) is_background: bool,
    control: Arc<TurnControl>,
    ended_at: OnceLock<SystemTime>,
    over: CancellationToken,
    waiting: Semaphore,
}

/// An answer with its events, if it is a stream.
pub(crate) struct Kept {
    recorded: Recorded,
    live: Live,
}

/// What a request for a turn finds.
pub(crate) enum Found {
    Running(Option<Arc<Background>>),
    Answered(Arc<Kept>),
    NotKept,
}

/// What there is of a turn beside its answer.
#[derive(Clone, Default)]
struct Live {
    /// Of a stream.
    events: Option<Arc<Ring>>,
    /// Of a response in the background.
    background: Option<Arc<Background>>,
}

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
    fn new(id: String, user: UserId, turn: &PendingTurn, form: ErrorForm, control: Arc<TurnControl>) -> Self {
        let (session, request) = (turn.conversation.name.clone(), &turn.request);
        Self {
            id,
            user,
            session,
            created: SystemTime::now(),
            is_stream: request.stream,
            form,
            is_background: request.response.as_ref().is_some_and(|asked| asked.is_background),
            control,
            ended_at: OnceLock::new(),
            over: CancellationToken::new(),
            waiting: Semaphore::new(MAX_WAITING),
        }
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

    pub(crate) fn background(&self) -> Option<&Background> {
        self.live.background.as_deref()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.recorded.headers
    }

    /// Message of the error in the place of an answer.
    pub(crate) fn error_message(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.document()?).ok()?;
        body["error"]["message"].as_str().map(str::to_owned)
    }

    /// The document; `None` for a stream.
    pub(crate) fn document(&self) -> Option<Vec<u8>> {
        let is_document = !self.recorded.body.is_empty();
        is_document.then(|| self.recorded.body.concat())
    }

    fn bytes(&self) -> usize {
        let events = self.live.events.as_ref().map_or(0, |events| events.bytes());
        self.recorded.bytes() + events + self.live.background.as_ref().map_or(0, |it| it.bytes())
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
        background: Option<Arc<Background>>,
        revoked: Option<CancellationToken>,
        request_id: String,
        answering: impl Future<Output = Response> + Send + 'static,
    ) {
        let events = turn.is_stream.then(|| Arc::new(Ring::new(EVENT_BYTES, turn.form, Arc::default())));
        let live = Live { events, background };
        let (id, user, session) = (turn.id.clone(), turn.user.clone(), turn.session.clone());
        self.store.lock_unpoisoned().begin(id, user, session, turn.clone(), live.clone());
        let webhooks = self.webhooks.clone();
        let running = Running::new(self.store.clone(), webhooks, turn, live);
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
            State::Running(live) => Found::Running(live.background.clone()),
            State::Answered(kept) => Found::Answered(kept.clone()),
            State::NotKept => Found::NotKept,
        };
        Some((entry.turn.clone(), found))
    }

    fn events(&self, id: &str) -> Result<Arc<Ring>, ApiError> {
        let events = match self.store.lock_unpoisoned().get(id).map(|entry| &entry.state) {
            Some(State::Running(live)) => live.events.clone(),
            Some(State::Answered(kept)) => kept.live.events.clone(),
            Some(State::NotKept) | None => return Err(not_kept()),
        };
        events.ok_or_else(|| {
            let message = "this turn is no stream: its request has no `stream: true`; GET /v1/turns/{id} has its answer";
            ApiError::conflict("turn_not_streamed", message, None)
        })
    }

    /// The events of a turn: from the first, or after the one that the header names; then live.
    pub(crate) fn follow(&self, id: &str, headers: &HeaderMap) -> Result<Response, ApiError> {
        let ring = self.events(id)?;
        let last = last_event_id(headers)?;
        if last.is_none() && !ring.is_whole() {
            let message =
                "the first events of this turn are not kept any more: the stream is longer than what is kept";
            return Err(ApiError::new(StatusCode::GONE, "events_gone", message));
        }
        Ok(streamed(Attached::again(ring, last, self.heartbeat)?))
    }

    /// The events of a response in the background, after the one with this number; then live.
    pub(crate) fn follow_after(&self, id: &str, last: u64) -> Result<Response, ApiError> {
        Ok(streamed(Attached::after_sequence(self.events(id)?, last, self.heartbeat)?))
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
