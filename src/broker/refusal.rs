//! Refusals, in the form of the model's API. The only file with statuses and texts of the broker.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, PROXY_AUTHENTICATE, RETRY_AFTER};
use hyper::{Response, StatusCode};

use super::body::{Body, full};
use crate::adapter;
use crate::adapter::broker::ModelNotAllowed;
use crate::spend::SpentOut;
use crate::telemetry::metrics::BrokerRefusal;

/// Pause before a retry, when slots are taken: responses end all the time.
const PAUSE: Duration = Duration::from_secs(5);

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) reason: BrokerRefusal,
    pub(super) status: u16,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn new(reason: BrokerRefusal, status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { reason, status, code, message: message.into(), retry_after: None }
    }

    /// 401: no token, or one that is not valid here (any more).
    pub(super) fn token() -> Self {
        let message =
            "this token is not valid: a session's token works at its own address while its process runs";
        Self::new(BrokerRefusal::Token, 401, "invalid_token", message)
    }

    /// 407: the same at the proxy.
    pub(super) fn proxy_token() -> Self {
        Self { status: 407, ..Self::token() }
    }

    /// 404: a path that the CLI has no need of.
    pub(super) fn path() -> Self {
        let message = "the broker forwards messages, token counts and lists of models only";
        Self::new(BrokerRefusal::Path, 404, "not_forwarded", message)
    }

    /// 400: not a plain request.
    pub(super) fn malformed(message: &'static str) -> Self {
        Self::new(BrokerRefusal::Malformed, 400, "malformed_request", message)
    }

    /// 411: a body in pieces.
    pub(super) fn without_length() -> Self {
        let message = "the length of the body must be stated (content-length)";
        Self { status: 411, ..Self::malformed(message) }
    }

    /// 413.
    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("the request body is longer than {limit} bytes");
        Self::new(BrokerRefusal::TooLarge, 413, "body_too_large", message)
    }

    /// 408: the body came too slowly.
    pub(super) fn slow_body() -> Self {
        let message = "the request body did not arrive in time (broker.idle_timeout)";
        Self::new(BrokerRefusal::Slow, 408, "body_timeout", message)
    }

    /// 504: the API answered too late.
    pub(super) fn slow_upstream() -> Self {
        let message = "the model's API did not answer in time (broker.first_byte_timeout)";
        Self::new(BrokerRefusal::Slow, 504, "upstream_timeout", message)
    }

    /// 403: a model that the key of the turn may not use.
    pub(super) fn model(refused: &ModelNotAllowed) -> Self {
        let named = match &refused.named {
            Some(model) => format!("the model {model}"),
            None => "a request that names no model".to_owned(),
        };
        let message = format!(
            "the policy of this key (models) does not allow {named}: name one of {}, or have the operator issue another key",
            refused.allowed
        );
        Self::new(BrokerRefusal::Model, 403, "model_not_allowed", message)
    }

    /// 400: the body broke off.
    pub(super) fn broken_body() -> Self {
        Self::malformed("the request body ended early")
    }

    /// 429.
    pub(super) fn spent(spent: SpentOut) -> Self {
        let limit = if spent.is_of_key { "usd_per_day of this key" } else { "limits.usd_per_user_day" };
        let message = format!(
            "this user has spent the {} US dollars that one may spend in a day ({limit})",
            spent.limit_usd
        );
        let refusal = Self::new(BrokerRefusal::SpendLimit, 429, "spend_limit", message);
        Self { retry_after: Some(spent.resets_in), ..refusal }
    }

    /// 529: no slot in time.
    pub(super) fn overloaded() -> Self {
        let message = "too many requests to the model's API at the same time (broker.upstream_concurrency, limits.usd_per_user_day)";
        let refusal = Self::new(BrokerRefusal::Overloaded, 529, "overloaded", message);
        Self { retry_after: Some(PAUSE), ..refusal }
    }

    /// 401: nothing to authenticate with.
    pub(super) fn no_credentials(message: &'static str) -> Self {
        Self::new(BrokerRefusal::Credentials, 401, "no_credentials", message)
    }

    /// 502: the credential could not be renewed now.
    pub(super) fn not_renewed() -> Self {
        let message = "the OAuth credentials of this session have expired, and their renewal failed for now";
        let refusal = Self::new(BrokerRefusal::Credentials, 502, "not_renewed", message);
        Self { retry_after: Some(PAUSE), ..refusal }
    }

    /// 500: the account of the user is unreadable.
    pub(super) fn no_account() -> Self {
        let message = "what this user has spent cannot be read from the data directory";
        Self::new(BrokerRefusal::SpendLimit, 500, "storage", message)
    }

    /// 502: no connection, or one that broke.
    pub(super) fn unreachable() -> Self {
        Self::new(
            BrokerRefusal::Unreachable,
            502,
            "upstream_unreachable",
            "the model's API could not be reached",
        )
    }

    /// 502: a redirection to another origin.
    pub(super) fn redirect() -> Self {
        let message = "the model's API redirects to another address, which is not followed";
        Self::new(BrokerRefusal::Redirect, 502, "upstream_redirect", message)
    }

    /// 403: a host that is not on the list.
    pub(super) fn not_allowed() -> Self {
        let message = "this host and port are not allowed (isolation.egress)";
        Self::new(BrokerRefusal::Egress, 403, "egress_not_allowed", message)
    }

    /// 403: a name with an address of this machine or its network.
    pub(super) fn address() -> Self {
        let message =
            "this host has a private or special address, which needs an entry of its own (isolation.egress)";
        Self::new(BrokerRefusal::Address, 403, "egress_address", message)
    }

    /// 502: the allowed host is not reachable.
    pub(super) fn host_unreachable() -> Self {
        let message = "this host could not be resolved or reached";
        Self::new(BrokerRefusal::Unreachable, 502, "egress_unreachable", message)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = adapter::error_body(self.status, self.code, &self.message);
        let mut response = Response::new(full(Bytes::from(body)));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(pause) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(pause.as_secs().max(1)));
        }
        if self.status == 407 {
            headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"pilotlight\""));
        }
        let is_temporary = matches!(self.status, 408 | 502 | 504 | 529);
        if !is_temporary {
            // The CLI would retry a 429, and wait for it until midnight.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.reason == BrokerRefusal::Malformed {
            // What follows on this connection may be anything.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
