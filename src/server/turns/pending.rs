//! An accepted turn and its response: a stream of events or one document, attached to its caller or detached.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::body::{Gathering, TurnFiles};
use super::control::TurnControl;
use super::conversation::Conversation;
use super::judge::Judge;
use super::log::TurnLog;
use super::{IGNORED_HEADER, TurnBody};
use crate::adapter::AnswerReader;
use crate::model::ids::UserId;
use crate::server::api::error::{ApiError, ErrorForm};
use crate::server::app::App;
use crate::server::auth::caller;
use crate::server::auth::limits::TurnPermit;
use crate::server::dialect::{AnswerContext, TurnRequest, renderer};
use crate::server::files::WorkspaceWatch;
use crate::turn::Turn;

/// Always on the heap: the futures that respond hold it in several places, and would be as large as all together.
pub(super) struct PendingTurn {
    pub(super) app: Arc<App>,
    pub(super) request: Box<TurnRequest>,
    pub(super) conversation: Conversation,
    pub(super) turn: Turn,
    pub(super) files: Option<WorkspaceWatch>,
    /// Other turns of the session run before this one.
    pub(super) is_queued: bool,
    pub(super) permit: TurnPermit,
    pub(super) log: TurnLog,
    /// Compares the answer with what is expected of it.
    pub(super) judge: Option<Box<Judge>>,
    pub(super) control: Option<Arc<TurnControl>>,
}

impl PendingTurn {
    /// Streams or collects the answer. A detached turn continues without its caller.
    pub(super) async fn respond(
        self: Box<Self>,
        user: UserId,
        is_detached: bool,
        form: ErrorForm,
    ) -> Result<Response, ApiError> {
        let name = self.conversation.name.clone();
        let ignored = self.request.without_effect().join(",");
        let context = self.context();
        let (app, control) = (self.app.clone(), self.control.clone());
        let mut response = match (self.request.stream, is_detached) {
            (true, false) => event_stream(Body::from_stream(self.stream(&context).await?)),
            // The rarer ways allocate their futures, so that the usual one stays small.
            (true, true) => {
                let begin = async move { self.stream(&context).await };
                let attached = Box::pin(app.replays.detach(&user, &name, form, control, begin)).await?;
                event_stream(Body::from_stream(attached))
            }
            (false, false) => Json(Box::pin(self.collect(&context)).await?).into_response(),
            (false, true) => {
                let collect = async move { self.collect(&context).await };
                Box::pin(app.replays.collect(&user, &name, form, control, collect)).await?
            }
        };
        if !ignored.is_empty() {
            response.headers_mut().insert(IGNORED_HEADER, caller::header_text(&ignored));
        }
        Ok(response)
    }

    pub(super) fn context(&self) -> AnswerContext {
        let (session, model) = (self.conversation.name.clone(), self.request.model.clone());
        AnswerContext { session, created: now(), model }
    }

    /// Starts the event stream. A failure before its first event is a status.
    async fn stream(mut self: Box<Self>, context: &AnswerContext) -> Result<TurnBody, ApiError> {
        let config = self.app.pilot.config();
        let heartbeat = config.http.heartbeat;
        let reader = AnswerReader::new(config.cli.partial_messages);
        let reader = if self.request.expected.is_document() { reader.with_final_text() } else { reader };
        let render = renderer(&self.request, context, reader, self.conversation.held.needs_text());
        let render = (self.request.dialect, render);
        let (started_once, held) = (self.app.started_once.clone(), self.conversation.held);
        let mut body = TurnBody::new(self.turn, render, started_once, held, self.permit, heartbeat, self.log);
        body.judge = self.judge;
        if let Some(watch) = self.files.take() {
            body.send_files(Box::new(Watched { app: self.app.clone(), watch, is_queued: self.is_queued }));
        }
        body.begin().await?;
        Ok(body)
    }
}

struct Watched {
    app: Arc<App>,
    watch: WorkspaceWatch,
    is_queued: bool,
}

impl TurnFiles for Watched {
    fn turn_begins(&mut self) {
        if std::mem::take(&mut self.is_queued) {
            self.watch.look_again();
        }
    }

    fn gather(self: Box<Self>) -> Gathering {
        gather(self.app, self.watch)
    }
}

/// Collects the files that the turn wrote; few answers do that at a time.
pub(super) fn gather(app: Arc<App>, watch: WorkspaceWatch) -> Gathering {
    Box::pin(async move {
        // The semaphore is never closed.
        let _permit = app.gathering.acquire().await;
        watch.written().await
    })
}

pub(super) fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Without this, nginx buffers events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
