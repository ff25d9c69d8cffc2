//! Sessions of a caller: list, inspect, warm, interrupt, stop, delete; routes of one session.
//!
//! A session of another user is 404, as if it did not exist.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};

use super::{activity, conversation, live, mcp, permissions, steer, workspace, workspace_file};
use crate::error::TurnError;
use crate::model::ids::{MAX_NAME_BYTES, SessionKey, UserId};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::app::App;
use crate::server::percent;
use crate::server::turns;
use crate::session::SessionStatus;
use crate::system::Session;
use crate::telemetry::events::{EventKind, Exit};

const LISTED: usize = 100;
/// Maximum length of a list of one user: some 450 bytes per session.
const MOST_LISTED: usize = 1000;
/// Maximum length of a list of all users, which an operator alone gets.
const MOST_OF_ALL: usize = 10_000;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/sessions", get(list))
        .route("/v1/sessions/{id}", get(inspect).delete(delete))
        .route("/v1/sessions/{id}/warm", post(warm))
        .route("/v1/sessions/{id}/interrupt", post(interrupt))
        .route("/v1/sessions/{id}/steer", post(steer::steer))
        .route("/v1/sessions/{id}/activity", get(activity::show))
        .route("/v1/sessions/{id}/live", get(live::watch))
        .route("/v1/sessions/{id}/events", get(turns::replay::attach))
        .route("/v1/sessions/{id}/permissions", get(permissions::list))
        .route("/v1/sessions/{id}/permissions/{request_id}", post(permissions::answer))
        .route("/v1/workspace", get(workspace::look).delete(workspace::delete))
        .merge(workspace_file::routes())
        .merge(conversation::routes())
        .merge(mcp::routes())
}

/// A session as JSON. Durations are in seconds, times in seconds since 1970.
#[derive(Serialize)]
pub(crate) struct SessionView {
    id: String,
    /// Owner, in lists of all users; percent-encoded, as `?user=` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    pid: Option<u32>,
    created_at: f64,
    last_used: f64,
    idle_seconds: f64,
    #[serde(flatten)]
    status: StatusView,
    /// The first words of the conversation.
    title: Option<String>,
    /// Processors that its child keeps busy; `None` before that is known.
    cpu_cores: Option<f64>,
    input_tokens: u64,
    output_tokens: u64,
    /// Permissions and questions that wait for an answer.
    pending_permissions: usize,
    last_exit: Option<ExitView>,
}

/// Fields of a session's status in every list of sessions.
#[derive(Serialize)]
pub(crate) struct StatusView {
    state: String,
    generation: u64,
    model: Option<String>,
    turns: u64,
    restarts: u64,
    memory_bytes: u64,
    queue_depth: usize,
    total_cost_usd: f64,
    frozen: bool,
}

impl StatusView {
    pub(crate) fn of(status: &SessionStatus) -> Self {
        Self {
            state: status.state.to_string(),
            generation: status.generation,
            model: status.model.clone(),
            turns: status.turns,
            restarts: status.restarts,
            memory_bytes: status.memory_bytes,
            queue_depth: status.queue_depth,
            total_cost_usd: status.total_cost_usd,
            frozen: status.frozen,
        }
    }
}

#[derive(Serialize)]
struct ExitView {
    reason: &'static str,
    detail: String,
    at: f64,
}

#[derive(Serialize)]
pub(crate) struct Listed {
    sessions: Vec<SessionView>,
    limit: usize,
    /// Whether the list is incomplete.
    truncated: bool,
    /// For the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    spares: Option<SparesView>,
}

/// Children started ahead for new users.
#[derive(Serialize)]
pub(crate) struct SparesView {
    warming: usize,
    ready: usize,
}

impl SparesView {
    pub(crate) fn of(app: &App) -> Self {
        Self { warming: app.pilot.spares_warming(), ready: app.pilot.spares_ready() }
    }
}

impl SessionView {
    pub(crate) fn of(conversation: &str, status: SessionStatus) -> Self {
        Self {
            id: conversation.to_owned(),
            user: None,
            pid: status.pid,
            created_at: seconds(status.created),
            last_used: seconds(status.last_used),
            idle_seconds: status.idle.as_secs_f64(),
            status: StatusView::of(&status),
            title: status.title,
            cpu_cores: status.cpu_cores,
            input_tokens: status.input_tokens,
            output_tokens: status.output_tokens,
            pending_permissions: status.pending_permissions,
            last_exit: status.last_exit.map(|Exit { reason, detail, at }| ExitView {
                reason,
                detail,
                at: seconds(at),
            }),
        }
    }
}

pub(crate) struct SessionName(pub(crate) String);

impl<S: Sync + Send> FromRequestParts<S> for SessionName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // The name is the first path parameter of every route.
        type Names = Vec<(String, String)>;
        let names: Result<Path<Names>, PathRejection> = Path::from_request_parts(parts, state).await;
        let name = names.ok().and_then(|Path(names)| names.into_iter().next());
        let (_, name) =
            name.ok_or_else(|| ApiError::invalid("invalid_session", "the session's name must be UTF-8"))?;
        checked(&name).map(|()| Self(name))
    }
}

pub(crate) fn checked(name: &str) -> Result<(), ApiError> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    let problem = format!("a session's name must be 1 to {MAX_NAME_BYTES} bytes long, not {}", name.len());
    Err(ApiError::invalid("invalid_session", problem))
}

/// Checks the name of a session that may begin. Clients resolve `.` and `..` in a path, also when they are
/// percent-encoded, so such a session could not be addressed. One that exists is reached by `/v1/workspace?session=`.
pub(crate) fn addressable(name: &str) -> Result<(), ApiError> {
    checked(name)?;
    if matches!(name, "." | "..") {
        let problem = format!("a session cannot be named {name}: the path of a URL cannot hold that");
        return Err(ApiError::invalid("invalid_session", problem));
    }
    Ok(())
}

pub(crate) async fn existing(
    app: &App,
    user: &UserId,
    name: &str,
) -> Result<(Session, SessionStatus), ApiError> {
    let session = app.pilot.conversation(user.as_bytes(), name);
    match session.known().await? {
        Some(status) => Ok((session, status)),
        None => Err(ApiError::new(StatusCode::NOT_FOUND, "session_not_found", "there is no such session")),
    }
}

async fn list(State(app): State<Arc<App>>, query: SessionQuery, uri: Uri) -> Result<Response, ApiError> {
    let all_users = query.is_about_all();
    let limit = query.fields.limit(LISTED, if all_users { MOST_OF_ALL } else { MOST_LISTED })?;
    let user = if all_users { None } else { Some(query.subject()?) };
    let (found, more) = if query.fields.flag("loaded")? {
        (app.pilot.loaded_sessions(user.as_ref()), false)
    } else {
        // The semaphore is never closed. Records are read from disk, so concurrent lists are limited.
        let _room = app.gathering.acquire().await;
        app.pilot.known_sessions(user.as_ref()).await?
    };
    let truncated = more || found.len() > limit;
    let show = |(key, status): (SessionKey, SessionStatus)| SessionView {
        user: all_users.then(|| encode(key.user())),
        ..SessionView::of(key.conversation(), status)
    };
    let spares = query.caller.is_admin().then(|| SparesView::of(&app));
    let sessions = found.into_iter().take(limit).map(show).collect();
    let listed = Listed { sessions, limit, truncated, spares };
    #[cfg(feature = "cluster")]
    if let Some(side) = app.cluster.as_ref().filter(|_| all_users && !query.caller.is_forwarded()) {
        let listed =
            serde_json::to_value(listed).map_err(|_| TurnError::Internal("a list cannot be written"))?;
        return Ok(Json(side.with_others(listed, &uri, &query.caller, limit).await).into_response());
    }
    #[cfg(not(feature = "cluster"))]
    let _ = uri;
    Ok(Json(listed).into_response())
}

async fn inspect(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<SessionView>, ApiError> {
    let (_, status) = existing(&app, &query.subject()?, &name).await?;
    Ok(Json(SessionView::of(&name, status)))
}

/// Starts the child; creates the session if needed.
async fn warm(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<SessionView>, ApiError> {
    app.refuse_when_draining()?;
    addressable(&name)?;
    let user = if query.caller.is_operator() {
        let user = query.subject()?;
        // An admin has no sessions, and begins none.
        existing(&app, &user, &name).await?;
        user
    } else {
        query.owner()?
    };
    app.count_new_user(&query.caller, &user).await?;
    // A start costs as much as a turn, so it takes a turn permit.
    let _permit = app.turn_permit(&user, &query.caller)?;
    let status = app.pilot.conversation(user.as_bytes(), &name).warm().await?;
    app.started_once.open();
    Ok(Json(SessionView::of(&name, status)))
}

async fn interrupt(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    let interrupted = session.interrupt().await?;
    Ok(Json(json!({ "id": name, "interrupted": interrupted })))
}

async fn delete(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (user, purge) = (query.subject()?, query.fields.flag("purge")?);
    let (session, _) = existing(&app, &user, &name).await?;
    if purge {
        purge_session(&app, &user, &name, &session).await?;
    } else {
        session.evict().await?;
    }
    Ok(Json(json!({ "id": name, "stopped": true, "purged": purge })))
}

pub(crate) async fn purge_session(
    app: &App,
    user: &UserId,
    name: &str,
    session: &Session,
) -> Result<(), TurnError> {
    // First: no request may match a conversation that is being deleted.
    // With a user who is being deleted all of them go.
    if let Ok(inside) = app.pilot.enter(user) {
        app.conversations.exclude(&inside, name).await;
    }
    let purged = session.purge().await;
    // Last: the last turn has ended by then.
    app.replays.forget(user, name);
    app.async_turns.forget(user, name);
    app.history.forget_session(user, name);
    let deleted = app.responses.of(user).delete_of(name).await;
    deleted.map_err(|error| TurnError::Storage(error.into()))?;
    purged
}

/// Forgets the digests and the stored responses of conversations that the retention rules delete. One that is missed here
/// begins again, with the history that its client sends; its responses go when they are too old.
pub(crate) async fn forget_expired(app: Arc<App>) {
    let mut events = app.pilot.events();
    loop {
        let event = events.next().await;
        if matches!(event.kind, EventKind::Expired { .. }) {
            let (user, name) = (event.session.user(), event.session.conversation());
            let Ok(inside) = app.pilot.enter(user) else { continue };
            app.conversations.exclude(&inside, name).await;
            app.async_turns.forget(user, name);
            if let Err(error) = app.responses.of(user).delete_of(name).await {
                tracing::warn!(%error, "the responses of a deleted session are still stored");
            }
        }
    }
}

pub(crate) fn seconds(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A user as `?user=` takes it.
pub(crate) fn encode(user: &UserId) -> String {
    percent::encode(user.as_bytes(), |byte| byte.is_ascii_alphanumeric() || b"-._~@".contains(&byte))
}
