//! Authentication and authorization from the headers alone, before the body is read.
//!
//! Each listener has an [`AuthPolicy`]. With keys, a request belongs to the owner of its key; a few paths are open.
//! Without keys every caller is trusted, so such a listener must be on loopback; requests that a foreign web page makes
//! a browser send are refused there.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};

use self::caller::{Caller, named_user};
use self::keys::Role;
use super::api::error::ApiError;
use super::api::users::USERS;
#[cfg(feature = "cluster")]
use super::cluster::Peers;
use super::page;
use crate::model::ids::UserId;

pub(crate) mod caller;
pub mod exposure;
pub(crate) mod identity;
mod keyring;
pub mod keys;
pub(crate) mod limits;
pub(crate) mod revoked;

pub(super) use keyring::{Admits, Keyring, watch};

/// Header with the key in clients of the Messages API; all others send `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";
/// Header in which browsers state how the requesting page relates to the target.
const FETCH_SITE: &str = "sec-fetch-site";
/// Paths open without a key, beside the files of the page. They reveal only liveness and the service document.
const OPEN_PATHS: [&str; 5] = ["/", "/health", "/livez", "/openapi.json", "/readyz"];

#[derive(Clone)]
pub(super) struct AuthPolicy {
    /// `None` trusts every caller.
    pub(super) keys: Option<Arc<Keyring>>,
    /// Whether the listener is on a loopback address.
    pub(super) is_local: bool,
    /// Whether only the operator may call.
    pub(super) for_admins: bool,
    /// User of requests that name none, without keys.
    pub(super) default_user: Option<UserId>,
    /// Whether only nodes of the cluster may call, on behalf of their callers.
    #[cfg(feature = "cluster")]
    pub(super) peers: Option<Arc<Peers>>,
}

impl AuthPolicy {
    /// Whether a request to this path counts against the rate limit.
    pub(super) fn counts(&self, uri: &Uri) -> bool {
        !self.for_admins && !self.is_for_peers() && !is_open(uri)
    }

    /// Whether requests come from other nodes of the cluster.
    pub(super) fn is_for_peers(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.peers.is_some();
        #[cfg(not(feature = "cluster"))]
        false
    }

    /// Authenticates a request; `None` on an open path without a valid key.
    pub(super) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
        let is_open = is_open(uri);
        // On loopback, every local process may read the metrics, as a scraper does; only an admin deletes.
        let is_scraped = self.for_admins && self.is_local && !uri.path().starts_with(USERS);
        let Some(keys) = self.keys.as_ref().filter(|_| !is_scraped) else {
            if !(self.is_local && is_own_page(uri, headers)) {
                refuse_browsers(headers, is_open)?;
            }
            if self.is_local {
                refuse_strange_hosts(uri, headers)?;
            }
            let named = if is_open { None } else { named_user(headers)? };
            return Ok(Some(Caller::trusted(self.is_local, named).or(self.default_user.clone())));
        };
        let key = presented(headers).and_then(|key| keys.find(key).ok_or_else(wrong_key));
        let (key, revoked) = match key {
            Ok(key) => key,
            Err(_) if is_open => return Ok(None),
            Err(refusal) => return Err(refusal),
        };
        if self.for_admins && !is_open && *key.role() != Role::Admin {
            let message = "this listener is for keys of the role admin";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "admin_only", message));
        }
        let named = if is_open { None } else { named_user(headers)? };
        Ok(Some(Caller::of_key(key, named).until(revoked)))
    }
}

impl AuthPolicy {
    /// Who is refused, for the audit log: a valid key may be refused as well.
    pub(super) fn refused_as(&self, headers: &HeaderMap) -> (Option<String>, &'static str) {
        let key = self.keys.as_ref().zip(presented(headers).ok()).and_then(|(keys, key)| keys.find(key));
        let Some((key, _)) = key else { return (None, "stranger") };
        let caller = Caller::of_key(key, None);
        let (id, role) = caller.recorded_as();
        (id.map(str::to_owned), role)
    }
}

fn is_open(uri: &Uri) -> bool {
    OPEN_PATHS.contains(&uri.path()) || page::has(uri.path())
}

fn presented(headers: &HeaderMap) -> Result<&[u8], ApiError> {
    let plain = headers.get_all(KEY_HEADER).iter().map(|value| value.as_bytes());
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| bearer(value.as_bytes()));
    let mut keys = plain.chain(bearer).map(<[u8]>::trim_ascii).filter(|key| !key.is_empty());
    let Some(key) = keys.next() else {
        let message = "send a key, as x-api-key: KEY or as Authorization: Bearer KEY";
        return Err(unauthenticated("missing_key", message));
    };
    if keys.any(|other| other != key) {
        return Err(unauthenticated("ambiguous_key", "the request has two different keys"));
    }
    Ok(key)
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer ";
    let (scheme, key) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(key)
}

fn wrong_key() -> ApiError {
    unauthenticated("invalid_key", "this key is not known here")
}

fn unauthenticated(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, code, message)
}

/// Whether the request comes from this listener's own page: its origin equals the requested host and port, and that
/// host is a loopback name. Other local pages have another port; a page with a rebound DNS name has another host.
fn is_own_page(uri: &Uri, headers: &HeaderMap) -> bool {
    let only = |name| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    // Browsers name the host in the header alone.
    let (Some(origin), Some(host), None) = (only(ORIGIN), only(HOST), uri.authority()) else { return false };
    is_loopback(host) && origin.strip_prefix("http://").is_some_and(|from| from.eq_ignore_ascii_case(host))
}

/// Refuses requests from web pages. With keys this is not needed, because a page has none. Pages are recognised by
/// `Origin`, or by `Sec-Fetch-Site` where browsers send no origin (images, frames); open paths may be linked to.
fn refuse_browsers(headers: &HeaderMap, is_open: bool) -> Result<(), ApiError> {
    let is_elsewhere = |site: &HeaderValue| site != "same-origin" && site != "none";
    let from_elsewhere = headers.get(FETCH_SITE).is_some_and(is_elsewhere);
    if headers.contains_key(ORIGIN) || (from_elsewhere && !is_open) {
        let message = "requests from web pages are refused, except from this service's own page";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "browser_refused", message));
    }
    Ok(())
}

/// Refuses requests meant for another host. A page may have its own name resolve to this address. The browser then
/// treats this server as the page's origin and sends no Origin header with a GET, but the Host header has that name.
fn refuse_strange_hosts(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let in_headers = headers.get_all(HOST).iter().map(|value| value.to_str().ok());
    let in_uri = uri.authority().map(|authority| Some(authority.as_str()));
    if in_headers.chain(in_uri).all(|host| host.is_some_and(is_loopback)) {
        return Ok(());
    }
    let message = "this listener has no keys and serves only localhost, 127.0.0.1 and [::1] as Host; \
                   configure keys (auth.keys_file) to serve other names";
    Err(ApiError::new(StatusCode::FORBIDDEN, "host_refused", message))
}

/// Whether `HOST` or `HOST:PORT` names this machine to itself.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    };
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let is_local = address.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    is_local && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
        });
        lines.collect()
    }

    #[test]
    fn a_key_comes_in_either_way_or_in_both_alike() {
        for lines in [
            &[("x-api-key", "k")][..],
            &[("authorization", "Bearer k")],
            &[("authorization", "bEARER  k ")],
            &[("authorization", "Bearer k"), ("x-api-key", "k")],
            &[("authorization", "Basic abc"), ("x-api-key", "k")],
            &[("authorization", "Bearer k"), ("x-api-key", "")],
        ] {
            assert_eq!(presented(&headers(lines)).unwrap(), b"k", "{lines:?}");
        }
        for (lines, code) in [
            (&[][..], "missing_key"),
            (&[("authorization", "Basic abc")], "missing_key"),
            (&[("authorization", "Bearer")], "missing_key"),
            (&[("x-api-key", "")], "missing_key"),
            (&[("authorization", "Bearer k"), ("x-api-key", "l")], "ambiguous_key"),
            (&[("x-api-key", "k"), ("x-api-key", "l")], "ambiguous_key"),
        ] {
            let error = presented(&headers(lines)).unwrap_err();
            assert_eq!((error.status(), error.code()), (StatusCode::UNAUTHORIZED, code), "{lines:?}");
        }
    }

    #[test]
    fn a_trusting_listener_serves_only_itself_as_host() {
        for host in
            ["localhost", "LOCALHOST:8480", "127.0.0.1", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8480",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "localhost:evil",
            "127.0.0.1:80:80",
            "user@localhost",
            "localhost@evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
        let policy = AuthPolicy {
            keys: None,
            is_local: true,
            for_admins: false,
            default_user: None,
            #[cfg(feature = "cluster")]
            peers: None,
        };
        let refused = |uri: &str, lines: &[(&str, &str)]| {
            policy.admit(&uri.parse().unwrap(), &headers(lines)).err().map(|error| error.code())
        };
        assert_eq!(refused("/livez", &[("host", "localhost")]), None);
        assert_eq!(refused("/livez", &[]), None);
        assert_eq!(refused("/livez", &[("host", "evil.example")]), Some("host_refused"));
        assert_eq!(refused("http://evil.example/", &[("host", "localhost")]), Some("host_refused"));
        assert_eq!(refused("/x", &[("origin", "http://localhost")]), Some("browser_refused"));
        assert_eq!(refused("/x", &[("x-pilotlight-user", "")]), Some("invalid_user"));
    }

    #[test]
    fn of_all_pages_only_our_own_is_served_without_a_key() {
        let policy = |is_local| AuthPolicy {
            keys: None,
            is_local,
            for_admins: false,
            default_user: None,
            #[cfg(feature = "cluster")]
            peers: None,
        };
        let refused = |is_local, uri: &str, lines: &[(&str, &str)]| {
            policy(is_local).admit(&uri.parse().unwrap(), &headers(lines)).err().map(|error| error.code())
        };
        for host in ["localhost:8480", "127.0.0.1:8480", "[::1]:8480", "localhost"] {
            let own = format!("http://{host}");
            assert_eq!(refused(true, "/x", &[("host", host), ("origin", &own)]), None, "{host}");
            assert_eq!(
                refused(false, "/x", &[("host", host), ("origin", &own)]),
                Some("browser_refused"),
                "who may call is decided by something in front, and that has another name"
            );
        }
        let host = ("host", "localhost:8480");
        for others in [
            &[host, ("origin", "http://localhost:3000")][..],
            &[host, ("origin", "http://localhost")],
            &[host, ("origin", "http://127.0.0.1:8480")],
            &[host, ("origin", "https://localhost:8480")],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "http://localhost:8480.evil.example")],
            &[host, ("origin", "null")],
            &[host, ("origin", "")],
            &[host, ("origin", "http://localhost:8480"), ("origin", "http://evil.example")],
            &[host, host, ("origin", "http://localhost:8480")],
            &[("origin", "http://localhost:8480")],
            &[("host", "evil.example:8480"), ("origin", "http://evil.example:8480")],
        ] {
            assert_eq!(refused(true, "/x", others), Some("browser_refused"), "{others:?}");
        }
        for (site, page, rest) in [
            ("cross-site", None, Some("browser_refused")),
            ("same-site", None, Some("browser_refused")),
            ("same-origin", None, None),
            ("none", None, None),
        ] {
            assert_eq!(refused(true, "/", &[host, ("sec-fetch-site", site)]), page, "{site}");
            assert_eq!(refused(true, "/x", &[host, ("sec-fetch-site", site)]), rest, "{site}");
        }
        let absolute = [host, ("origin", "http://localhost:8480")];
        assert_eq!(refused(true, "http://localhost:8480/x", &absolute), Some("browser_refused"));
    }
}
