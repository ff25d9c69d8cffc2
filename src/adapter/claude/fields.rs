//! Fields of one line, parsed one by one.
//!
//! Tolerates lines of other versions: an unknown, missing or odd field affects no other field. Unused values are not
//! parsed, however deep they are.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Unparsed fields of a JSON object, in their order: a few dozen at most, so that a search is faster than a map.
pub(super) struct Fields<'a>(Vec<(Name<'a>, &'a RawValue)>);

/// Copied only if it has an escape.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Room for the fields of nearly every line.
const MANY: usize = 32;

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(MANY);
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl<'a> Fields<'a> {
    /// `None` if this is not a JSON object.
    fn parse(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Of fields with the same name the last one counts.
    fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find_map(|(found, value)| (found.0 == name).then(|| value.get()))
    }

    /// The value of a field, if it has this type.
    pub(super) fn get<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.get(name)
    }

    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::parse(self.raw(name)?)
    }

    /// Whether the field is present and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some_and(|value| value != "null")
    }
}

/// Reads a line's fields with `read`; `None` if the line is not a JSON object.
///
/// Invalid UTF-8 and lone surrogates become U+FFFD: the CLI may cut a text within a character.
pub(super) fn with_fields<T>(line: &[u8], read: impl FnOnce(&Fields<'_>) -> Option<T>) -> Option<T> {
    let text = text(line);
    read(&Fields::parse(&replace_lone_surrogates(&text))?)
}

/// A line as text. The check is much faster than the replacement, which nearly no line needs.
pub(super) fn text(line: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed)
}

/// JSON with each lone surrogate escape replaced by U+FFFD. Copies only if there is one.
pub(super) fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    const LENGTH: usize = r"\uXXXX".len();
    let unit_at = |at: usize| -> Option<u16> {
        let digits = json.get(at..at + LENGTH)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut replaced = Cow::Borrowed(json);
    let mut at = 0;
    while let Some(found) = json.as_bytes().get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        at += match (unit_at(at), unit_at(at + LENGTH)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 2 * LENGTH,
            (Some(0xD800..=0xDFFF), _) => {
                replaced.to_mut().replace_range(at..at + LENGTH, "\\ufffd");
                LENGTH
            }
            (Some(_), _) => LENGTH,
            // An escape of two characters; the second may be a backslash.
            (None, _) => 2,
        };
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_field_affects_no_other() {
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
    fn unused_fields_may_be_deep() {
        let deep = format!(r#"{{"deep":{}{},"a":"x"}}"#, "[".repeat(5000), "]".repeat(5000));
        assert_eq!(with_fields(deep.as_bytes(), |fields| fields.text("a")).as_deref(), Some("x"));
    }

    #[test]
    fn invalid_characters_are_replaced() {
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
        fn any_line_is_read_without_panic(line: Vec<u8>, text in r#"[\\uUdD8cC0f"é\n]{0,40}"#) {
            with_fields(&line, |fields| fields.text("a"));
            prop_assert_eq!(replace_lone_surrogates(&text).len(), text.len());
        }
    }
}
