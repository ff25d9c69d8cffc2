//! What a request and its answer count as. Pure.

use axum::http::StatusCode;

use crate::telemetry::metrics::{AuthFailure, HttpLimit, Route, StatusClass};

/// What was asked for, by the pattern of the path; a path itself is the caller's text.
pub(crate) fn route(pattern: Option<&str>) -> Route {
    let Some(pattern) = pattern else { return Route::Unknown };
    let parts: Vec<&str> = pattern.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["v1", "messages"] => Route::Messages,
        ["v1", "messages", "keepalive" | "pooled"] => Route::Keepalive,
        ["v1", "messages", "count_tokens"] => Route::CountTokens,
        ["v1", "chat", ..] => Route::Chat,
        ["v1", "models", ..] => Route::Models,
        ["v1", "sessions", ..] => Route::Sessions,
        ["v1", "workspace", ..] => Route::Workspace,
        ["v1", "pool", ..] => Route::Stats,
        ["health" | "livez" | "readyz"] => Route::Health,
        ["metrics"] => Route::Metrics,
        _ => Route::Page,
    }
}

/// The class of an answer.
pub(crate) fn class(status: StatusCode) -> StatusClass {
    match status.as_u16() {
        ..400 => StatusClass::Served,
        400..500 => StatusClass::Refused,
        _ => StatusClass::Failed,
    }
}

/// Whether the caller was refused for being who it is; by the code and the status of the answer.
pub(crate) fn auth_failure(code: &str, status: StatusCode) -> Option<AuthFailure> {
    let is_about_the_caller = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    is_about_the_caller.then(|| AuthFailure::named(code).unwrap_or(AuthFailure::NotAllowed))
}

/// What the caller had had enough of.
pub(crate) fn limit(code: &str) -> Option<HttpLimit> {
    match code {
        "too_many_requests" => Some(HttpLimit::Requests),
        "too_many_turns" => Some(HttpLimit::Turns),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_of_one_kind() {
        let kinds = [
            ("/", Route::Page),
            ("/openapi.json", Route::Page),
            ("/v1/messages", Route::Messages),
            ("/v1/messages/pooled", Route::Keepalive),
            ("/v1/messages/count_tokens", Route::CountTokens),
            ("/v1/chat/completions", Route::Chat),
            ("/v1/models/{id}", Route::Models),
            ("/v1/sessions/{id}/permissions/{request_id}", Route::Sessions),
            ("/readyz", Route::Health),
        ];
        for (path, kind) in kinds {
            assert_eq!(route(Some(path)), kind, "{path}");
        }
        assert_eq!(route(None), Route::Unknown);
    }

    #[test]
    fn refusals_are_told_apart() {
        let forbidden = StatusCode::FORBIDDEN;
        assert_eq!(auth_failure("invalid_key", StatusCode::UNAUTHORIZED), Some(AuthFailure::InvalidKey));
        assert_eq!(auth_failure("another_user", forbidden), Some(AuthFailure::NotAllowed));
        assert_eq!(auth_failure("invalid_key", StatusCode::OK), None);
        assert_eq!(limit("too_many_turns"), Some(HttpLimit::Turns));
        assert_eq!(limit("overloaded"), None);
        assert_eq!(class(StatusCode::SERVICE_UNAVAILABLE), StatusClass::Failed);
    }
}
