//! Token of an endpoint.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue, PROXY_AUTHORIZATION};
use rustix::rand::{GetRandomFlags, getrandom};
use subtle::ConstantTimeEq;

use crate::support::hex;

/// 256 bits cannot be guessed.
const RANDOM_BYTES: usize = 32;

/// Random text, compared in constant time. `Debug` is redacted.
pub(crate) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

impl Token {
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += getrandom(rest, GetRandomFlags::empty())?;
        }
        Ok(Self(hex::encode(&bytes)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn is(&self, given: &[u8]) -> bool {
        // The length is no secret.
        self.0.as_bytes().ct_eq(given).into()
    }

    /// Whether a request to the model's API has the token: in `x-api-key` or as a bearer.
    pub(super) fn authenticates(&self, headers: &HeaderMap) -> bool {
        let keys = headers.get_all("x-api-key").iter().map(HeaderValue::as_bytes);
        let bearers = headers.get_all(AUTHORIZATION).iter().filter_map(bearer);
        keys.chain(bearers).any(|given| self.is(given))
    }

    /// Whether a request to the proxy has the token: as the password of any user, or as a bearer.
    pub(super) fn authenticates_proxy(&self, headers: &HeaderMap) -> bool {
        headers.get_all(PROXY_AUTHORIZATION).iter().any(|value| {
            let password = || {
                let decoded = STANDARD.decode(credentials(value, b"basic")?).ok()?;
                let at = memchr::memchr(b':', &decoded)?;
                decoded.get(at + 1..).map(<[u8]>::to_vec)
            };
            match bearer(value) {
                Some(given) => self.is(given),
                None => password().is_some_and(|given| self.is(&given)),
            }
        })
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    credentials(value, b"bearer")
}

/// What follows the scheme.
fn credentials<'a>(value: &'a HeaderValue, scheme: &[u8]) -> Option<&'a [u8]> {
    let (given, rest) = value.as_bytes().split_at_checked(scheme.len())?;
    let rest = rest.strip_prefix(b" ")?;
    given.eq_ignore_ascii_case(scheme).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn token_is_accepted_in_three_forms() {
        let token = Token::random().unwrap();
        let own = token.as_str().to_owned();
        assert_eq!(own.len(), 64);
        let other = Token::random().unwrap().as_str().to_owned();
        assert_ne!(own, other);
        assert!(!format!("{token:?}").contains(&own));
        let bearer = |token: &str| format!("Bearer {token}");
        let basic = |token: &str| format!("Basic {}", STANDARD.encode(format!("user:{token}")));
        assert!(token.authenticates(&headers(&[("x-api-key", &own)])));
        assert!(token.authenticates(&headers(&[("authorization", &bearer(&own))])));
        assert!(token.authenticates(&headers(&[("authorization", &format!("bearer  {own}"))])));
        assert!(token.authenticates_proxy(&headers(&[("proxy-authorization", &basic(&own))])));
        assert!(token.authenticates_proxy(&headers(&[("proxy-authorization", &bearer(&own))])));
        for wrong in ["", &other, own.get(..63).unwrap(), &format!("{own}0"), &own.to_uppercase()] {
            assert!(!token.authenticates(&headers(&[("x-api-key", wrong)])), "{wrong}");
            assert!(!token.authenticates(&headers(&[("authorization", &bearer(wrong))])), "{wrong}");
            assert!(
                !token.authenticates_proxy(&headers(&[("proxy-authorization", &basic(wrong))])),
                "{wrong}"
            );
        }
        assert!(
            !token.authenticates(&headers(&[("authorization", &own), ("proxy-authorization", &basic(&own))]))
        );
        assert!(!token.authenticates(&headers(&[("authorization", &basic(&own))])));
        assert!(
            !token.authenticates_proxy(&headers(&[("x-api-key", &own), ("authorization", &bearer(&own))]))
        );
        assert!(!token.authenticates_proxy(&headers(&[("proxy-authorization", "Basic !!!")])));
    }
}
