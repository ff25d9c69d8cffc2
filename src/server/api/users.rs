//! `DELETE /v1/users/{id}` on the admin listener: deletes a user with all data.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde_json::{Value, json};

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::app::App;
use crate::server::percent;

/// What the path of a user begins with.
pub(crate) const USERS: &str = "/v1/users/";

pub(crate) async fn delete(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let user = named(uri.path())?;
    let sessions = app.delete_user(&user).await?;
    tracing::info!(sessions, "a user was deleted");
    Ok(Json(json!({ "deleted": true, "sessions": sessions })))
}

/// The user of a path. Read by hand, because a user may be any bytes.
fn named(path: &str) -> Result<UserId, ApiError> {
    let invalid = |problem: String| ApiError::invalid("invalid_user", format!("the path's user: {problem}"));
    let text = path.strip_prefix(USERS).unwrap_or_default();
    let bytes = percent::decode(text.as_bytes())
        .ok_or_else(|| invalid("a percent sign must be followed by two hexadecimal digits".to_owned()))?;
    UserId::new(bytes).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_of_a_path_may_be_any_bytes() {
        assert_eq!(named("/v1/users/a%FF%2Fb+c").unwrap().as_bytes(), b"a\xff/b+c");
        for path in ["/v1/users/", "/v1/users/%", "/v1/users/%f", &format!("/v1/users/{}", "a".repeat(257))] {
            assert_eq!(named(path).unwrap_err().code(), "invalid_user", "{path}");
        }
    }
}
