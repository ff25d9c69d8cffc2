//! Who is calling, and how requests are named.
//!
//! In this version every caller on loopback is trusted to name any user. A browser is not such a caller: a page from
//! anywhere could make it send a request here, and a request may name programs to start.

use axum::http::header::ORIGIN;
use axum::http::{HeaderMap, HeaderValue, StatusCode};

use super::error::ApiError;
use crate::ids::UserId;

/// Who sent a request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The user that the request's header names.
    named: Option<UserId>,
}

impl Caller {
    pub(super) fn trusted(_is_local: bool, named: Option<UserId>) -> Self {
        Self { named }
    }

    pub(super) fn owner(&self, named: Option<UserId>) -> Result<UserId, ApiError> {
        self.named.clone().or(named).ok_or_else(nobody)
    }

    pub(super) fn subject(&self, named: Option<UserId>) -> Result<UserId, ApiError> {
        self.owner(named)
    }

    pub(super) fn is_known_by_credentials(&self) -> bool {
        self.named.is_none()
    }
}

/// The header that names the user.
pub(super) const USER_HEADER: &str = "x-pilotlight-user";
/// The header that names the request, both ways.
pub(super) const REQUEST_ID_HEADER: &str = "x-request-id";
/// Longest request id taken from a caller; longer ones are replaced.
const MAX_REQUEST_ID: usize = 128;

/// The user that the caller names, if it names one.
pub(super) fn named_user(headers: &HeaderMap) -> Result<Option<UserId>, ApiError> {
    let mut values = headers.get_all(USER_HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid("invalid_user", format!("{USER_HEADER} is given more than once")));
    }
    let user = UserId::new(value.as_bytes());
    user.map(Some).map_err(|error| ApiError::invalid("invalid_user", format!("{USER_HEADER}: {error}")))
}

/// 400 for a request that leaves open whose session it means.
pub(super) fn nobody() -> ApiError {
    let message = format!("name the user in the {USER_HEADER} header, or send oauth_credentials");
    ApiError::invalid("missing_user", message)
}

/// Refuses what a web page made a browser send.
pub(super) fn refuse_browsers(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(ORIGIN) {
        let message = "requests from web pages (with an Origin header) are not accepted";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "browser_refused", message));
    }
    Ok(())
}

/// The id of a request: the caller's own if it can be repeated in headers and logs, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID_HEADER).and_then(|value| value.to_str().ok());
    let usable = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(usable).map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// A conversation's name as a header: what a header cannot hold is percent-encoded.
pub(super) fn header_text(name: &str) -> HeaderValue {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The name in a header, if it is one.
pub(super) fn named_by_header(value: &HeaderValue) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_bytes(value).unwrap());
        let name = axum::http::HeaderName::from_static(USER_HEADER);
        values.map(|value| (name.clone(), value)).collect()
    }

    #[test]
    fn a_user_is_any_bytes_within_the_limit() {
        assert_eq!(named_user(&HeaderMap::new()).unwrap(), None);
        let user = named_user(&headers(&[b"\xff\xfe../.."])).unwrap().unwrap();
        assert_eq!(user.as_bytes(), b"\xff\xfe../..");
        assert!(named_user(&headers(&[&[b'a'; 256]])).is_ok());
        for wrong in [headers(&[b""]), headers(&[&[b'a'; 257]]), headers(&[b"a", b"b"])] {
            let error = named_user(&wrong).unwrap_err();
            assert_eq!((error.status(), error.code()), (StatusCode::BAD_REQUEST, "invalid_user"));
        }
    }

    #[test]
    fn a_name_fits_into_a_header() {
        assert_eq!(header_text("default"), "default");
        assert_eq!(header_text("a\r\nb%ü"), "a%0D%0Ab%25%C3%BC");
        for name in ["default", "a\r\nb%ü", "100%", "%zz"] {
            assert_eq!(named_by_header(&header_text(name)).as_deref(), Some(name));
        }
        for wrong in ["%", "%1", "%zz", "%ff"] {
            assert_eq!(named_by_header(&HeaderValue::from_static(wrong)), None);
        }
    }

    #[test]
    fn a_request_id_is_repeated_only_if_it_is_harmless() {
        let with = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID_HEADER, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(with(b"req-1"), "req-1");
        for id in [&b"a b"[..], b"", b"\xff", &[b'a'; 129]] {
            assert_eq!(with(id).len(), 36);
        }
    }
}
