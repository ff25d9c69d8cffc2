//! Writes JSON into a byte buffer in the order of the calls, without a tree. `type` stays the first field, as hosts
//! expect.

use std::io::Write as _;

use serde_json::Value;

/// Appends one object to `out`.
pub(crate) fn object(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    fill(&mut Object { out, first: true });
    out.push(b'}');
}

/// Writer of an object.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        string(self.out, key);
        self.out.push(b':');
    }

    pub(crate) fn str(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        string(self.out, value);
        self
    }

    /// A string or null.
    pub(crate) fn opt(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.str(key, value),
            None => self.null(key),
        }
    }

    pub(crate) fn int(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        display(self.out, value);
        self
    }

    pub(crate) fn num(&mut self, key: &str, value: f64) -> &mut Self {
        self.key(key);
        display(self.out, value);
        self
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, if value { b"true" } else { b"false" })
    }

    pub(crate) fn null(&mut self, key: &str) -> &mut Self {
        self.raw(key, b"null")
    }

    /// Bytes that are valid JSON.
    pub(crate) fn raw(&mut self, key: &str, json: &[u8]) -> &mut Self {
        self.key(key);
        self.out.extend_from_slice(json);
        self
    }

    pub(crate) fn value(&mut self, key: &str, value: &Value) -> &mut Self {
        self.key(key);
        display(self.out, value);
        self
    }

    pub(crate) fn strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        self.array(key, |array| {
            for value in values {
                array.str(value.as_ref());
            }
        })
    }

    pub(crate) fn object(&mut self, key: &str, fill: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.key(key);
        object(self.out, fill);
        self
    }

    pub(crate) fn array(&mut self, key: &str, fill: impl FnOnce(&mut Array<'_>)) -> &mut Self {
        self.key(key);
        self.out.push(b'[');
        fill(&mut Array { out: self.out, first: true });
        self.out.push(b']');
        self
    }
}

/// Writer of an array.
pub(crate) struct Array<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl Array<'_> {
    fn next(&mut self) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
    }

    pub(crate) fn str(&mut self, value: &str) {
        self.next();
        string(self.out, value);
    }

    pub(crate) fn object(&mut self, fill: impl FnOnce(&mut Object<'_>)) {
        self.next();
        object(self.out, fill);
    }
}

fn display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    // A write into a Vec cannot fail; a failing Display becomes null.
    if write!(out, "{value}").is_err() {
        out.extend_from_slice(b"null");
    }
}

/// Appends `text` as a JSON string with the escapes of JavaScript's `JSON.stringify`.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut plain = 0;
    let bytes = text.as_bytes();
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(bytes.get(plain..at).unwrap_or_default());
        plain = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            other => display(out, format_args!("\\u{other:04x}")),
        }
    }
    out.extend_from_slice(bytes.get(plain..).unwrap_or_default());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::{object, string};

    #[test]
    fn escaped_strings_parse_to_themselves() {
        for text in ["", "plain", "a\"b\\c\n\r\t\u{8}\u{c}\u{0}\u{1b}", "ü\u{2028}𝄞", "\\u0041"] {
            let mut out = Vec::new();
            string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn fields_keep_the_order_of_calls() {
        let mut out = Vec::new();
        object(&mut out, |o| {
            o.str("type", "x").int("b", 1).array("a", |a| a.str("q")).object("o", |o| {
                o.null("n").bool("t", true).num("f", 0.0001);
            });
        });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#"{"type":"x","b":1,"a":["q"],"o":{"n":null,"t":true,"f":0.0001}}"#
        );
    }
}
