//! `DELETE /v1/users/{id}` and `DELETE /v1/users?user={id}` on the admin listener: deletes a user with all data.
//!
//! Clients resolve the segments `.` and `..` of a path, also when they are percent-encoded, so not every user can be in one.

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::{Extension, Json};
use serde_json::{Value, json};

use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::api::query::Query;
use crate::server::app::App;
use crate::server::auth::caller::Caller;
use crate::server::percent;

/// What the path of a user begins with.
pub(crate) const USERS: &str = "/v1/users";

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Option<Extension<Caller>>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let user = named(&uri)?;
    if let Some(Extension(caller)) = caller {
        caller.is_about(&user);
        app.route(&caller, &user).await?;
    }
    let sessions = app.delete_user(&user).await?;
    #[cfg(feature = "cluster")]
    if let Some(cluster) = app.pilot.cluster() {
        cluster.delete(&user).await?;
    }
    tracing::info!(sessions, "a user was deleted");
    Ok(Json(json!({ "deleted": true, "sessions": sessions })))
}

/// The user of a path, or of its query. Read by hand, because a user may be any bytes.
fn named(uri: &Uri) -> Result<UserId, ApiError> {
    let invalid = |problem: String| ApiError::invalid("invalid_user", format!("the path's user: {problem}"));
    let bytes = match uri.path().strip_prefix(USERS).and_then(|rest| rest.strip_prefix('/')) {
        Some(text) => percent::decode(text.as_bytes())
            .ok_or_else(|| invalid("a percent sign must be followed by two hexadecimal digits".to_owned()))?,
        None => Query::of(uri)?.get("user")?.unwrap_or_default().to_vec(),
    };
    UserId::new(bytes).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_of_a_path_may_be_any_bytes() {
        let named = |path: &str| named(&path.parse().unwrap());
        assert_eq!(named("/v1/users/a%FF%2Fb+c").unwrap().as_bytes(), b"a\xff/b+c");
        assert_eq!(named("/v1/users?user=a%FF%2Fb%2Bc").unwrap().as_bytes(), b"a\xff/b+c");
        assert_eq!(named("/v1/users?user=%2E%2E").unwrap().as_bytes(), b"..");
        let long = "a".repeat(257);
        let longest = [format!("/v1/users/{long}"), format!("/v1/users?user={long}")];
        let wrong = ["/v1/users/", "/v1/users", "/v1/users?user=", "/v1/users/%", "/v1/users/%f"];
        for path in wrong.into_iter().chain(longest.iter().map(String::as_str)) {
            assert_eq!(named(path).unwrap_err().code(), "invalid_user", "{path}");
        }
        for path in ["/v1/users?user=%", "/v1/users?user=a&user=b"] {
            assert_eq!(named(path).unwrap_err().code(), "invalid_query", "{path}");
        }
    }
}
