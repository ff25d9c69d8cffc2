//! Models and token counts for SDKs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::api::router::BodyRead;
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::server::dialect::anthropic;

/// Header that identifies clients of the Messages API.
pub(crate) const ANTHROPIC_VERSION: &str = "anthropic-version";
/// Creation date of every model: the CLI does not report any, and this one is obviously not real.
const CREATED: (u64, &str) = (0, "1970-01-01T00:00:00Z");

/// `GET /v1/models`, in the form of the caller's API.
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Json<Value> {
    let models = listed(&app, &caller);
    let is_messages = headers.contains_key(ANTHROPIC_VERSION);
    let all: Vec<Value> = models.iter().map(|model| entry(model, is_messages)).collect();
    Json(if is_messages {
        json!({ "data": all, "has_more": false, "first_id": models.first(), "last_id": models.last() })
    } else {
        json!({ "object": "list", "data": all })
    })
}

/// `GET /v1/models/{id}`.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    if !listed(&app, &caller).contains(&id) {
        let message = "no such model is listed (http.models); it may be asked for all the same";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message));
    }
    Ok(Json(entry(&id, headers.contains_key(ANTHROPIC_VERSION))))
}

/// The models of the caller's key, else those of the configuration.
fn listed(app: &App, caller: &Caller) -> Vec<String> {
    caller.limits().models.clone().unwrap_or_else(|| app.pilot.current().http.models.clone())
}

fn entry(model: &str, is_messages: bool) -> Value {
    if is_messages {
        json!({ "type": "model", "id": model, "display_name": model, "created_at": CREATED.1 })
    } else {
        json!({ "object": "model", "id": model, "created": CREATED.0, "owned_by": "pilotlight" })
    }
}

/// `POST /v1/messages/count_tokens`: an estimate, because the CLI cannot count without a turn.
pub(crate) async fn count_tokens(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let received = app.bodies.receive(&caller, request.into_body()).await?;
    let bytes = received.bytes.clone();
    let counted = tokio::task::spawn_blocking(move || anthropic::count(&bytes)).await;
    let counted = counted.unwrap_or_else(|_| Err(TurnError::Internal("a request could not be read").into()));
    let answer = counted.map(|tokens| Json(json!({ "input_tokens": tokens, "estimate": true })));
    let mut response = answer.into_response();
    response.extensions_mut().insert(BodyRead);
    Ok(response)
}
