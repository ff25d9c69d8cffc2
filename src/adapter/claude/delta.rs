//! Text deltas in the form in which the CLI writes them, without a JSON parser.
//!
//! Nearly all lines of a turn have this form. Any other form, valid or not, is left to the parser: what is found here is
//! what the parser finds.

use memchr::memchr2;

const BEFORE_INDEX: &[u8] = br#"{"type":"stream_event","event":{"type":"content_block_delta","index":"#;
const BEFORE_TEXT: &[u8] = br#","delta":{"type":"text_delta","text":"#;
/// Beginnings of the members behind the event, in their usual order.
const STRINGS: [&[u8]; 3] = [br#","session_id":""#, br#","uuid":""#, br#","api_message_id":""#];
const NO_PARENT: &[u8] = br#","parent_tool_use_id":null"#;
/// Most digits of an index: more blocks are left to the parser.
const INDEX_DIGITS: usize = 3;

/// Text delta of the answer itself, not of a subagent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextDelta<'a> {
    /// Index of the block in the model's message.
    pub(super) index: u64,
    /// JSON string literal with its quotes, without lone surrogates.
    pub(super) text: &'a str,
}

impl<'a> TextDelta<'a> {
    /// The delta in a line without its LF; `None` for a line in another form.
    pub(super) fn of(line: &'a [u8]) -> Option<Self> {
        let (index, rest) = index(line.strip_prefix(BEFORE_INDEX)?)?;
        let (text, rest) = string(rest.strip_prefix(BEFORE_TEXT)?)?;
        ends_line(rest.strip_prefix(b"}}")?).then_some(())?;
        (!has_control(line)).then_some(())?;
        Some(Self { index, text: std::str::from_utf8(text).ok()? })
    }
}

/// Whether there is a control character, which no string of JSON may have. One pass without branches over all strings.
fn has_control(line: &[u8]) -> bool {
    // The last chunk may overlap the one before.
    let Some(mut least) = line.last_chunk::<16>().copied() else { return true };
    for chunk in line.as_chunks::<16>().0 {
        for (least, byte) in least.iter_mut().zip(chunk) {
            *least = (*byte).min(*least);
        }
    }
    least.iter().any(|byte| *byte < b' ')
}

/// The number at the beginning, and the bytes behind it.
fn index(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take(INDEX_DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at_checked(digits)?;
    let is_canonical = number == b"0" || number.first().is_some_and(|first| *first != b'0');
    if digits > INDEX_DIGITS || !is_canonical {
        return None;
    }
    Some((number.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')), rest))
}

/// The string at the beginning with its quotes, and the bytes behind it. `None` for escapes of surrogates.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut end = bytes.first().filter(|first| **first == b'"').map(|_| 1)?;
    loop {
        end += memchr2(b'"', b'\\', bytes.get(end..)?)?;
        if bytes.get(end) == Some(&b'"') {
            return bytes.split_at_checked(end + 1);
        }
        end += escape_length(bytes.get(end + 1..)?)?;
    }
}

/// Length of an escape whose backslash stands before `rest`.
fn escape_length(rest: &[u8]) -> Option<usize> {
    match rest {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Some(2),
        [b'u', digits @ ..] => {
            let digits = digits.get(..4)?;
            let is_surrogate = matches!(digits, [b'd' | b'D', b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..]);
            (digits.iter().all(u8::is_ascii_hexdigit) && !is_surrogate).then_some(6)
        }
        _ => None,
    }
}

/// Whether these are the members after `event` and the end of the line: known strings without escapes, and no parent,
/// because the delta is not of a subagent.
fn ends_line(mut rest: &[u8]) -> bool {
    let mut has_parent = false;
    while rest != b"}" {
        let string = STRINGS.iter().find_map(|name| rest.strip_prefix(*name));
        let after = match string {
            Some(string) => plain(string).map(|(_, after)| after),
            None if std::mem::replace(&mut has_parent, true) => None,
            None => rest.strip_prefix(NO_PARENT),
        };
        match after {
            Some(after) => rest = after,
            None => return false,
        }
    }
    true
}

/// The string without escapes whose quote stands before `rest`, and the bytes behind it.
pub(super) fn plain(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr2(b'"', b'\\', rest)?;
    let (string, after) = rest.split_at_checked(end)?;
    Some((string, after.strip_prefix(b"\"")?))
}

#[cfg(test)]
pub(super) mod tests;
