//! Errors as callers receive them: status, kind, code, text. The only file with status codes of errors.
//!
//! The text is only for the caller and never logged: it may hold the end of the CLI's standard error, without server
//! paths ([`redact`]).

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

#[cfg(feature = "cluster")]
use crate::cluster::{NodeAddress, RouteError};
#[cfg(feature = "cluster")]
use crate::error::TurnError;

mod of_turn;
pub(crate) mod redact;

pub(crate) use of_turn::failure_text;

/// Longest error text sent. Parsers repeat their input.
const MAX_MESSAGE_CHARS: usize = 500;

const PAUSE: Duration = Duration::from_secs(1);

/// An error response. The router's outermost layer writes its body, because only that layer has the request id.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    /// The child may have received the prompt: a retry could do the work twice.
    not_again: bool,
    /// The invalid field of the body.
    field: Option<String>,
    /// The node that has the user of the request.
    #[cfg(feature = "cluster")]
    node: Option<Box<NodeAddress>>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        let message = match message.char_indices().nth(MAX_MESSAGE_CHARS) {
            Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
            None => message,
        };
        Self {
            status,
            code,
            message,
            retry_after: None,
            not_again: false,
            field: None,
            #[cfg(feature = "cluster")]
            node: None,
        }
    }

    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: invalid field of the body.
    pub(crate) fn field(path: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        let path = path.to_string();
        let error = Self::invalid("invalid_body", format!("{path}: {problem}"));
        Self { field: Some(path), ..error }
    }

    /// Moves the error to another field.
    pub(crate) fn at(self, path: impl std::fmt::Display) -> Self {
        let problem = self.message.split_once(": ").map_or(self.message.as_str(), |(_, problem)| problem);
        if self.field.is_some() { Self::field(path, problem) } else { self }
    }

    /// 400: the field requests something unsupported.
    pub(crate) fn unsupported(path: &str, why: &str) -> Self {
        let error = Self::invalid(UNSUPPORTED, format!("{path}: {why}; leave it out"));
        Self { field: Some(path.to_owned()), ..error }
    }

    /// Names the field of the body that the error is about.
    pub(crate) fn about(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }

    /// 413: body too long.
    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is longer than {limit} bytes (http.body_limit)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 408: body timeout.
    pub(crate) fn body_too_slow(message: String) -> Self {
        let error = Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message);
        Self { retry_after: Some(PAUSE), ..error }
    }

    /// 503, or 529 in the Messages API: temporarily not possible.
    pub(crate) fn overloaded(message: &str, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED_CODE, message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 409: conflict, temporary with `retry_after`, else permanent.
    pub(crate) fn conflict(code: &'static str, message: impl Into<String>, pause: Option<Duration>) -> Self {
        let error = Self::new(StatusCode::CONFLICT, code, message);
        Self { retry_after: pause, not_again: pause.is_none(), ..error }
    }

    /// 429: limit reached.
    pub(crate) fn limited(code: &'static str, message: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, code, message);
        Self { retry_after: Some(retry_after), ..error }
    }

    /// 503: another node of the cluster has the user. The outermost layer sends the request there.
    #[cfg(feature = "cluster")]
    pub(crate) fn elsewhere(node: NodeAddress) -> Self {
        let message = "another node of the cluster has this user, and could not be reached in time";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_owner", message);
        Self { retry_after: Some(PAUSE), node: Some(Box::new(node)), ..error }
    }

    /// The node that has the user of the request.
    #[cfg(feature = "cluster")]
    pub(crate) fn node(&self) -> Option<&NodeAddress> {
        self.node.as_deref()
    }

    /// Whether nothing was begun here that another node could not begin, or this one a moment later.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_unbegun(&self) -> bool {
        let of_node = [TurnError::Moved.code(), TurnError::NodeFenced { in_turn: false }.code()];
        self.node.is_some() || of_node.contains(&self.code) && !self.not_again
    }

    /// The same for a node that was asked by another one: that one looks for the next.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_for_another(&self) -> bool {
        self.is_unbegun() || [NO_NODE_CODE, TurnError::Draining.code()].contains(&self.code)
    }

    /// 503: no node can take the user now.
    #[cfg(feature = "cluster")]
    pub(crate) fn no_node(error: &RouteError) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, NO_NODE_CODE, error.to_string());
        Self { retry_after: Some(PAUSE), ..error }
    }

    /// 502: the node that worked on the request is gone.
    #[cfg(feature = "cluster")]
    pub(crate) fn node_lost() -> Self {
        let message =
            "the node of the cluster that worked on the request is gone; the conversation goes on without it";
        Self { not_again: true, ..Self::new(StatusCode::BAD_GATEWAY, "node_lost", message) }
    }

    /// 404: unknown path. The path is repeated, because clients add prefixes unseen; its query may hold a secret and is
    /// not.
    pub(crate) fn no_such_path(method: &Method, uri: &Uri) -> Self {
        let message =
            format!("there is no {method} {} here; /openapi.json lists every path and method", uri.path());
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405: unsupported method.
    pub(crate) fn no_such_method(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let message =
            format!("{path} does not answer {method}; the Allow header and /openapi.json say what it does");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// Error for a bare status of a lower layer.
    pub(crate) fn of_status(status: StatusCode) -> Self {
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

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether the child received nothing, so that the same request may be repeated.
    pub(crate) fn is_refusal(&self) -> bool {
        !self.not_again
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// Error type of the Messages API.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | OVERLOADED => "overloaded_error",
            504 => "timeout_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// Body in the form of the Messages API, also of an `error` event.
    pub(crate) fn body(&self, request_id: Option<&str>) -> Value {
        let mut body = json!({
            "type": "error",
            "error": { "type": self.kind(), "message": self.message, "code": self.code },
        });
        if let Some(details) = self.details() {
            body["error"]["details"] = details;
        }
        if let Some(id) = request_id {
            body["request_id"] = id.into();
        }
        body
    }

    /// By these the SDKs know that they can continue without threads, with the whole history in each request.
    fn details(&self) -> Option<Value> {
        let is_thread = self.code == UNSUPPORTED && self.field.as_deref() == Some("thread");
        is_thread.then(|| json!({ "error_code": "thread_unsupported_request", "unsupported": ["thread"] }))
    }

    /// Body in the form of the Chat Completions API, also of an error within a stream.
    pub(crate) fn openai_body(&self) -> Value {
        let field = self.field.as_deref();
        json!({
            "error": { "message": self.message, "type": self.kind(), "param": field, "code": self.code },
        })
    }

    /// Event of the Responses API: its own fields, and `error`, on which SDKs raise their exception.
    pub(crate) fn response_event(&self) -> Value {
        let mut event = self.openai_body();
        event["type"] = "error".into();
        event["code"] = self.code.into();
        event["message"] = self.message.as_str().into();
        event["param"] = self.field.as_deref().into();
        event
    }

    pub(crate) fn body_in(&self, form: ErrorForm, request_id: Option<&str>) -> Value {
        match form {
            ErrorForm::Messages | ErrorForm::Own => self.body(request_id),
            ErrorForm::ChatCompletions | ErrorForm::Responses => self.openai_body(),
        }
    }

    /// Status in this form: the Messages API has its own for overload.
    fn status_in(&self, form: ErrorForm) -> StatusCode {
        let is_crowd = self.code == OVERLOADED_CODE && self.status == StatusCode::SERVICE_UNAVAILABLE;
        match StatusCode::from_u16(OVERLOADED) {
            Ok(overloaded) if is_crowd && form == ErrorForm::Messages => overloaded,
            _ => self.status,
        }
    }

    pub(crate) fn render(&self, form: ErrorForm, request_id: &str) -> Response {
        let body = axum::Json(self.body_in(form, Some(request_id)));
        let mut response = (self.status_in(form), body).into_response();
        let headers = response.headers_mut();
        if let Some(pause) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(pause)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds(pause)));
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    Messages,
    /// pilotlight's own API: the same body with standard statuses.
    Own,
    ChatCompletions,
    /// As in the Chat Completions API, but for events.
    Responses,
}

/// In whole seconds, at least one: 0 would invite immediate retries.
fn whole_seconds(pause: Duration) -> u64 {
    (pause.as_secs() + u64::from(pause.subsec_nanos() > 0)).max(1)
}

/// Rounded up, at least one.
fn milliseconds(pause: Duration) -> u64 {
    u64::try_from(pause.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// The same as `retry-after`, to the millisecond: SDKs prefer it.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Overload status of the Messages API.
const OVERLOADED: u16 = 529;
/// Code of an overloaded server, as opposed to one that stops or cannot start its CLI.
const OVERLOADED_CODE: &str = "overloaded";

#[cfg(feature = "cluster")]
const NO_NODE_CODE: &str = "no_node";
/// Code of a field that asks for something unsupported.
const UNSUPPORTED: &str = "unsupported_field";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests;
