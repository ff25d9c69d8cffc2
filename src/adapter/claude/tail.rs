//! The last members of a line, read backwards without parsing the rest.
//!
//! The CLI writes the fields that decide what a line is for behind its message, which may be long. Only members with a
//! plain value are read: a text without an escape, a number, `null`, `true` or `false`. The first other one is the end. If
//! the line is JSON, they are members of the outermost object: its last brace closes that one, and no other brace or
//! bracket stands between.

use memchr::memrchr;

/// Longest name or text that is looked for. Ids are shorter.
const LONGEST: usize = 128;

/// The members from the last one on, each with its value as it stands in the line: a text has its quotes.
pub(super) struct Tail<'a>(Option<&'a [u8]>);

impl<'a> Tail<'a> {
    pub(super) fn of(line: &'a [u8]) -> Self {
        Self(line.strip_suffix(b"}"))
    }

    /// The last member of this name, if it is among those that are read.
    pub(super) fn find(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
        Self::of(line).find_map(|(found, value)| (found == name.as_bytes()).then_some(value))
    }
}

impl<'a> Iterator for Tail<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // Taken: after a member that is not read there is no other.
        let rest = self.0.take()?;
        let (rest, value) = value(rest)?;
        let (rest, name) = text(rest.strip_suffix(b":")?)?;
        self.0 = rest.strip_suffix(b",");
        Some((name.get(1..name.len() - 1)?, value))
    }
}

fn value(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    if rest.ends_with(b"\"") {
        return text(rest);
    }
    let begin = rest.iter().rposition(|byte| !(byte.is_ascii_alphanumeric() || b"+-.".contains(byte)))? + 1;
    let (rest, value) = rest.split_at_checked(begin)?;
    (!value.is_empty()).then_some((rest, value))
}

/// Splits a text without an escape off the end, with its quotes.
fn text(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = rest.strip_suffix(b"\"")?;
    let near = inner.get(inner.len().saturating_sub(LONGEST)..)?;
    let length = near.len() - memrchr(b'"', near)?;
    let (rest, text) = rest.split_at_checked(inner.len() - length)?;
    (!text.contains(&b'\\') && !rest.ends_with(b"\\")).then_some((rest, text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Values with what a tail must not be taken in by: quotes, escapes, braces, and members within texts and objects.
    fn values() -> impl Strategy<Value = Value> {
        let text = r#"[a-c"\\{}:,]{0,6}|","uuid":"u|null"#.prop_map(Value::from);
        let leaf = prop_oneof![
            text,
            any::<i32>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::vec(("[a-c]|uuid", inner), 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn tail_has_members_of_the_outermost_object(
            members in prop::collection::vec((r#"[a-c"\\]{1,3}|uuid"#, values()), 0..6),
        ) {
            let object = Value::Object(members.into_iter().collect());
            let line = object.to_string();
            let mut left: Vec<(String, Value)> = object.as_object().unwrap().clone().into_iter().collect();
            for (name, value) in Tail::of(line.as_bytes()) {
                let (last_name, last) = left.pop().unwrap();
                prop_assert_eq!(name, last_name.as_bytes());
                prop_assert_eq!(serde_json::from_slice::<Value>(value).unwrap(), last);
            }
            // It ends at a value or a name that is not plain.
            if let Some((name, value)) = left.last() {
                let is_escaped = |text: &str| text.contains(['"', '\\']);
                let is_plain = !value.is_object() && !value.is_array() && !value.as_str().is_some_and(is_escaped);
                prop_assert!(!is_plain || is_escaped(name));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(line: Vec<u8>, text in r#"[\\"a:,{}]{0,40}"#) {
            Tail::of(&line).count();
            Tail::of(text.as_bytes()).count();
        }
    }
}
