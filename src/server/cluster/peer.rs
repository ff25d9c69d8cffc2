//! Trust between nodes: a request from another node is signed with the secret that all nodes share.
//!
//! The signature covers method, target, headers (one of them is the caller) and content. The secret itself is never sent. Who
//! can read the network between nodes can read and repeat requests, unless they speak TLS (`cluster.tls_identity_file`).

use std::path::Path;

use axum::extract::Request;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use ring::hmac;

use super::content;
use super::tls::PeerTls;
use crate::config::Cluster;
use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::support::hex;
use crate::support::secret_file::{self, InsecureFile};
use crate::support::tls::TlsError;

/// Header with the caller whom the first node has authenticated.
pub(super) const CALLER_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-caller");
/// Header with the signature of a request from another node.
pub(super) const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-signature");

const UNSIGNED: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, HOST, SIGNATURE_HEADER];

/// Shortest secret: as long as its digest.
const MIN_SECRET: usize = 32;
/// Longest secret that is read.
const MAX_SECRET: u64 = 4096;

/// What a node needs to trust others, and to be trusted.
pub(crate) struct Peers {
    secret: hmac::Key,
    pub(crate) tls: PeerTls,
}

/// Why no node would trust another.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeersError {
    #[error("{0}")]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Tls(#[from] TlsError),
}

impl PeersError {
    /// The configuration key that is at fault.
    pub(crate) fn key(&self) -> &'static str {
        match self {
            Self::Secret(_) => "cluster.secret_file",
            Self::Tls(_) => "cluster.tls_identity_file",
        }
    }
}

/// Why the secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error(transparent)]
    File(#[from] InsecureFile),
    #[error("it has less than {MIN_SECRET} bytes; make one with `openssl rand -hex 32`")]
    Short,
}

impl Peers {
    /// Reads the secret, and the files for TLS if there are any. Blocking.
    pub(crate) fn open(config: &Cluster) -> Result<Self, PeersError> {
        // Validated.
        let path = config.secret_file.as_deref().unwrap_or(Path::new(""));
        let (content, _) = secret_file::read(path, MAX_SECRET).map_err(SecretError::File)?;
        let tls = config.tls_identity_file.as_deref().zip(config.tls_ca_file.as_deref());
        Ok(Self { secret: key(content.trim_ascii())?, tls: PeerTls::open(tls)? })
    }

    /// Adds what another node believes: who calls, the digest of the body, and the signature.
    pub(super) fn sign(
        &self,
        headers: &mut HeaderMap,
        method: &Method,
        uri: &Uri,
        caller: &Caller,
        body: &[u8],
    ) -> Option<()> {
        headers.insert(CALLER_HEADER, HeaderValue::try_from(caller.to_wire()?).ok()?);
        headers.insert(content::DIGEST_HEADER, content::digest_of(body)?);
        let signature = hmac::sign(&self.secret, &text(method, uri, headers));
        headers.insert(SIGNATURE_HEADER, HeaderValue::try_from(hex::encode(signature.as_ref())).ok()?);
        Some(())
    }

    /// As [`Peers::admit`], and has the body fail where it is not what was signed.
    pub(crate) fn admit_whole(&self, request: &mut Request) -> Result<Caller, ApiError> {
        let caller = self.admit(request.method(), request.uri(), request.headers())?;
        if let Some(digest) = request.headers().get(&content::DIGEST_HEADER).cloned() {
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = content::verified(body, digest);
        }
        Ok(caller)
    }

    /// The caller of a request from another node.
    ///
    /// # Errors
    /// It is not signed by a node of this cluster.
    fn admit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let refused = || {
            let message = "this listener is for nodes of the cluster: they have the same cluster.secret_file";
            ApiError::new(StatusCode::UNAUTHORIZED, "not_a_node", message)
        };
        let caller = only(headers, &CALLER_HEADER).ok_or_else(refused)?;
        only(headers, &content::DIGEST_HEADER).ok_or_else(refused)?;
        let signature = only(headers, &SIGNATURE_HEADER).ok_or_else(refused)?;
        let signature = signature.to_str().ok().and_then(hex::decode).ok_or_else(refused)?;
        hmac::verify(&self.secret, &text(method, uri, headers), &signature).map_err(|_| refused())?;
        Caller::from_wire(caller.as_bytes()).ok_or_else(refused)
    }
}

fn key(secret: &[u8]) -> Result<hmac::Key, SecretError> {
    if secret.len() < MIN_SECRET {
        return Err(SecretError::Short);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// What is signed: all headers but those that the connection has of its own. None of the parts can hold a newline.
fn text(method: &Method, uri: &Uri, headers: &HeaderMap) -> Vec<u8> {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let mut text = format!("pilotlight-peer-2\n{method}\n{target}").into_bytes();
    let mut lines: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !UNSIGNED.contains(name))
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    // Stable: values of one name keep their order.
    lines.sort_by_key(|(name, _)| *name);
    for (name, value) in lines {
        for part in [b"\n".as_slice(), name.as_bytes(), b":", value.as_bytes()] {
            text.extend_from_slice(part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn peers(secret: &[u8]) -> Peers {
        Peers { secret: key(secret).unwrap(), tls: PeerTls::open(None).unwrap() }
    }

    #[test]
    fn only_what_was_signed_is_admitted() {
        let peers = peers(SECRET);
        let (method, uri) = (Method::POST, Uri::from_static("http://other:1/v1/messages?a=b"));
        let caller = Caller::trusted(true, UserId::new("alice").ok());
        let mut headers = HeaderMap::new();
        peers.sign(&mut headers, &method, &uri, &caller, b"abc").unwrap();
        let local = Uri::from_static("/v1/messages?a=b");
        let admitted = peers.admit(&method, &local, &headers).unwrap();
        assert_eq!(admitted.owner(None).unwrap().as_bytes(), b"alice");
        let code = |peers: &Peers, method: &Method, uri: &Uri, headers: &HeaderMap| {
            peers.admit(method, uri, headers).err().map(|error| error.code())
        };
        assert_eq!(code(&peers, &Method::PUT, &local, &headers), Some("not_a_node"));
        assert_eq!(
            code(&peers, &method, &Uri::from_static("/v1/messages?a=c"), &headers),
            Some("not_a_node")
        );
        let other = self::peers(&[b'x'; 32]);
        assert_eq!(code(&other, &method, &local, &headers), Some("not_a_node"));
        let bob = Caller::trusted(true, UserId::new("bob").ok()).to_wire().unwrap();
        let other = content::digest_of(b"abx").unwrap();
        let changes = [
            ("x-pilotlight-caller", bob.as_str()),
            ("content-digest", other.to_str().unwrap()),
            ("x-pilotlight-signature", "00"),
            ("x-pilotlight-session", "other"),
        ];
        for (name, value) in changes {
            let mut changed = headers.clone();
            changed.insert(name, HeaderValue::from_str(value).unwrap());
            assert_eq!(code(&peers, &method, &local, &changed), Some("not_a_node"), "{name}");
            let mut twice = headers.clone();
            twice.append(name, HeaderValue::from_str(value).unwrap());
            assert_eq!(code(&peers, &method, &local, &twice), Some("not_a_node"), "{name} twice");
        }
        assert_eq!(code(&peers, &method, &local, &HeaderMap::new()), Some("not_a_node"));
    }

    #[test]
    fn short_secret_is_refused() {
        assert!(matches!(key(&SECRET[1..]), Err(SecretError::Short)));
    }
}
