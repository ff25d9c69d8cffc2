//! Text for the running turn of a session.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::body::{parsed, with_body};
use crate::model::SteerError;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing};
use crate::server::app::App;
use crate::server::turns::restrict::steer_rights;

/// Body of the request; unknown fields are ignored.
#[derive(Deserialize)]
struct SteerBody {
    text: String,
}

/// Answers when it is known whether the turn has read the text. A caller that goes away withdraws it, as far as the CLI has
/// not got it.
pub(crate) async fn steer(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    app.refuse_when_draining()?;
    let user = query.owner()?;
    with_body(&app, &query.caller, request, parsed, async |SteerBody { text }| {
        let (session, _) = existing(&app, &user, &name).await?;
        let rights = steer_rights(query.caller.limits());
        let taken = session.steer_with(text, rights).await.map_err(refused)?;
        Ok(Json(json!({ "id": name, "taken": taken })))
    })
    .await
}

fn refused(error: SteerError) -> ApiError {
    let (status, code) = match error {
        SteerError::NoRunningTurn => (StatusCode::CONFLICT, "no_running_turn"),
        SteerError::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_steers"),
        SteerError::NotAllowed => (StatusCode::FORBIDDEN, "steer_not_allowed"),
        SteerError::Length => return ApiError::field("text", error),
    };
    ApiError::new(status, code, error.to_string())
}
