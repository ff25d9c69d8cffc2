//! Headers of requests and responses on their way. Pure.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers of one connection (RFC 9110, 7.6.1), those that make a proxy visible, and framing, which is made again.
const OF_CONNECTION: [HeaderName; 10] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::EXPECT,
    header::HOST,
];
const OF_CONNECTION_TOO: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// What a child may say to the API: of a request's body, and about itself. Anything else could be a credential, or a
/// statement about the caller, the method or the path that a proxy on the way believes.
const TO_API: [&str; 8] = [
    "accept",
    "content-type",
    "idempotency-key",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-app",
    "x-client-request-id",
];
const TO_API_BEGIN: [&str; 3] = ["anthropic-", "x-claude-", "x-stainless-"];

/// What a child has no use for: they are about the connection of the broker.
const OF_UPSTREAM: [&str; 3] = ["set-cookie", "alt-svc", "proxy-status"];

/// The headers without those of the connection, and without those that `Connection` names.
fn end_to_end(headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let mut kept = headers;
    for name in OF_CONNECTION.iter().chain(&named) {
        kept.remove(name);
    }
    for name in OF_CONNECTION_TOO {
        kept.remove(name);
    }
    kept
}

/// Headers of a request to the model's API, still without its credential.
pub(super) fn to_upstream(headers: HeaderMap) -> HeaderMap {
    let is_passed = |name: &HeaderName| {
        let name = name.as_str();
        TO_API.contains(&name) || TO_API_BEGIN.iter().any(|begin| name.starts_with(begin))
    };
    let given = end_to_end(headers);
    let mut headers = HeaderMap::new();
    for (name, value) in given.iter().filter(|(name, _)| is_passed(name)) {
        headers.append(name, value.clone());
    }
    // Tokens are counted in the response as it passes.
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Headers of a request to a host of the allow list: the child's own affair, without the token.
pub(super) fn to_host(headers: HeaderMap) -> HeaderMap {
    end_to_end(headers)
}

/// Headers of a response of such a host.
pub(super) fn from_host(headers: HeaderMap) -> HeaderMap {
    end_to_end(headers)
}

/// Headers of a response.
pub(super) fn to_child(headers: HeaderMap) -> HeaderMap {
    let mut headers = end_to_end(headers);
    for name in OF_UPSTREAM {
        headers.remove(name);
    }
    headers
}

/// Whether the request asks for another protocol on its connection.
pub(super) fn asks_upgrade(headers: &HeaderMap) -> bool {
    let is_named = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    };
    headers.contains_key(header::UPGRADE) || headers.get_all(header::CONNECTION).iter().any(is_named)
}

/// Whether the length of the body is stated in two ways, or the host more than once.
pub(super) fn is_ambiguous(headers: &HeaderMap) -> bool {
    let count = |name: HeaderName| headers.get_all(name).iter().count();
    let (lengths, codings) = (count(header::CONTENT_LENGTH), count(header::TRANSFER_ENCODING));
    lengths + codings > 1 || count(header::HOST) > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut shown: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        shown
    }

    #[test]
    fn only_end_to_end_headers_pass() {
        let given = map(&[
            ("connection", "keep-alive, X-Secret-Hop"),
            ("connection", "x-other"),
            ("x-secret-hop", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("expect", "100-continue"),
            ("host", "evil"),
            ("anthropic-beta", "a"),
            ("anthropic-beta", "b"),
            ("authorization", "Bearer token"),
            ("x-api-key", "token"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-rewrite-url", "/v1/files"),
            ("x-goog-api-key", "key"),
            ("range", "bytes=0-1"),
            ("content-encoding", "gzip"),
            ("x-stainless-lang", "js"),
            ("accept-encoding", "gzip, br"),
            ("content-type", "application/json"),
        ]);
        let expected = [
            "accept-encoding: identity",
            "anthropic-beta: a",
            "anthropic-beta: b",
            "content-type: application/json",
            "x-stainless-lang: js",
        ];
        assert_eq!(shown(&to_upstream(given.clone())), expected);
        let to_host = shown(&to_host(given));
        assert!(to_host.contains(&"cookie: a=b".to_owned()), "{to_host:?}");
        assert!(
            !to_host.iter().any(|line| line.contains("Basic") || line.starts_with("host")),
            "{to_host:?}"
        );
        let answer =
            map(&[("set-cookie", "a=b"), ("alt-svc", "h3"), ("request-id", "r"), ("connection", "close")]);
        assert_eq!(shown(&to_child(answer)), ["request-id: r"]);
    }

    #[test]
    fn connection_never_names_what_is_added() {
        // Named headers go first, so a child cannot remove the credential.
        let headers = to_upstream(map(&[("connection", "accept-encoding, x-api-key, authorization")]));
        assert_eq!(shown(&headers), ["accept-encoding: identity"]);
    }

    #[test]
    fn upgrade_and_ambiguity_are_found() {
        for (pairs, upgrade, ambiguous) in [
            (&[("connection", "keep-alive")][..], false, false),
            (&[("connection", "keep-alive, Upgrade")], true, false),
            (&[("upgrade", "websocket")], true, false),
            (&[("content-length", "1"), ("transfer-encoding", "chunked")], false, true),
            (&[("content-length", "1"), ("content-length", "1")], false, true),
            (&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], false, true),
            (&[("host", "a"), ("host", "b")], false, true),
            (&[("host", "a"), ("content-length", "1")], false, false),
        ] {
            let headers = map(pairs);
            assert_eq!((asks_upgrade(&headers), is_ambiguous(&headers)), (upgrade, ambiguous), "{pairs:?}");
        }
    }
}
