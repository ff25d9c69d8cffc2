//! The way of the CLI to the Messages API, for a proxy in the middle. Pure.

mod environment;
mod models;
mod oauth;
mod usage;

use serde_json::json;

use crate::adapter::broker::ApiCall;

pub(crate) use environment::brokered;
pub(crate) use models::ModelList;
pub(crate) use oauth::{TOKEN_URL, refresh_request, refreshed};
pub(crate) use usage::{list_price, usage_reader};

/// Body of an error response, in the form of the API.
pub(crate) fn error_body(status: u16, code: &str, message: &str) -> Vec<u8> {
    let error = json!({ "type": error_type(status), "message": message, "code": code });
    json!({ "type": "error", "error": error }).to_string().into_bytes()
}

/// Kind of a request, by its method and its path below the base address; `None` if the CLI has no need of it. Other paths (files, batches, skills) belong to the account: with the operator's key a
/// child would read what other users have left there.
pub(crate) fn api_call(method: &str, path: &str) -> Option<ApiCall> {
    match (method, path) {
        ("POST", "/v1/messages") => Some(ApiCall::Inference),
        ("HEAD", "/") => Some(ApiCall::Reachability),
        ("POST", "/v1/messages/count_tokens") | ("GET", "/v1/models") => Some(ApiCall::Other),
        ("GET", _) => {
            let model = path.strip_prefix("/v1/models/")?;
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let is_name = !model.starts_with('.') && !model.is_empty() && model.bytes().all(is_plain);
            is_name.then_some(ApiCall::Other)
        }
        _ => None,
    }
}

/// Error type of the Messages API.
fn error_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        400..500 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_of_the_cli_are_forwarded() {
        for (method, path, expected) in [
            ("POST", "/v1/messages", Some(ApiCall::Inference)),
            ("POST", "/v1/messages/count_tokens", Some(ApiCall::Other)),
            ("GET", "/v1/models", Some(ApiCall::Other)),
            ("GET", "/v1/models/claude-opus-4-5", Some(ApiCall::Other)),
            ("GET", "/v1/messages", None),
            ("POST", "/v1/messages/", None),
            ("POST", "/v1/messages/batches", None),
            ("GET", "/v1/messages/batches", None),
            ("GET", "/v1/files", None),
            ("GET", "/v1/models/", None),
            ("GET", "/v1/models/..", None),
            ("GET", "/v1/models/../files", None),
            ("GET", "/v1/models/%2e%2e/files", None),
            ("POST", "//v1/messages", None),
            ("POST", "/v1/../v1/messages", None),
            ("post", "/v1/messages", None),
            ("HEAD", "/", Some(ApiCall::Reachability)),
            ("GET", "/", None),
            ("POST", "", None),
        ] {
            assert_eq!(api_call(method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn errors_have_the_form_of_the_api() {
        let body = error_body(429, "spend_limit", "no more today");
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let error = json!({ "type": "rate_limit_error", "message": "no more today", "code": "spend_limit" });
        assert_eq!(body, json!({ "type": "error", "error": error }));
        assert_eq!((error_type(401), error_type(529)), ("authentication_error", "overloaded_error"));
    }
}
