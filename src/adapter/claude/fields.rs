//! The fields of one line, read one by one.
//!
//! Made for lines of other versions: an unknown field, a missing one, one of another type costs that field and nothing
//! else; values that nobody asks for are not parsed, however deep they are.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The fields of a JSON object, each still in its own bytes.
pub(super) struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    /// `None` if this is not a JSON object.
    fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok().map(Self)
    }

    /// The value of a field, if it is there and of this type.
    pub(super) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.0.get(name)?.get()).ok()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name)
    }

    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::parse(self.0.get(name)?.get())
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.get() != "null")
    }
}

/// Reads a line's fields with `read`; `None` if the line is not a JSON object.
///
/// A line with bytes that are not UTF-8, or with half of a surrogate pair (the CLI may cut a text in the middle of a
/// character), is read with U+FFFD in their place.
pub(super) fn with_fields<T>(line: &[u8], read: impl FnOnce(&Fields<'_>) -> Option<T>) -> Option<T> {
    let text = String::from_utf8_lossy(line);
    read(&Fields::parse(&mend_surrogates(&text))?)
}

/// The same JSON with each unpaired surrogate escape replaced. The CLI escapes no others: nearly always no copy.
pub(super) fn mend_surrogates(json: &str) -> Cow<'_, str> {
    const LENGTH: usize = r"\uXXXX".len();
    let unit_at = |at: usize| -> Option<u16> {
        let digits = json.get(at..at + LENGTH)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut mended = Cow::Borrowed(json);
    let mut at = 0;
    while let Some(found) = json.as_bytes().get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        at += match (unit_at(at), unit_at(at + LENGTH)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 2 * LENGTH,
            (Some(0xD800..=0xDFFF), _) => {
                mended.to_mut().replace_range(at..at + LENGTH, "\\ufffd");
                LENGTH
            }
            (Some(_), _) => LENGTH,
            // An escape of two characters; the second may be a backslash, which begins no other escape.
            (None, _) => 2,
        };
    }
    mended
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_odd_field_costs_only_itself() {
        let line = br#"{"a":"text","a":"later","b":7,"c":{"d":[]},"e":null,"f":true}"#;
        let read = with_fields(line, |fields| {
            assert_eq!(fields.text("b"), None);
            assert_eq!(fields.get::<u64>("b"), Some(7));
            assert_eq!(fields.get::<bool>("f"), Some(true));
            assert!(fields.has("b") && !fields.has("e") && !fields.has("z"));
            assert!(fields.object("c").is_some_and(|inner| inner.has("d")));
            assert!(fields.object("b").is_none());
            fields.text("a")
        });
        assert_eq!(read.as_deref(), Some("later"));
    }

    #[test]
    fn depth_does_not_matter_where_nobody_looks() {
        let deep = format!(r#"{{"deep":{}{},"a":"x"}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(with_fields(deep.as_bytes(), |fields| fields.text("a")).as_deref(), Some("x"));
    }

    #[test]
    fn broken_characters_are_replaced() {
        let cases: [(&[u8], &str); 5] = [
            (b"{\"a\":\"x\xffy\"}", "x\u{fffd}y"),
            (br#"{"a":"x\ud83dy"}"#, "x\u{fffd}y"),
            (br#"{"a":"\ude00\ud83d\ude00\ud83d"}"#, "\u{fffd}\u{1f600}\u{fffd}"),
            (br#"{"a":"\\ud83d"}"#, "\\ud83d"),
            (br#"{"a":"\\\ud83d"}"#, "\\\u{fffd}"),
        ];
        for (line, expected) in cases {
            assert_eq!(with_fields(line, |fields| fields.text("a")).as_deref(), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>, text in r#"[\\uUdD8cC0f"é\n]{0,40}"#) {
            with_fields(&line, |fields| fields.text("a"));
            prop_assert_eq!(mend_surrogates(&text).len(), text.len());
        }
    }
}
