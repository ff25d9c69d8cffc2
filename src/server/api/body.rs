//! JSON bodies of requests about sessions.

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;

use crate::server::api::error::ApiError;
use crate::server::api::router::BodyRead;
use crate::server::app::App;
use crate::server::auth::caller::Caller;

/// Reads and parses a body, and answers with what `work` makes of it. The work may take as long as a turn: the memory of the
/// body is free for others by then.
pub(super) async fn with_body<T, R, F>(
    app: &App,
    caller: &Caller,
    request: Request,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError>,
    work: impl FnOnce(T) -> F,
) -> Result<Response, ApiError>
where
    R: IntoResponse,
    F: Future<Output = Result<R, ApiError>>,
{
    let received = app.bodies.receive(caller, request.into_body()).await?;
    let parsed = parse(&received.bytes);
    drop(received);
    let mut response = match parsed {
        Ok(body) => work(body).await.into_response(),
        Err(error) => error.into_response(),
    };
    // The connection may go on.
    response.extensions_mut().insert(BodyRead);
    Ok(response)
}

/// Parses a body; an error names the field.
pub(super) fn parsed<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, ApiError> {
    let invalid = |problem: String| ApiError::invalid("invalid_body", problem);
    let body: Value = serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?;
    // Rejects lists, which serde would accept as fields in order.
    if !body.is_object() {
        return Err(invalid("must be an object".to_owned()));
    }
    serde_path_to_error::deserialize(body).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().to_string();
        if path == "." { invalid(problem) } else { ApiError::field(path, problem) }
    })
}
