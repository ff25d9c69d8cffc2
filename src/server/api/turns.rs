//! Asynchronous turns: their state, their answer, their events; cancel and delete.
//!
//! The answer is embedded with its own status, and not sent as it is: a 429 or 404 of the answer must not be taken for one
//! of the request that asks for it, which SDKs would repeat. A turn of another user is 404, as if it did not exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::model::Usage;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::seconds;
use crate::server::app::App;
use crate::server::turns::asynchronous::{AsyncTurn, Found, Kept, MAX_WAIT, not_kept};
use crate::server::turns::control::status_of;
use crate::server::turns::prefer::{APPLIED_HEADER, Prefer};

/// Interval of polling for clients that do not wait.
const POLL_INTERVAL: HeaderValue = HeaderValue::from_static("1");

#[derive(Serialize)]
struct TurnView<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    session_id: &'a str,
    stream: bool,
    /// Seconds since 1970.
    created_at: f64,
    ended_at: Option<f64>,
    /// Code of the error in the place of an answer.
    error_code: Option<&'static str>,
    cost_usd: Option<f64>,
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_url: Option<String>,
    response: Option<ResponseView<'a>>,
}

/// What a synchronous request would have got.
#[derive(Serialize)]
struct ResponseView<'a> {
    status_code: u16,
    headers: BTreeMap<&'a str, &'a str>,
    /// A stream has its events in the place of a body.
    body: Option<Box<RawValue>>,
}

/// `GET /v1/turns/{id}`; waits with `Prefer: wait=SECONDS`.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (turn, mut found) = find(&app, &query, &id)?;
    let mut waited = None;
    if let Some(wait) = Prefer::of(&headers).wait.filter(|_| matches!(found, Found::Running(_))) {
        let wait = wait.min(MAX_WAIT);
        if turn.wait(wait, app.async_turns.closing()).await {
            waited = Some(wait);
        }
        (_, found) = find(&app, &query, &id)?;
    }
    let mut response = match found {
        Found::Running(_) => running(&app, &turn),
        Found::Answered(kept) => answered(&turn, &kept),
        Found::NotKept => return Err(not_kept()),
    };
    if let Some(applied) =
        waited.map(|wait: Duration| HeaderValue::from_str(&format!("wait={}", wait.as_secs())))
    {
        // Digits only.
        applied.into_iter().for_each(|applied| drop(response.headers_mut().insert(APPLIED_HEADER, applied)));
    }
    Ok(response)
}

/// `GET /v1/turns/{id}/events`.
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    find(&app, &query, &id)?;
    app.async_turns.follow(&id, &headers)
}

/// `POST /v1/turns/{id}/cancel`: interrupts the turn; without effect once it has ended.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let (turn, found) = find(&app, &query, &id)?;
    match found {
        Found::Running(_) => turn.cancel(),
        Found::Answered(kept) => return Ok(answered(&turn, &kept)),
        Found::NotKept => return Err(not_kept()),
    }
    // Most end at once.
    turn.wait(CANCEL_WAIT, app.async_turns.closing()).await;
    match find(&app, &query, &id)?.1 {
        Found::Running(_) => Ok(running(&app, &turn)),
        Found::Answered(kept) => Ok(answered(&turn, &kept)),
        Found::NotKept => Err(not_kept()),
    }
}

/// Maximum time that a request to cancel a turn waits for its end.
pub(crate) const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// `DELETE /v1/turns/{id}`: interrupts the turn, if it runs, and forgets it with its answer.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let (turn, _) = find(&app, &query, &id)?;
    turn.cancel();
    app.async_turns.remove(&id);
    Ok(Json(json!({ "id": id, "object": "turn", "deleted": true })))
}

/// A turn that the caller may see.
fn find(app: &App, query: &SessionQuery, id: &str) -> Result<(Arc<AsyncTurn>, Found), ApiError> {
    let user = if query.is_about_all() { None } else { Some(query.subject()?) };
    let found = app.async_turns.find(id).filter(|(turn, _)| user.is_none_or(|user| turn.user == user));
    found.ok_or_else(|| {
        let message =
            "there is no such turn: turns are known for an hour after their end, until the server restarts";
        ApiError::new(StatusCode::NOT_FOUND, "turn_not_found", message)
    })
}

/// The state of a turn that runs.
pub(crate) fn running(app: &App, turn: &AsyncTurn) -> Response {
    let asks = || {
        let session = app.pilot.conversation(turn.user.as_bytes(), &turn.session);
        !session.permissions().is_empty()
    };
    let status = match turn.has_begun() {
        false => "queued",
        true if asks() => "requires_action",
        true => "in_progress",
    };
    let mut response = Json(view(turn, status, None)).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, POLL_INTERVAL);
    private(response)
}

fn answered(turn: &AsyncTurn, kept: &Kept) -> Response {
    let headers =
        kept.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let document = kept.document();
    let response = ResponseView {
        status_code: kept.status().as_u16(),
        headers: headers.collect(),
        // Written by this server as JSON.
        body: document.and_then(|document| serde_json::from_slice(&document).ok()),
    };
    private(Json(view(turn, status_of(turn.error()), Some(response))).into_response())
}

fn view<'a>(turn: &'a AsyncTurn, status: &'static str, response: Option<ResponseView<'a>>) -> TurnView<'a> {
    let spent = turn.spent();
    TurnView {
        id: &turn.id,
        object: "turn",
        status,
        session_id: &turn.session,
        stream: turn.is_stream,
        created_at: seconds(turn.created),
        ended_at: turn.ended_at().map(seconds),
        error_code: response.as_ref().and_then(|_| turn.error()),
        cost_usd: spent.map(|(_, cost)| cost),
        usage: spent.map(|(usage, _)| usage),
        events_url: turn.is_stream.then(|| format!("/v1/turns/{}/events", turn.id)),
        response,
    }
}

fn private(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
