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

/// A line. What cannot be read of an event or a message counts as missing.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    /// Unparsed: an optional text would be copied.
    #[serde(borrow)]
    pub(super) subtype: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) event: Option<ApiEvent<'a>>,
    #[serde(borrow)]
    pub(super) message: Option<Message<'a>>,
    /// Error of the CLI itself, which the end of the turn reports.
    pub(super) error: Option<serde::de::IgnoredAny>,
    pub(super) parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ApiEvent<'a> {
    #[serde(borrow)]
    pub(super) r#type: Cow<'a, str>,
    pub(super) index: Option<u64>,
    #[serde(borrow)]
    pub(super) message: Option<Message<'a>>,
    #[serde(borrow)]
    pub(super) content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) delta: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize, Default)]
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

/// A line whose inner objects are not parsed yet.
#[derive(Deserialize)]
struct OuterLine<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    error: Option<serde::de::IgnoredAny>,
    parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct OuterEvent<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    index: Option<u64>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
}

impl<'a> Line<'a> {
    /// Reads a line in one pass, as nearly every line can be; one with an odd part in several.
    pub(super) fn read(line: &'a str) -> Option<Self> {
        serde_json::from_str(line).ok().or_else(|| Self::read_by_parts(line))
    }

    fn read_by_parts(line: &'a str) -> Option<Self> {
        let outer: OuterLine<'a> = serde_json::from_str(line).ok()?;
        Some(Self {
            r#type: outer.r#type,
            subtype: outer.subtype,
            event: outer.event.and_then(ApiEvent::read_by_parts),
            message: outer.message.and_then(part),
            error: outer.error,
            parent_tool_use_id: outer.parent_tool_use_id,
        })
    }
}

impl<'a> ApiEvent<'a> {
    fn read_by_parts(event: &'a RawValue) -> Option<Self> {
        let outer: OuterEvent<'a> = part(event)?;
        Some(Self {
            r#type: outer.r#type,
            index: outer.index,
            message: outer.message.and_then(part),
            content_block: outer.content_block,
            delta: outer.delta,
        })
    }
}

fn part<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Option<T> {
    serde_json::from_str(json.get()).ok()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON in which every field of a line may be what it should be, or something else.
    fn value(depth: u32) -> BoxedStrategy<String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("7".to_owned()),
            Just("-1".to_owned()),
            Just("[]".to_owned()),
            Just(r#"["a",{}]"#.to_owned()),
            Just(r#""text""#.to_owned()),
            Just(r#""\\u0061\\n""#.to_owned()),
            Just("{}".to_owned()),
        ];
        if depth == 0 {
            return leaf.boxed();
        }
        let name = prop::sample::select(vec![
            "type",
            "subtype",
            "event",
            "message",
            "error",
            "index",
            "delta",
            "content_block",
            "id",
            "model",
            "usage",
            "content",
            "other",
        ]);
        let object = prop::collection::vec((name, value(depth - 1)), 0..6).prop_map(|fields| {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(","))
        });
        prop_oneof![leaf, object].boxed()
    }

    proptest! {
        #[test]
        fn one_pass_reads_what_several_read(event in value(2), message in value(2), inner in value(1), rest in value(1)) {
            for line in [
                format!("{{\"type\":\"stream_event\",\"event\":{event},\"other\":{rest}}}"),
                format!("{{\"type\":\"stream_event\",\"event\":{{\"type\":\"a\",\"index\":0,\"message\":{message}}}}}"),
                format!("{{\"type\":\"assistant\",\"message\":{message},\"error\":{rest},\"subtype\":{inner}}}"),
                event.clone(),
            ] {
                prop_assert_eq!(format!("{:?}", Line::read(&line)), format!("{:?}", Line::read_by_parts(&line)), "{}", line);
            }
        }
    }
}
