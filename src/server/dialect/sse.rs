//! Frames of `text/event-stream`: CLI lines are forwarded unparsed, with one allocation per read. Pure.

use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};

/// End of every stream.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
/// Heartbeat comment: keeps proxies from closing a silent stream.
pub(crate) const PING: &[u8] = b": ping\n\n";

const BEFORE: &[u8] = b"data: ";
const AFTER: &[u8] = b"\n\n";

/// One event per line. Empty lines are omitted; CR, which would end the line, becomes a space (equivalent between JSON
/// tokens); invalid UTF-8 is replaced.
pub(crate) fn frames(lines: &[u8], frames: &mut BytesMut) {
    if std::str::from_utf8(lines).is_err() {
        return self::frames(String::from_utf8_lossy(lines).as_bytes(), frames);
    }
    // JSON lines have none; one search over all of them is cheaper than one in each.
    let has_cr = memchr::memchr(b'\r', lines).is_some();
    let count = memchr::memchr_iter(b'\n', lines).count() + 1;
    frames.reserve(lines.len() + count * (BEFORE.len() + AFTER.len()));
    for line in self::lines(lines) {
        let line = if has_cr { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        if line.is_empty() {
            continue;
        }
        frames.put_slice(BEFORE);
        let begin = frames.len();
        frames.put_slice(line);
        if has_cr {
            let written = frames.get_mut(begin..).unwrap_or_default();
            written.iter_mut().filter(|byte| **byte == b'\r').for_each(|byte| *byte = b' ');
        }
        frames.put_slice(AFTER);
    }
}

/// Non-empty lines. Vectorised search, because all CLI output passes here.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at_checked(end)?;
            rest = after.get(1..).unwrap_or_default();
            if !line.is_empty() {
                return Some(line);
            }
        }
        None
    })
}

/// Pending permission as a comment: SDKs skip it, direct readers of the stream may answer. CR is removed.
pub(crate) fn permission(request: &str, frames: &mut BytesMut) {
    frames.put_slice(b": permission ");
    frames.extend(request.bytes().map(|byte| if byte == b'\r' { b' ' } else { byte }));
    frames.put_slice(AFTER);
}

pub(crate) fn event(value: &Value, frames: &mut BytesMut) {
    self::frames(value.to_string().as_bytes(), frames);
}

pub(crate) fn error_event(code: &str, message: &str, frames: &mut BytesMut) {
    event(&json!({ "type": "error", "error": { "message": message, "code": code } }), frames);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(lines: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        frames(lines, &mut out);
        out
    }

    #[test]
    fn each_line_is_one_event() {
        assert_eq!(&framed(b"{\"a\":1}\n{\"b\":2}\n")[..], b"data: {\"a\":1}\n\ndata: {\"b\":2}\n\n");
        assert_eq!(&framed(b"{}")[..], b"data: {}\n\n");
        assert_eq!(&framed(b"\n\r\n\n")[..], b"");
        assert_eq!(lines(b"\na\n\nb").collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn line_content_cannot_end_the_event() {
        assert_eq!(&framed(b"{\r\"a\":1}\r\n")[..], b"data: { \"a\":1}\n\n");
        assert_eq!(framed(b"\xff{}\n"), "data: \u{fffd}{}\n\n".as_bytes());
    }

    #[test]
    fn a_failure_is_one_event() {
        let mut frame = BytesMut::new();
        error_event("storage", "a\nb", &mut frame);
        let expected =
            "data: {\"error\":{\"code\":\"storage\",\"message\":\"a\\nb\"},\"type\":\"error\"}\n\n";
        assert_eq!(frame, expected.as_bytes());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_give_well_formed_events(lines: Vec<u8>) {
            let frames = framed(&lines);
            let text = std::str::from_utf8(&frames).unwrap();
            proptest::prop_assert!(!text.contains('\r'));
            for event in text.split_terminator("\n\n") {
                proptest::prop_assert!(event.starts_with("data: ") && !event.contains('\n'));
            }
        }
    }
}
