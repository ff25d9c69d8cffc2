//! Text for the running turn of a session.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::conversation::parsed;
use crate::model::SteerError;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::router::BodyRead;
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
    let received = app.bodies.receive(&query.caller, request.into_body()).await?;
    let body: Result<SteerBody, ApiError> = parsed(&received.bytes);
    // The turn may take long: the memory of the body is for others.
    drop(received);
    let steered = async {
        let SteerBody { text } = body?;
        let (session, _) = existing(&app, &user, &name).await?;
        let rights = steer_rights(query.caller.limits());
        let taken = session.steer_with(text, rights).await.map_err(refused)?;
        Ok::<Json<Value>, ApiError>(Json(json!({ "id": name, "taken": taken })))
    };
    let mut response = steered.await.into_response();
    response.extensions_mut().insert(BodyRead);
    Ok(response)
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
