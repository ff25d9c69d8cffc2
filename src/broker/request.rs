//! What a request of a child is for. Pure.

use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Method, Uri, Version};

use super::headers;
use super::refusal::Refusal;
use crate::adapter::{self, broker::ApiCall};

/// Longest path with its query: those of the API have some fifty bytes.
const MAX_TARGET_BYTES: usize = 2048;

/// Destination of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Target {
    /// The model's API, below its base address.
    Api,
    /// A connection to a host (CONNECT).
    Tunnel {
        /// The host as written, and its port.
        host: String,
        /// As above.
        port: u16,
    },
    /// A plain HTTP request to a host (absolute form).
    Plain {
        /// The host as written, and its port.
        host: String,
        /// As above.
        port: u16,
    },
}

/// Destination of a request.
///
/// # Errors
/// A refusal of everything that two programs could read in different ways.
pub(super) fn target(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<Target, Refusal> {
    if version != Version::HTTP_11 && version != Version::HTTP_10 {
        return Err(Refusal::malformed("only HTTP/1.1 is spoken here"));
    }
    if headers::is_ambiguous(headers) {
        return Err(Refusal::malformed("the length of the body, or the host, is stated more than once"));
    }
    if headers::asks_upgrade(headers) {
        return Err(Refusal::malformed("the protocol of a connection cannot be changed here"));
    }
    let is_tunnel = method == Method::CONNECT;
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if !is_tunnel => Ok(Target::Api),
        (None, Some(authority)) if is_tunnel => {
            let (host, port) = host_and_port(authority.as_str(), None)?;
            Ok(Target::Tunnel { host, port })
        }
        (Some("http"), Some(authority)) if !is_tunnel => {
            let (host, port) = host_and_port(authority.as_str(), Some(80))?;
            Ok(Target::Plain { host, port })
        }
        _ => Err(Refusal::malformed("the target of the request has a form that is not accepted")),
    }
}

/// `host:port` without a user; an IPv6 address in brackets.
fn host_and_port(authority: &str, default: Option<u16>) -> Result<(String, u16), Refusal> {
    let wrong = || Refusal::malformed("the target must be a host with a port");
    if authority.contains('@') {
        return Err(wrong());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_number = |port: &&str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let port = match port {
        Some(port) => Some(port).filter(is_number).and_then(|port| port.parse().ok()),
        None => default,
    };
    let port = port.filter(|port| *port > 0).ok_or_else(wrong)?;
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || (host.contains(':') && !is_bracketed) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

/// Whether the CLI only checks that the address answers.
pub(super) fn is_reachability(method: &Method, uri: &Uri) -> bool {
    adapter::api_call(method.as_str(), uri.path()) == Some(ApiCall::Reachability)
}

/// The kind of a request to the API, and its path with the query.
///
/// # Errors
/// The path is not one that the CLI needs, in its only spelling.
pub(super) fn api_call(method: &Method, uri: &Uri) -> Result<(ApiCall, PathAndQuery), Refusal> {
    let target = uri.path_and_query().filter(|target| target.as_str().len() <= MAX_TARGET_BYTES);
    let target = target.ok_or_else(Refusal::path)?;
    let call = adapter::api_call(method.as_str(), target.path()).ok_or_else(Refusal::path)?;
    Ok((call, target.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: Method, uri: &str) -> Result<Target, u16> {
        let uri: Uri = uri.parse().unwrap();
        target(&method, &uri, Version::HTTP_11, &HeaderMap::new()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn target_follows_from_the_form() {
        assert_eq!(of(Method::POST, "/v1/messages?beta=true"), Ok(Target::Api));
        let tunnel = |host: &str, port| Ok(Target::Tunnel { host: host.to_owned(), port });
        assert_eq!(of(Method::CONNECT, "github.com:443"), tunnel("github.com", 443));
        assert_eq!(of(Method::CONNECT, "[::1]:8"), tunnel("[::1]", 8));
        let plain = |host: &str, port| Ok(Target::Plain { host: host.to_owned(), port });
        assert_eq!(of(Method::GET, "http://a.example/x"), plain("a.example", 80));
        assert_eq!(of(Method::GET, "http://a.example:81"), plain("a.example", 81));
        assert_eq!(of(Method::GET, "http://[::1]/"), plain("[::1]", 80));
        for (method, wrong) in [
            (Method::CONNECT, "github.com"),
            (Method::CONNECT, "github.com:0"),
            (Method::CONNECT, "user@github.com:443"),
            (Method::CONNECT, "/v1/messages"),
            (Method::CONNECT, "http://github.com:443/"),
            (Method::GET, "https://api.anthropic.com/v1/models"),
            (Method::GET, "ftp://a.example/"),
            (Method::GET, "http://user:secret@a.example/"),
            (Method::GET, "a.example:443"),
        ] {
            assert_eq!(of(method.clone(), wrong), Err(400), "{method} {wrong}");
        }
    }

    #[test]
    fn only_paths_of_the_api_are_calls() {
        let call = |method: Method, uri: &str| api_call(&method, &uri.parse().unwrap());
        let (kind, path) = call(Method::POST, "/v1/messages?beta=true").unwrap();
        assert_eq!((kind, path.as_str()), (ApiCall::Inference, "/v1/messages?beta=true"));
        for wrong in ["/v1/files", "/v1/messages/../files", "//v1/messages", "/v1/messages%2f..", "*"] {
            assert_eq!(call(Method::POST, wrong).unwrap_err().status, 404, "{wrong}");
        }
        let long = format!("/v1/messages?{}", "a".repeat(MAX_TARGET_BYTES));
        assert_eq!(call(Method::POST, &long).unwrap_err().status, 404);
    }
}
