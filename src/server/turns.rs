//! A request for a turn, in any dialect: from its head and body to its response.
//!
//! [`TurnHandler`] parses the body, finds user and conversation, and sends the prompt to the session. [`PendingTurn`]
//! then responds: with a [`TurnBody`] that streams events, or with one document. Dropping the response drops the turn,
//! which interrupts it. Detached turns are read by a task of their own ([`replay`]), and so are those whose answer is
//! asked for later ([`asynchronous`]).

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use tokio::time::Instant;

use super::api::router::{BodyRead, RequestId};
use super::app::App;
use super::auth::caller::Caller;

pub(super) mod asynchronous;
mod body;
mod conclusion;
pub(super) mod control;
mod conversation;
mod document;
mod handler;
mod heartbeat;
pub(super) mod idempotency;
mod judge;
mod log;
pub(crate) mod mcp;
mod pending;
pub(super) mod prefer;
mod recorded;
pub(super) mod replay;
mod responses;
pub(crate) mod restrict;

use body::TurnBody;
use handler::{Parse, TurnHandler};
use pending::PendingTurn;

/// Header with the name of the conversation, in requests and responses.
pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-session");
/// Header that lists fields without effect.
pub(super) const IGNORED_HEADER: &str = "x-pilotlight-ignored";
/// Header that selects what happens to the turn when its caller disconnects.
const ON_DISCONNECT_HEADER: &str = "x-pilotlight-on-disconnect";

/// Header that switches off the CLI's own tools: the session is a plain model with memory.
const TOOLS_HEADER: &str = "x-pilotlight-tools";

/// Route of a dialect: turns in requests that `parse` reads.
pub(super) fn post(parse: Parse) -> MethodRouter<Arc<App>> {
    routing::post(move |app, id, caller, request| handle(app, id, caller, request, parse))
}

async fn handle(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Extension(caller): Extension<Caller>,
    request: Request,
    parse: Parse,
) -> Response {
    let begin = Instant::now();
    let (parts, body) = request.into_parts();
    let received = async {
        app.refuse_when_draining()?;
        app.bodies.receive(&caller, body).await
    };
    let received = match received.await {
        Ok(received) => received,
        Err(error) => return error.into_response(),
    };
    let mut response = TurnHandler { app, caller, parts, request_id, begin }.run(received, parse).await;
    response.extensions_mut().insert(BodyRead);
    response
}
