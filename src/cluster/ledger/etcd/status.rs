//! What an answer other than success means.

use serde::Deserialize;

use crate::cluster::ledger::error::LedgerError;

/// Maximum size of the body of an error.
pub(super) const MAX_ERROR_BYTES: usize = 64 << 10;

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Another endpoint, or a later attempt, may succeed.
    Elsewhere(&'static str),
    /// Every endpoint would answer the same.
    Final(LedgerError),
}

/// The kind of an answer that reports an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Elsewhere(&'static str),
    /// The token has ended, or the server does not know it.
    Token,
    Final(LedgerError),
}

impl From<Kind> for Failure {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Elsewhere(why) => Self::Elsewhere(why),
            Kind::Token => Self::Final(LedgerError::Denied("token")),
            Kind::Final(error) => Self::Final(error),
        }
    }
}

/// An error as the gateway writes it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ErrorBody {
    #[serde(default, alias = "grpc_code")]
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct StreamError {
    error: ErrorBody,
}

impl ErrorBody {
    /// The text decides where one gRPC status stands for several cases. It is not passed on.
    pub(super) fn kind(&self) -> Kind {
        let has = |part: &str| self.message.contains(part);
        match self.code {
            _ if has("requested lease not found") => Kind::Final(LedgerError::LeaseGone),
            _ if has("has been compacted") => Kind::Final(LedgerError::Compacted),
            _ if has("invalid auth token") || has("revision of auth store is old") => Kind::Token,
            _ if has("user name is empty") => Kind::Final(LedgerError::Denied("no user")),
            _ if has("authentication failed") => Kind::Final(LedgerError::Denied("user or password")),
            _ if has("authentication is not enabled") => {
                Kind::Final(LedgerError::Denied("authentication is off, but a user is configured"))
            }
            _ if has("database space exceeded") => Kind::Final(LedgerError::NoSpace),
            _ if has("request is too large") => Kind::Final(LedgerError::TooLarge("request")),
            _ if has("no leader") => Kind::Elsewhere("no leader"),
            _ if has("too many requests") => Kind::Elsewhere("overload"),
            // Cancelled, deadline exceeded, aborted, internal, unavailable.
            1 | 4 | 10 | 13 | 14 => Kind::Elsewhere("server"),
            7 => Kind::Final(LedgerError::Denied("permission")),
            16 => Kind::Token,
            code => Kind::Final(LedgerError::Refused(code)),
        }
    }
}

/// The kind of an answer with this HTTP status.
pub(super) fn failure(status: u16, body: &[u8]) -> Kind {
    // Of a stream it is one level deeper.
    let nested = || serde_json::from_slice::<StreamError>(body).map(|body| body.error);
    match serde_json::from_slice::<ErrorBody>(body)
        .ok()
        .filter(|body| body.code != 0)
        .or_else(|| nested().ok())
    {
        Some(body) if body.code != 0 => body.kind(),
        // Not etcd itself: a proxy, or an endpoint without the gateway.
        _ if status >= 500 => Kind::Elsewhere("server"),
        _ if status == 404 => Kind::Elsewhere("no gateway"),
        _ => Kind::Final(LedgerError::BadAnswer("status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_etcd_have_their_kind() {
        let end = |error| Kind::Final(error);
        for (status, body, kind) in [
            (
                404,
                r#"{"error":"x","code":5,"message":"etcdserver: requested lease not found"}"#,
                end(LedgerError::LeaseGone),
            ),
            (
                400,
                r#"{"code":11,"message":"etcdserver: mvcc: required revision has been compacted"}"#,
                end(LedgerError::Compacted),
            ),
            (401, r#"{"code":16,"message":"etcdserver: invalid auth token"}"#, Kind::Token),
            (400, r#"{"code":3,"message":"etcdserver: revision of auth store is old"}"#, Kind::Token),
            (
                400,
                r#"{"code":3,"message":"etcdserver: authentication failed, invalid user ID or password"}"#,
                end(LedgerError::Denied("user or password")),
            ),
            (
                403,
                r#"{"code":7,"message":"etcdserver: permission denied"}"#,
                end(LedgerError::Denied("permission")),
            ),
            (503, r#"{"code":14,"message":"etcdserver: no leader"}"#, Kind::Elsewhere("no leader")),
            (503, r#"{"code":14,"message":"etcdserver: request timed out"}"#, Kind::Elsewhere("server")),
            (
                429,
                r#"{"code":8,"message":"etcdserver: mvcc: database space exceeded"}"#,
                end(LedgerError::NoSpace),
            ),
            (503, r#"{"code":8,"message":"etcdserver: too many requests"}"#, Kind::Elsewhere("overload")),
            (400, r#"{"code":3,"message":"etcdserver: key is not provided"}"#, end(LedgerError::Refused(3))),
            (
                401,
                r#"{"error":{"grpc_code":16,"http_code":401,"message":"etcdserver: invalid auth token"}}"#,
                Kind::Token,
            ),
            (
                503,
                r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}"#,
                Kind::Elsewhere("no leader"),
            ),
            (404, "Not Found", Kind::Elsewhere("no gateway")),
            (502, "<html>", Kind::Elsewhere("server")),
            (302, "", end(LedgerError::BadAnswer("status"))),
            (200, "[]", end(LedgerError::BadAnswer("status"))),
        ] {
            assert_eq!(failure(status, body.as_bytes()), kind, "{status} {body}");
        }
    }

    #[test]
    fn error_text_is_not_passed_on() {
        let body = r#"{"code":3,"message":"secret of the server"}"#;
        let error = Failure::from(failure(400, body.as_bytes()));
        assert!(!format!("{error:?}").contains("secret"));
    }
}
