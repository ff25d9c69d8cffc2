//! `POST /v1/messages/keepalive`: one message into the warm session, its events out.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::app::App;
use super::body::Received;
use super::caller::{Caller, header_text};
use super::error::ApiError;
use super::files::Watch;
use super::request::{Asked, parse};
use super::router::{BodyRead, RequestId};
use super::sse::{Answer, Gathering};
use crate::error::TurnError;
use crate::ids::{DEFAULT_CONVERSATION, MAX_NAME_BYTES};
use crate::session::{Session, SessionState};
use crate::turn::Turn;

/// The header that names the conversation.
const SESSION_HEADER: &str = "x-pilotlight-session";
/// The header that lists fields without effect.
const IGNORED_HEADER: &str = "x-pilotlight-ignored";
/// A body longer than this is parsed on a thread for blocking work: a megabyte takes some milliseconds.
const PARSE_INLINE: usize = 256 << 10;

pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let begin = Instant::now();
    app.refuse_when_draining()?;
    let (parts, body) = request.into_parts();
    let received = app.bodies().receive(&parts.headers, body).await?;
    let mut response = answer(app, caller, received, (request_id, begin)).await.into_response();
    response.extensions_mut().insert(BodyRead);
    Ok(response)
}

async fn answer(
    app: Arc<App>,
    caller: Caller,
    received: Received,
    log: (String, Instant),
) -> Result<Response, ApiError> {
    let asked = read(&app, received.bytes.clone()).await?;
    drop(received);
    let user = app.owner(&caller, None, asked.credentials.as_ref()).await?;
    let conversation = asked.conversation.as_deref().unwrap_or(DEFAULT_CONVERSATION);
    if !(1..=MAX_NAME_BYTES).contains(&conversation.len()) {
        let problem = format!("must be 1 to {MAX_NAME_BYTES} bytes long");
        return Err(ApiError::field("session_id", problem));
    }
    let permit = app.turn_permit(&user, &caller)?;
    let named = header_text(conversation);
    let session = app.pilot().conversation(user.as_bytes(), conversation);
    if let Some(credentials) = &asked.credentials {
        session.write_credentials(credentials).await?;
    }

    let mut files = if asked.include_files { Some(watch(&session).await?) } else { None };
    let waits = session.status().is_some_and(|now| now.state == SessionState::Busy || now.queue_depth > 0);
    let mut turn = session.send_with(asked.prompt, asked.options).await?;
    let first = first_lines(&app, &mut turn).await?;
    if let Some(files) = files.as_mut().filter(|_| waits) {
        // Other turns have written since.
        files.look_again().await;
    }
    if first.is_some() {
        app.started_once().open();
    }

    let heartbeat = app.pilot().config().http.heartbeat;
    let files = files.map(|watch| -> Gathering { Box::pin(gather(app, watch)) });
    let answer = Answer::new(turn, first, files, heartbeat, log);
    let mut response = Response::new(Body::from_stream(permit.during(answer)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect events before it passes them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert(SESSION_HEADER, named);
    if !asked.ignored.is_empty() {
        headers.insert(IGNORED_HEADER, header_text(&asked.ignored.join(",")));
    }
    Ok(response)
}

/// Waits for the turn's first lines, so that a failure before them is a status and not an event; but no longer than a
/// heartbeat, for then the caller wants a sign of life.
async fn first_lines(app: &App, turn: &mut Turn) -> Result<Option<Bytes>, ApiError> {
    match timeout(app.pilot().config().http.heartbeat, turn.next_lines()).await {
        Ok(Some(Ok(lines))) => Ok(Some(lines)),
        Ok(Some(Err(error))) => Err(error.into()),
        // The end without a word is the stream's to tell, as is what comes later.
        Ok(None) | Err(_) => Ok(None),
    }
}

async fn read(app: &App, bytes: Bytes) -> Result<Asked, ApiError> {
    let limits = &app.pilot().config().session;
    if bytes.len() <= PARSE_INLINE {
        return parse(&bytes, limits);
    }
    let limits = limits.clone();
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes, &limits)).await;
    parsed.map_err(|_| TurnError::Internal("a request could not be read"))?
}

async fn watch(session: &Session) -> Result<Watch, ApiError> {
    let root = session.workspace().await?.work;
    let watch = Watch::start(root).await;
    watch.map_err(|error| TurnError::Storage(error.to_string()).into())
}

/// The events of the files, when it is this answer's turn to look.
async fn gather(app: Arc<App>, watch: Watch) -> Bytes {
    // Closed never.
    let _room = app.gathering().acquire().await;
    watch.events().await
}
