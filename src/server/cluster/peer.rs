//! Trust between nodes: a request from another node is signed with the secret that all nodes share.
//!
//! The signature covers method, target, caller and length of the body. The secret itself is never sent. Who can read the
//! network between nodes can read and repeat requests: that network is private, or encrypted below.

use std::path::Path;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use ring::hmac;

use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::support::hex;
use crate::support::secret_file::{self, InsecureFile};

/// Header with the caller whom the first node has authenticated.
pub(super) const CALLER_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-caller");
/// Header with the signature of a request from another node.
pub(super) const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-pilotlight-signature");

/// Shortest secret: as long as its digest.
const MIN_SECRET: usize = 32;
/// Longest secret that is read.
const MAX_SECRET: u64 = 4096;

/// What a node needs to trust others, and to be trusted.
pub(crate) struct Peers(hmac::Key);

/// Why the secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error(transparent)]
    File(#[from] InsecureFile),
    #[error("it has less than {MIN_SECRET} bytes; make one with `openssl rand -hex 32`")]
    Short,
}

impl Peers {
    /// Reads the secret. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self, SecretError> {
        let (content, _) = secret_file::read(path, MAX_SECRET)?;
        Self::of(content.trim_ascii())
    }

    fn of(secret: &[u8]) -> Result<Self, SecretError> {
        if secret.len() < MIN_SECRET {
            return Err(SecretError::Short);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// Adds what another node believes: who calls, and the signature.
    pub(super) fn sign(
        &self,
        headers: &mut HeaderMap,
        method: &Method,
        uri: &Uri,
        caller: &Caller,
        body: usize,
    ) -> Option<()> {
        let caller = HeaderValue::try_from(caller.to_wire()?).ok()?;
        let signature = hmac::sign(&self.0, &text(method, uri, &caller, body));
        headers.insert(CALLER_HEADER, caller);
        headers.insert(SIGNATURE_HEADER, HeaderValue::try_from(hex::encode(signature.as_ref())).ok()?);
        Some(())
    }

    /// The caller of a request from another node.
    ///
    /// # Errors
    /// It is not signed by a node of this cluster.
    pub(crate) fn admit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let refused = || {
            let message = "this listener is for the nodes of the cluster (cluster.secret_file)";
            ApiError::new(StatusCode::UNAUTHORIZED, "not_a_node", message)
        };
        let (caller, signature) =
            only(headers, &CALLER_HEADER).zip(only(headers, &SIGNATURE_HEADER)).ok_or_else(refused)?;
        let signature = signature.to_str().ok().and_then(hex::decode).ok_or_else(refused)?;
        let length = headers
            .get(axum::http::header::CONTENT_LENGTH)
            .map_or(Some(0), |length| length.to_str().ok().and_then(|length| length.parse().ok()));
        let text = text(method, uri, caller, length.ok_or_else(refused)?);
        hmac::verify(&self.0, &text, &signature).map_err(|_| refused())?;
        Caller::from_wire(caller.as_bytes()).ok_or_else(refused)
    }
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// What is signed. None of its parts can hold a newline.
fn text(method: &Method, uri: &Uri, caller: &HeaderValue, body: usize) -> Vec<u8> {
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    [
        b"pilotlight-peer-1".as_slice(),
        method.as_str().as_bytes(),
        target.as_bytes(),
        caller.as_bytes(),
        body.to_string().as_bytes(),
    ]
    .join(b"\n".as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    #[test]
    fn only_what_was_signed_is_admitted() {
        let peers = Peers::of(SECRET).unwrap();
        let (method, uri) = (Method::POST, Uri::from_static("http://other:1/v1/messages?a=b"));
        let caller = Caller::trusted(true, UserId::new("alice").ok());
        let mut headers = HeaderMap::new();
        peers.sign(&mut headers, &method, &uri, &caller, 3).unwrap();
        headers.insert("content-length", HeaderValue::from_static("3"));
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
        let other = Peers::of(&[b'x'; 32]).unwrap();
        assert_eq!(code(&other, &method, &local, &headers), Some("not_a_node"));
        let bob = Caller::trusted(true, UserId::new("bob").ok()).to_wire().unwrap();
        for (name, value) in
            [("x-pilotlight-caller", bob.as_str()), ("content-length", "4"), ("x-pilotlight-signature", "00")]
        {
            let mut changed = headers.clone();
            changed.insert(name, HeaderValue::from_str(value).unwrap());
            assert_eq!(code(&peers, &method, &local, &changed), Some("not_a_node"), "{name}");
            let mut twice = headers.clone();
            twice.append(name, HeaderValue::from_str(value).unwrap());
            let is_length = name == "content-length";
            assert_eq!(code(&peers, &method, &local, &twice).is_none(), is_length, "{name} twice");
        }
        assert_eq!(code(&peers, &method, &local, &HeaderMap::new()), Some("not_a_node"));
    }

    #[test]
    fn short_secret_is_refused() {
        assert!(matches!(Peers::of(&SECRET[1..]), Err(SecretError::Short)));
    }
}
