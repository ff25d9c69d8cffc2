//! Responses, stored or in the background: read, delete, cancel, list what was asked. A response of another user is 404, as if it did not exist.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::turns::CANCEL_WAIT;
use crate::server::app::App;
use crate::server::responses::{ResponseId, Stored};
use crate::server::turns::asynchronous::{AsyncTurn, Found};

/// Length of a list of items, and its maximum, as in the API reference.
const LISTED: usize = 20;
const MOST_LISTED: usize = 100;

/// `GET /v1/responses/{id}`; of one in the background also its events.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let is_stream = query.fields.flag("stream")?;
    match (in_background(&app, &query, &id)?, is_stream) {
        (Some(_), true) => {
            let last = query.fields.text("starting_after")?;
            let invalid =
                || ApiError::invalid("invalid_query", "starting_after: must be the number of an event");
            match last.map(|last| last.parse::<u64>().map_err(|_| invalid())).transpose()? {
                Some(last) => app.async_turns.follow_after(&id, last),
                None => app.async_turns.follow(&id, &HeaderMap::new()),
            }
        }
        (None, true) => {
            let message = "stream: only a response with background: true is streamed again, for ten minutes after its end";
            Err(ApiError::invalid("unsupported_field", message).about("stream"))
        }
        (Some((turn, state)), false) => shown(&app, &query, &turn, &state).await,
        (None, false) => stored(&app, &query, &id).await,
    }
}

async fn stored(app: &App, query: &SessionQuery, id: &str) -> Result<Response, ApiError> {
    let (_, stored) = find(app, query, id).await?;
    Ok(json(stored.response))
}

/// A response in the background, of this caller.
fn in_background(
    app: &App,
    query: &SessionQuery,
    id: &str,
) -> Result<Option<(Arc<AsyncTurn>, Found)>, ApiError> {
    let user = query.owner()?;
    Ok(app.async_turns.find(id).filter(|(turn, _)| turn.user == user && turn.is_background))
}

/// A response in the background as it is now.
async fn shown(
    app: &App,
    query: &SessionQuery,
    turn: &AsyncTurn,
    state: &Found,
) -> Result<Response, ApiError> {
    let shown = match (state, turn.error()) {
        (Found::Running(Some(background)), _) => Some(background.unfinished(turn.has_begun())),
        (Found::Answered(kept), Some(code)) => kept.background().map(|background| match code {
            "cancelled" | "interrupted" => background.cancelled(),
            code => background.failed(code, kept.error_message().as_deref().unwrap_or("the turn failed")),
        }),
        // It ended with an answer, which was stored before.
        _ => None,
    };
    match shown {
        Some(shown) => Ok(json(shown)),
        None => stored(app, query, &turn.id).await,
    }
}

/// JSON that is written already.
pub(crate) fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// `DELETE /v1/responses/{id}`. The conversation stays; a turn in the background is interrupted.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let user = query.owner()?;
    let background = in_background(&app, &query, &id)?;
    if let Some((turn, _)) = &background {
        turn.cancel();
        app.async_turns.remove(&id);
    }
    let deleted = match ResponseId::parse(&id) {
        Some(known) => app.responses.of(&user).delete(&known).await.map_err(storage)?,
        None => false,
    };
    if !deleted && background.is_none() {
        return Err(not_found());
    }
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })))
}

/// `POST /v1/responses/{id}/cancel`: interrupts a response in the background; without effect once it has ended.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if let Some((turn, _)) = in_background(&app, &query, &id)? {
        turn.cancel();
        // Most end at once.
        turn.wait(CANCEL_WAIT, app.async_turns.closing()).await;
        let (turn, state) = in_background(&app, &query, &id)?.ok_or_else(not_found)?;
        return shown(&app, &query, &turn, &state).await;
    }
    find(&app, &query, &id).await?;
    let message = "only a response with background: true can be cancelled, for ten minutes after its end; \
                   POST /v1/sessions/{id}/interrupt ends a running turn";
    Err(ApiError::invalid("not_cancellable", message))
}

/// `GET /v1/responses/{id}/input_items`.
pub(crate) async fn input_items(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let limit = query.fields.limit(LISTED, MOST_LISTED)?;
    let is_descending = match query.fields.text("order")? {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(ApiError::invalid("invalid_query", "order: must be asc or desc")),
    };
    let (_, stored) = find(&app, &query, &id).await?;
    let mut items = stored.asked.input;
    if is_descending {
        items.reverse();
    }
    page(items, query.fields.text("after")?, limit).map(Json)
}

fn page(items: Vec<Value>, after: Option<&str>, limit: usize) -> Result<Value, ApiError> {
    let begin = match after {
        Some(after) => {
            let at = items.iter().position(|item| item["id"] == after);
            at.ok_or_else(|| ApiError::invalid("invalid_query", "after: no item has this id"))? + 1
        }
        None => 0,
    };
    let has_more = items.len() > begin + limit;
    let data: Vec<Value> = items.into_iter().skip(begin).take(limit).collect();
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    Ok(json!({ "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more }))
}

async fn find(app: &App, query: &SessionQuery, id: &str) -> Result<(ResponseId, Stored), ApiError> {
    let user = query.owner()?;
    let id = ResponseId::parse(id).ok_or_else(not_found)?;
    let stored = app.responses.of(&user).read(&id).await.map_err(storage)?;
    stored.map(|stored| (id, stored)).ok_or_else(not_found)
}

fn not_found() -> ApiError {
    let message = "there is no such response; it may be too old, or have been deleted";
    ApiError::new(StatusCode::NOT_FOUND, "response_not_found", message)
}

fn storage(error: std::io::Error) -> ApiError {
    TurnError::Storage(error.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_paged() {
        let items: Vec<_> = (0..5).map(|number| json!({ "id": format!("m{number}") })).collect();
        let page = |after, limit| page(items.clone(), after, limit).map_err(|error| error.code());
        let first = page(None, 2).unwrap();
        assert_eq!((&first["first_id"], &first["last_id"]), (&json!("m0"), &json!("m1")));
        assert_eq!(first["has_more"], true);
        let last = page(Some("m2"), 2).unwrap();
        assert_eq!((&last["last_id"], &last["has_more"]), (&json!("m4"), &json!(false)));
        let none = page(Some("m4"), 2).unwrap();
        assert_eq!((&none["data"], &none["first_id"]), (&json!([]), &Value::Null));
        assert_eq!(page(Some("x"), 2), Err("invalid_query"));
    }
}
