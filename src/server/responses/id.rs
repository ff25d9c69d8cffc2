//! Ids of responses and of their items. Pure.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

const PREFIX: &str = "resp_";
/// Hexadecimal digits after the prefix, and how many of them are the time.
const DIGITS: usize = 32;
const TIME_DIGITS: usize = 12;

/// Id of a response: `resp_` and 32 hexadecimal digits. The first 12 are the milliseconds since 1970 at which it began,
/// so that its age is known without its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ResponseId(String);

impl ResponseId {
    pub(crate) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let random = uuid::Uuid::new_v4().simple().to_string();
        let digits: String = format!("{now:012x}").chars().chain(random.chars()).take(DIGITS).collect();
        Self(digits)
    }

    /// Parses an id; `None` for any other text, which no response can have.
    pub(crate) fn parse(id: &str) -> Option<Self> {
        Self::of_digits(id.strip_prefix(PREFIX)?)
    }

    /// The response of an item, if the item's id was made here.
    pub(crate) fn of_item(id: &str) -> Option<Self> {
        let (_, rest) = id.split_once('_')?;
        Self::of_digits(rest.get(..DIGITS)?)
    }

    fn of_digits(digits: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == DIGITS && digits.bytes().all(is_digit)).then(|| Self(digits.to_owned()))
    }

    /// Id of an item of the output.
    pub(crate) fn output_item(&self, kind: &str, index: usize) -> String {
        format!("{kind}_{}{index:04x}", self.0)
    }

    /// Id of an item of the input: never that of one of the output.
    pub(crate) fn input_item(&self, kind: &str, index: usize) -> String {
        format!("{kind}_{}i{index:03x}", self.0)
    }

    /// Time since it began. A clock that was set back makes no response old.
    pub(crate) fn age(&self, now: SystemTime) -> Duration {
        let millis = self.0.get(..TIME_DIGITS).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let begun = UNIX_EPOCH + Duration::from_millis(millis.unwrap_or_default());
        now.duration_since(begun).unwrap_or_default()
    }
}

impl fmt::Display for ResponseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.0)
    }
}

impl TryFrom<String> for ResponseId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::parse(&id).ok_or("not the id of a response")
    }
}

impl From<ResponseId> for String {
    fn from(id: ResponseId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_has_its_time_and_its_items() {
        let id = ResponseId::new();
        assert_eq!(ResponseId::parse(&id.to_string()), Some(id.clone()));
        assert!(id.age(SystemTime::now()) < Duration::from_secs(60));
        let later = SystemTime::now() + Duration::from_secs(3600);
        assert!(id.age(later) >= Duration::from_secs(3600));
        assert_eq!(id.age(UNIX_EPOCH), Duration::ZERO);
        for item in [id.output_item("msg", 3), id.input_item("fc", 70_000)] {
            assert_eq!(ResponseId::of_item(&item), Some(id.clone()), "{item}");
        }
        assert_ne!(id.output_item("msg", 1), id.input_item("msg", 1));
    }

    #[test]
    fn other_text_is_no_id() {
        let digits = "0".repeat(DIGITS);
        assert!(ResponseId::parse(&format!("resp_{digits}")).is_some());
        for text in ["", "resp_", "resp_../../etc/passwd", &digits, &format!("resp_{digits}0"), "resp_é"] {
            assert_eq!(ResponseId::parse(text), None, "{text}");
        }
        let upper = format!("resp_{}", "A".repeat(DIGITS));
        assert_eq!(ResponseId::parse(&upper), None);
        for text in ["msg_short", "msg", "_", "msg_ééééééééééééééééé", "call_abc"] {
            assert_eq!(ResponseId::of_item(text), None, "{text}");
        }
    }
}
