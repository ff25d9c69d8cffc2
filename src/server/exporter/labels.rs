//! Metric labels of requests and responses. Pure.

use axum::http::StatusCode;

use crate::telemetry::metrics::{AuthFailure, HttpLimit, Route, StatusClass};

/// Route label by path pattern; a path itself is arbitrary text.
pub(crate) fn route(pattern: Option<&str>) -> Route {
    let Some(pattern) = pattern else { return Route::Unknown };
    let parts: Vec<&str> = pattern.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["v1", "messages"] => Route::Messages,
        ["v1", "messages", "keepalive" | "pooled"] => Route::Keepalive,
        ["v1", "messages", "count_tokens"] => Route::CountTokens,
        ["v1", "chat", ..] => Route::Chat,
        ["v1", "responses"] => Route::Responses,
        ["v1", "responses", ..] => Route::StoredResponses,
        ["v1", "models", ..] => Route::Models,
        ["v1", "sessions" | "turns" | "users", ..] => Route::Sessions,
        ["v1", "workspace", ..] => Route::Workspace,
        ["v1", "pool" | "usage" | "overview", ..] => Route::Stats,
        ["health" | "livez" | "readyz"] => Route::Health,
        ["metrics"] => Route::Metrics,
        _ => Route::Page,
    }
}

pub(crate) fn class(status: StatusCode) -> StatusClass {
    match status.as_u16() {
        ..400 => StatusClass::Served,
        400..500 => StatusClass::Refused,
        _ => StatusClass::Failed,
    }
}

/// Authentication failure label, by code and status.
pub(crate) fn auth_failure(code: &str, status: StatusCode) -> Option<AuthFailure> {
    let is_about_the_caller = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    is_about_the_caller.then(|| AuthFailure::named(code).unwrap_or(AuthFailure::NotAllowed))
}

pub(crate) fn limit(code: &str) -> Option<HttpLimit> {
    match code {
        "too_many_requests" => Some(HttpLimit::Requests),
        "too_many_new_users" => Some(HttpLimit::NewUsers),
        "too_many_turns" => Some(HttpLimit::Turns),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_one_route() {
        let kinds = [
            ("/", Route::Page),
            ("/openapi.json", Route::Page),
            ("/v1/messages", Route::Messages),
            ("/v1/messages/pooled", Route::Keepalive),
            ("/v1/messages/count_tokens", Route::CountTokens),
            ("/v1/chat/completions", Route::Chat),
            ("/v1/responses", Route::Responses),
            ("/v1/responses/{id}/input_items", Route::StoredResponses),
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
    fn refusals_are_distinguished() {
        let forbidden = StatusCode::FORBIDDEN;
        assert_eq!(auth_failure("invalid_key", StatusCode::UNAUTHORIZED), Some(AuthFailure::InvalidKey));
        assert_eq!(auth_failure("another_user", forbidden), Some(AuthFailure::NotAllowed));
        assert_eq!(auth_failure("invalid_key", StatusCode::OK), None);
        assert_eq!(limit("too_many_turns"), Some(HttpLimit::Turns));
        assert_eq!(limit("overloaded"), None);
        assert_eq!(class(StatusCode::SERVICE_UNAVAILABLE), StatusClass::Failed);
    }
}
