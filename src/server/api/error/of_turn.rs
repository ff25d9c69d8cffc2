//! Errors of turns and of the CLI as HTTP errors.

use std::borrow::Cow;

use axum::http::StatusCode;

use super::{ApiError, PAUSE, redact};
use crate::error::TurnError;
use crate::model::Failure;
use crate::model::ids::InvalidName;
use crate::turn::Status;

impl From<TurnError> for ApiError {
    fn from(error: TurnError) -> Self {
        let status = match &error {
            TurnError::InvalidName(_)
            | TurnError::InvalidPrompt(_)
            | TurnError::InvalidModel { .. }
            | TurnError::InvalidTools(_)
            | TurnError::InvalidMcpServers(_)
            | TurnError::NothingToCompact => StatusCode::BAD_REQUEST,
            TurnError::MessageNotFound => StatusCode::NOT_FOUND,
            TurnError::PromptTooLarge { .. }
            | TurnError::SystemPromptTooLarge { .. }
            | TurnError::ToolsTooLarge { .. }
            | TurnError::HistoryTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            TurnError::QueueFull { .. }
            | TurnError::TooManySessions { .. }
            | TurnError::SpendLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            TurnError::Overloaded { .. }
            | TurnError::NoUserId { .. }
            | TurnError::Draining
            | TurnError::Moved
            | TurnError::NotReplicated { .. }
            | TurnError::NotDeleted
            | TurnError::NodeFenced { .. }
            | TurnError::NotStarted(_)
            | TurnError::CircuitOpen { .. } => StatusCode::SERVICE_UNAVAILABLE,
            // The turn itself exceeded the limit; a retry would too.
            TurnError::MemoryLimit { .. } | TurnError::WorkspaceLimit { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            TurnError::SessionLost(_) | TurnError::LineTooLong { .. } | TurnError::CompactFailed { .. } => {
                StatusCode::BAD_GATEWAY
            }
            TurnError::NoConversation => StatusCode::NOT_FOUND,
            TurnError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            TurnError::Cancelled
            | TurnError::UserDeleted
            | TurnError::SessionDeleted
            | TurnError::SessionBusy
            | TurnError::Overtaken
            | TurnError::SessionExists => StatusCode::CONFLICT,
            TurnError::Storage(_) | TurnError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // Refusals before the child received anything can be retried after a moment, unless the request itself is
        // invalid.
        let is_lasting = matches!(
            error,
            TurnError::TooManySessions { .. }
                | TurnError::SpendLimit { .. }
                | TurnError::NoUserId { retry_after: None }
        );
        let not_again = error.reached_child() || is_lasting;
        let pause = (status.is_server_error() && !not_again).then_some(PAUSE);
        Self {
            retry_after: error.retry_after().or(pause),
            not_again,
            ..Self::new(status, error.code(), redact::text_of(&error))
        }
    }
}

impl From<InvalidName> for ApiError {
    fn from(error: InvalidName) -> Self {
        TurnError::from(error).into()
    }
}

impl From<&Failure> for ApiError {
    /// Status of the model's API, so that SDKs raise the same exception.
    fn from(failure: &Failure) -> Self {
        let reported = failure.api_status.filter(|status| (400..600).contains(status));
        let status = match (reported, failure.kind.as_str()) {
            (Some(status), _) => status,
            (None, _) if failure.interrupted => 409,
            (None, "authentication_failed") => 401,
            (None, "rate_limit") => 429,
            (None, "invalid_request" | "refusal" | "context_full") => 400,
            (None, "request_too_large") => 413,
            // The API was unreachable or answered wrongly.
            (None, "server_error" | "max_output_tokens" | "unknown" | "output_invalid") => 502,
            (None, _) => 500,
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // The CLI's kinds map to constants.
        let code = KINDS.into_iter().find(|kind| *kind == failure.kind).unwrap_or("cli_error");
        Self { not_again: true, ..Self::new(status, code, failure_text(failure)) }
    }
}

/// Text of a failure, with the remedy where the CLI names one for interactive use only.
pub(crate) fn failure_text(failure: &Failure) -> Cow<'_, str> {
    let message = &failure.message;
    match failure.kind.as_str() {
        "context_full" => format!("{CONTEXT_FULL} The CLI says: {message}").into(),
        "request_too_large" => format!("{REQUEST_TOO_LARGE} The CLI says: {message}").into(),
        _ => message.into(),
    }
}

// Begins like the API's own text, because frameworks search for these words.
const CONTEXT_FULL: &str = "prompt is too long: the conversation no longer fits into the model's context. Compact it (POST \
     /v1/sessions/{id}/compact), begin a new one in the same workspace (POST /v1/sessions/{id}/reset) or under another \
     name (x-pilotlight-session), or send less history.";
const REQUEST_TOO_LARGE: &str = "the conversation with all its attachments has more bytes than the model's API takes. If a \
     short message is refused as well, start a new session or delete this one (DELETE /v1/sessions/{id}?purge=true).";

impl From<&Status> for ApiError {
    /// Error of a turn without an answer.
    fn from(status: &Status) -> Self {
        match status {
            Status::Failed(failure) => failure.into(),
            Status::Aborted(error) => error.clone().into(),
            Status::Completed => TurnError::Internal("an answer is no refusal").into(),
        }
    }
}

/// Kinds of failures with a code of their own.
const KINDS: [&str; 15] = [
    "output_invalid",
    "context_full",
    "request_too_large",
    "authentication_failed",
    "model_not_found",
    "invalid_request",
    "rate_limit",
    "server_error",
    "refusal",
    "max_output_tokens",
    "max_turns",
    "max_budget_usd",
    "during_execution",
    "interrupted",
    "unknown",
];
