//! Every refusal and failure as callers see it: status, kind, code, text. The only file that knows status codes of
//! errors.
//!
//! The text is for the caller alone and is never logged: it may hold the end of the CLI's standard error.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::error::TurnError;
use crate::turn::Status;

/// Longest error text sent. Parsers like to repeat what they were given.
const MAX_MESSAGE_CHARS: usize = 500;

/// When to try again where nothing tells it better.
const PAUSE: Duration = Duration::from_secs(1);

/// A request that is answered with an error status. The router's outermost layer writes its body, for it alone knows
/// the request's id.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    /// The child may have seen the prompt: sending it again could do the work twice.
    not_again: bool,
    /// The field of the body that is wrong.
    field: Option<String>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let message = match message.char_indices().nth(MAX_MESSAGE_CHARS) {
            Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
            None => message,
        };
        Self { status, code, message, retry_after: None, not_again: false, field: None }
    }

    /// 400: the request is wrong.
    pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: the body is wrong, at this field.
    pub(super) fn field(path: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        let path = path.to_string();
        let error = Self::invalid("invalid_body", format!("{path}: {problem}"));
        Self { field: Some(path), ..error }
    }

    /// 413: the body is too long.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is longer than {limit} bytes (http.body_limit)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 408: the body did not come in time.
    pub(super) fn body_too_slow(message: String) -> Self {
        let error = Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message);
        Self { retry_after: Some(PAUSE), ..error }
    }

    /// 503: not now.
    pub(super) fn overloaded(message: &str, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 429: the caller has had its share for now.
    pub(super) fn limited(code: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, code, message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// What a bare status means that some layer below has answered.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let code = match status {
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            _ if status.is_client_error() => "invalid_request",
            _ => "internal",
        };
        let reason = status.canonical_reason().unwrap_or("error").to_ascii_lowercase();
        Self::new(status, code, reason)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The kind, in the words that SDKs of the Messages API know.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | OVERLOADED => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The body in the form of the Messages API, also that of an `error` event.
    pub(super) fn body(&self, request_id: Option<&str>) -> Value {
        let mut body = json!({
            "type": "error",
            "error": { "type": self.kind(), "message": self.message, "code": self.code },
        });
        if let Some(id) = request_id {
            body["request_id"] = id.into();
        }
        body
    }

    /// The body in the form of the Chat Completions API, also that of an error within a stream.
    pub(super) fn openai_body(&self) -> Value {
        let field = self.field.as_deref();
        json!({
            "error": { "message": self.message, "type": self.kind(), "param": field, "code": self.code },
        })
    }

    /// Headers and body.
    pub(super) fn render(&self, form: ErrorForm, request_id: &str) -> Response {
        let body = match form {
            ErrorForm::Messages => self.body(Some(request_id)),
            ErrorForm::ChatCompletions => self.openai_body(),
        };
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(pause)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pilotlight\""));
        }
        if self.not_again {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// Which API's form an error body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorForm {
    /// That of the Messages API, and of everything of our own.
    Messages,
    /// That of the Chat Completions API.
    ChatCompletions,
}

/// At least one second, for 0 would be an invitation to hammer.
fn whole_seconds(pause: Duration) -> u64 {
    (pause.as_secs() + u64::from(pause.subsec_nanos() > 0)).max(1)
}

impl From<TurnError> for ApiError {
    fn from(error: TurnError) -> Self {
        let status = match &error {
            TurnError::InvalidName(_) | TurnError::InvalidPrompt(_) | TurnError::InvalidModel { .. } => {
                StatusCode::BAD_REQUEST
            }
            TurnError::PromptTooLarge { .. }
            | TurnError::SystemPromptTooLarge { .. }
            | TurnError::HistoryTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            TurnError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            TurnError::Overloaded { .. }
            | TurnError::Draining
            | TurnError::NotStarted(_)
            | TurnError::CircuitOpen { .. } => StatusCode::SERVICE_UNAVAILABLE,
            TurnError::SessionLost(_) | TurnError::LineTooLong { .. } => StatusCode::BAD_GATEWAY,
            TurnError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            TurnError::Cancelled => StatusCode::CONFLICT,
            TurnError::Storage(_) | TurnError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // A refusal made before the child saw anything can always be tried again after a moment, unless the request itself
        // is wrong.
        let not_again = error.reached_child();
        let pause = (status.is_server_error() && !not_again).then_some(PAUSE);
        Self {
            retry_after: error.retry_after().or(pause),
            not_again,
            ..Self::new(status, error.code(), error.to_string())
        }
    }
}

impl From<&Failure> for ApiError {
    /// The status of the model's API, so that SDKs raise what they would have raised there.
    fn from(failure: &Failure) -> Self {
        let told = failure.api_status.filter(|status| (400..600).contains(status));
        let status = match (told, failure.kind.as_str()) {
            (Some(status), _) => status,
            (None, _) if failure.interrupted => 409,
            (None, "authentication_failed") => 401,
            (None, "rate_limit") => 429,
            (None, "invalid_request" | "refusal") => 400,
            // The API was not reached, or did not answer what it should.
            (None, "server_error" | "unknown") => 502,
            (None, _) => 500,
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // The kinds are words of the CLI; errors here are told apart by constants.
        let code = KINDS.into_iter().find(|kind| *kind == failure.kind).unwrap_or("cli_error");
        Self { not_again: true, ..Self::new(status, code, failure.message.as_str()) }
    }
}

impl From<&Status> for ApiError {
    /// Of a turn that ended without an answer.
    fn from(status: &Status) -> Self {
        match status {
            Status::Failed(failure) => failure.into(),
            Status::Aborted(error) => error.clone().into(),
            Status::Completed => TurnError::Internal("an answer is no refusal").into(),
        }
    }
}

/// The kinds of failures that are told by name.
const KINDS: [&str; 11] = [
    "authentication_failed",
    "model_not_found",
    "invalid_request",
    "rate_limit",
    "server_error",
    "refusal",
    "max_turns",
    "max_budget_usd",
    "during_execution",
    "interrupted",
    "unknown",
];

/// What the Messages API answers when it is overloaded.
const OVERLOADED: u16 = 529;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StartFailure;

    #[test]
    fn refusals_say_when_to_try_again_and_losses_that_one_must_not() {
        let open = TurnError::CircuitOpen {
            last: StartFailure::Handshake("no".into()),
            retry_after: Duration::from_millis(1500),
        };
        let response = ApiError::from(open).render(ErrorForm::Messages, "id");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert!(!response.headers().contains_key("x-should-retry"));

        let response = ApiError::from(TurnError::Internal("x")).render(ErrorForm::Messages, "id");
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert!(!response.headers().contains_key(header::RETRY_AFTER));

        for before in [TurnError::Draining, TurnError::Storage("full".into())] {
            let response = ApiError::from(before).render(ErrorForm::Messages, "id");
            assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let error = ApiError::invalid("x", "ü".repeat(10_000));
        assert_eq!(error.message.chars().count(), MAX_MESSAGE_CHARS + 1);
    }
}
