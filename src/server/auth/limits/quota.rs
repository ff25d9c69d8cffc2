//! What is left of a caller's requests per minute, as headers of each response. Pure.
//!
//! SDKs show these headers to their programs. The names and forms are those of the two APIs; both mean by the reset
//! the time at which the whole quota is free.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::server::api::error::ErrorForm;

/// Time in which a whole quota refills.
const PERIOD: Duration = Duration::from_secs(60);

/// Limit, what remains of it, and when it is whole again.
type Names = [HeaderName; 3];

const ANTHROPIC: Names = [
    HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    HeaderName::from_static("anthropic-ratelimit-requests-reset"),
];
const OPENAI: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];

/// All headers of this file.
pub(crate) fn names() -> impl Iterator<Item = HeaderName> {
    ANTHROPIC.into_iter().chain(OPENAI)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestQuota {
    pub(super) limit: NonZeroU32,
    pub(super) remaining: u32,
}

impl RequestQuota {
    /// Adds the headers of the API that a response in this form belongs to.
    pub(crate) fn describe(self, headers: &mut HeaderMap, form: ErrorForm, now: SystemTime) {
        let (names, reset) = match form {
            ErrorForm::Messages | ErrorForm::Own => (ANTHROPIC, instant(now + self.reset())),
            ErrorForm::ChatCompletions | ErrorForm::Responses => (OPENAI, duration(self.reset())),
        };
        let [limit, remaining, until] = names;
        headers.insert(limit, self.limit.get().into());
        headers.insert(remaining, self.remaining.into());
        if let Ok(reset) = HeaderValue::from_str(&reset) {
            headers.insert(until, reset);
        }
    }

    fn reset(self) -> Duration {
        let used = self.limit.get().saturating_sub(self.remaining);
        PERIOD * used / self.limit.get()
    }
}

/// RFC 3339 in whole seconds, rounded up.
fn instant(at: SystemTime) -> String {
    let up = at + Duration::from_nanos(999_999_999);
    humantime::format_rfc3339_seconds(up).to_string()
}

/// As Go writes durations, up to a minute: `120ms`, `1.5s`, `1m0s`.
fn duration(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    match (millis / 60_000, millis % 60_000) {
        (0, millis @ 0..1_000) => format!("{millis}ms"),
        (0, millis) => format!("{}s", seconds(millis)),
        (minutes, millis) => format!("{minutes}m{}s", seconds(millis)),
    }
}

fn seconds(millis: u128) -> String {
    let text = format!("{}.{:03}", millis / 1_000, millis % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        for (millis, text) in [
            (0, "0ms"),
            (7, "7ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_050, "1.05s"),
            (20_000, "20s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (61_500, "1m1.5s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_nanos(1)), "1ms", "never too early");
    }

    #[test]
    fn each_api_has_its_own_headers() {
        let quota = RequestQuota { limit: NonZeroU32::new(4).unwrap(), remaining: 3 };
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let read = |form, remaining| {
            let mut headers = HeaderMap::new();
            RequestQuota { remaining, ..quota }.describe(&mut headers, form, now);
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            names().filter_map(text).collect::<Vec<_>>()
        };
        for form in [ErrorForm::Messages, ErrorForm::Own] {
            assert_eq!(read(form, 3), ["4", "3", "1970-01-01T00:00:17Z"], "rounded up");
        }
        for form in [ErrorForm::ChatCompletions, ErrorForm::Responses] {
            assert_eq!(read(form, 3), ["4", "3", "15s"]);
            assert_eq!(read(form, 0), ["4", "0", "1m0s"]);
            assert_eq!(read(form, 4), ["4", "4", "0ms"]);
        }
    }
}
