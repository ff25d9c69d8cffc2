//! The W3C trace context of a request: its id for the log, and with feature `otel` the parent of the request's span.

use axum::http::HeaderMap;
#[cfg(feature = "otel")]
pub(crate) use export::{answered, begin};
#[cfg(not(feature = "otel"))]
pub(crate) use otel_disabled::{answered, begin};

#[cfg(feature = "otel")]
mod export;
#[cfg(not(feature = "otel"))]
mod otel_disabled;

const TRACEPARENT: &str = "traceparent";
const ID_DIGITS: usize = 32;

/// The trace id, if well-formed.
pub(crate) fn id(headers: &HeaderMap) -> Option<&str> {
    // version "-" trace "-" parent "-" flags; later versions may append fields.
    let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (version, id, parent) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next()?;
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_named = id.bytes().any(|byte| byte != b'0');
    (is_hex(version, 2) && version != "ff" && is_hex(id, ID_DIGITS) && is_named && is_hex(parent, 16))
        .then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_is_accepted() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, value.parse().unwrap());
            id(&headers).map(str::to_owned)
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(read(&format!("00-{trace}-00f067aa0ba902b7-01")).as_deref(), Some(trace));
        assert_eq!(read(&format!("01-{trace}-00f067aa0ba902b7-01-more")).as_deref(), Some(trace));
        for wrong in [
            "",
            "00",
            &format!("00-{trace}-00f067aa0ba902b7"),
            &format!("ff-{trace}-00f067aa0ba902b7-01"),
            &format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(ID_DIGITS)),
            "00-a message of the user's-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(id(&HeaderMap::new()), None);
    }
}
