//! The task of an asynchronous turn: reads its response to the end, and keeps it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::store::LONGEST;
use super::{AsyncTurn, Kept, Live, Store};
use crate::error::TurnError;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::api::router::with_request_id;
use crate::server::auth::revoked::last_event;
use crate::server::turns::recorded::Recorded;
use crate::server::turns::replay::{Ring, split};
use crate::server::webhooks::{EndedTurn, Webhooks};
use crate::support::lock::MutexExt;

/// Time within which a cancelled turn ends by itself. After that it is dropped.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(15);

/// A turn while it runs. Dropped, it ends in the store, with what was recorded until then.
pub(super) struct Running {
    store: Arc<Mutex<Store>>,
    webhooks: Webhooks,
    turn: Arc<AsyncTurn>,
    live: Live,
    recorded: Option<Recorded>,
}

impl Running {
    pub(super) fn new(
        store: Arc<Mutex<Store>>,
        webhooks: Webhooks,
        turn: Arc<AsyncTurn>,
        live: Live,
    ) -> Self {
        Self { store, webhooks, turn, live, recorded: None }
    }

    /// Reads the answer to its end, or until the turn was cancelled and does not end.
    pub(super) async fn run(
        mut self,
        answering: impl Future<Output = Response>,
        revoked: Option<CancellationToken>,
        request_id: &str,
    ) {
        let (control, form, events) = (self.turn.control.clone(), self.turn.form, self.live.events.clone());
        let with_key = async {
            match revoked {
                Some(revoked) => revoked.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let dropped = async {
            tokio::select! {
                () = with_key => control.cancel(),
                () = control.cancelled() => {}
            }
            sleep(CANCEL_TIMEOUT).await;
        };
        let recorded = tokio::select! {
            biased;
            recorded = read(answering, events.as_deref(), form, request_id) => recorded,
            () = dropped => {
                let error = ApiError::from(TurnError::Cancelled);
                if let Some(events) = &events {
                    // A reader that takes nothing must not hold the turn.
                    timeout(CANCEL_TIMEOUT, events.push(&last_event(&error, form, true))).await.ok();
                }
                Recorded::of_error(&error, form, request_id, &HeaderMap::new()).await
            }
        };
        self.recorded = recorded;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(events) = &self.live.events {
            events.end();
        }
        // The first end counts.
        self.turn.ended_at.set(SystemTime::now()).ok();
        let kept = self.recorded.take().map(|recorded| {
            let kept = Kept { recorded, live: std::mem::take(&mut self.live) };
            let bytes = kept.bytes();
            (Arc::new(kept), bytes)
        });
        self.store.lock_unpoisoned().end(&self.turn.id, kept, Instant::now());
        self.turn.over.cancel();
        let AsyncTurn { id, user, session, .. } = &*self.turn;
        let (error, spent) = (self.turn.error(), self.turn.spent());
        self.webhooks.turn_ended(&EndedTurn { id: Some(id), user, session, error, spent });
    }
}

/// Reads a response as its caller would; `None` if it is too long to be kept.
async fn read(
    answering: impl Future<Output = Response>,
    events: Option<&Ring>,
    form: ErrorForm,
    request_id: &str,
) -> Option<Recorded> {
    let response = answering.await;
    if let Some(error) = response.extensions().get::<ApiError>() {
        if let Some(events) = events {
            events.push(&last_event(error, form, true)).await;
        }
        return Recorded::of_error(error, form, request_id, response.headers()).await;
    }
    let (parts, mut body) = response.into_parts();
    let mut recorded = Recorded { status: parts.status, headers: parts.headers, body: Vec::new() };
    with_request_id(&mut recorded.headers, request_id);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.ok()?.into_data() else { continue };
        if let Some(events) = events {
            for event in split(&piece) {
                events.push(event).await;
            }
            continue;
        }
        bytes += piece.len();
        if bytes > LONGEST {
            return None;
        }
        recorded.body.push(piece);
    }
    Some(recorded)
}
