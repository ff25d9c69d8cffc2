//! Lines of a turn that have parts of its answer. Forwarded values stay unparsed.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::adapter::claude::delta::plain;

/// Whether the beginning of a line shows that it has no part of an answer, so that it need not be parsed. Some of these
/// lines are long. A line that repeats one of these fields later is refused by the parser.
pub(super) fn adds_nothing(line: &[u8], by_deltas: bool) -> bool {
    let Some((kind, rest)) = line.strip_prefix(br#"{"type":""#).and_then(plain) else { return false };
    let next = |before: &[u8]| rest.strip_prefix(before).and_then(plain).map(|(value, _)| value);
    match kind {
        b"assistant" | b"control_request" => false,
        b"system" => next(br#","subtype":""#).is_some_and(|subtype| subtype != b"api_retry"),
        b"stream_event" if by_deltas => {
            let event = next(br#","event":{"type":""#);
            event.is_some_and(|event| event != b"message_start" && !event.starts_with(b"content_block_"))
        }
        _ => true,
    }
}

#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    /// Unparsed: an optional text would be copied.
    #[serde(borrow)]
    pub(super) subtype: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) event: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) message: Option<&'a RawValue>,
    /// Error of the CLI itself, which the end of the turn reports.
    pub(super) error: Option<serde::de::IgnoredAny>,
    pub(super) parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
pub(super) struct ApiEvent<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    pub(super) index: Option<u64>,
    #[serde(borrow)]
    pub(super) message: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) delta: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    pub(super) id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Vec<&'a RawValue>,
}

/// Content block or delta.
#[derive(Deserialize)]
pub(super) struct Piece<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) text: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) signature: Option<&'a RawValue>,
}
