//! The header `Prefer` (RFC 7240): what a client would like, and may not get. Pure.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

const PREFER: &str = "prefer";
/// Header of a response that names the preferences with an effect.
pub(crate) const APPLIED_HEADER: HeaderName = HeaderName::from_static("preference-applied");

/// The preferences with an effect here; all others are ignored, as the RFC has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Prefer {
    /// Answer at once, and let the turn run without its caller.
    pub(crate) respond_async: bool,
    /// Time to wait for an answer, in whole seconds.
    pub(crate) wait: Option<Duration>,
}

impl Prefer {
    /// Reads all fields of that name. Of a preference that is repeated the first one counts.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let fields = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in fields.flat_map(|field| field.split(',')) {
            let word = preference.split(';').next().unwrap_or_default();
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => found.respond_async = true,
                "wait" if found.wait.is_none() => {
                    let seconds = value.trim().trim_matches('"').parse().ok();
                    found.wait = seconds.map(Duration::from_secs);
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_preferences_are_found_among_others() {
        let prefer = |fields: &[&str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(PREFER, field.parse().unwrap());
            }
            let found = Prefer::of(&headers);
            (found.respond_async, found.wait.map(|wait| wait.as_secs()))
        };
        for (fields, expected) in [
            (&[][..], (false, None)),
            (&["respond-async"], (true, None)),
            (&["Respond-Async; x=1, WAIT = \"10\""], (true, Some(10))),
            (&["return=minimal", "wait=5, wait=9", "respond-async"], (true, Some(5))),
            (&["respond-asynchronously, wait=soon"], (false, None)),
            (&["wait=-1"], (false, None)),
            (&[",;=,"], (false, None)),
        ] {
            assert_eq!(prefer(fields), expected, "{fields:?}");
        }
    }
}
