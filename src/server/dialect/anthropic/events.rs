//! Renders the events of the Messages API: `message_start`, blocks, `message_delta`, `message_stop`.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};

use super::event;
use crate::adapter::answer::{Block, Part};
use crate::model::Usage;
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::permission;
use crate::server::dialect::streamed::PartWriter;
use crate::server::dialect::{AnswerContext, new_id, stop_reason};
use crate::turn::Outcome;

/// SDKs skip `ping` events; before `message_start` a comment is safer.
const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
const EARLY_PING: &[u8] = b": ping\n\n";

pub(crate) struct EventWriter {
    session: String,
    /// Model as named by the caller, used if none is reported.
    model: String,
    begun: bool,
    /// The event of a text delta up to its text, rendered once per block.
    before_text: (u32, String),
}

impl EventWriter {
    pub(in crate::server::dialect) fn new(context: &AnswerContext) -> Self {
        Self {
            session: context.session.clone(),
            model: context.model.clone(),
            begun: false,
            before_text: (0, before_text(0)),
        }
    }
}

/// Tokens so far, as an object with the fields that SDKs require.
fn with_required_counts(usage: &str) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Required {
        #[serde(rename = "input_tokens")]
        _input: u64,
        #[serde(rename = "output_tokens")]
        _output: u64,
    }
    // Nearly always. CR, which JSON allows between its tokens, would end the line of an event.
    let is_object = usage.starts_with('{') && !usage.contains('\r');
    if is_object && serde_json::from_str::<Required>(usage).is_ok() {
        return Cow::Borrowed(usage);
    }
    Cow::Owned(completed(usage).to_string())
}

/// The same for any text: what is missing or no number counts as 0.
fn completed(usage: &str) -> Value {
    let mut usage: Value = serde_json::from_str(usage).unwrap_or_default();
    if !usage.is_object() {
        usage = json!({});
    }
    for field in ["input_tokens", "output_tokens"] {
        if !usage[field].is_u64() {
            usage[field] = json!(0);
        }
    }
    usage
}

fn before_text(index: u32) -> String {
    format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{index},\"delta\":{{\"type\":\"text_delta\",\"text\":"
    )
}

impl PartWriter for EventWriter {
    const DONE: &[u8] = b"";

    fn ping(&self) -> &'static [u8] {
        if self.begun { PING } else { EARLY_PING }
    }

    fn end(&mut self, outcome: &Outcome, frames: &mut BytesMut) {
        if !self.begun {
            self.part(Part::Begin { id: "", model: "", usage: "{}" }, frames);
        }
        // Written by hand, as `message_start`: a tree of values for each costs more than all deltas of a short answer.
        let lost = if outcome.context_lost { r#""context_lost":true,"# } else { "" };
        let cost = Value::from(outcome.cost_usd);
        let reason = Value::from(stop_reason(outcome));
        let session = Value::from(self.session.as_str());
        let Usage {
            input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, ..
        } = outcome.usage;
        event(
            frames,
            "message_delta",
            format_args!(
                r#"{{{lost}"cost_usd":{cost},"delta":{{"stop_reason":{reason},"stop_sequence":null}},"session_id":{session},"type":"message_delta","usage":{{"cache_creation_input_tokens":{cache_creation_input_tokens},"cache_read_input_tokens":{cache_read_input_tokens},"input_tokens":{input_tokens},"output_tokens":{output_tokens}}}}}"#
            ),
        );
        event(frames, "message_stop", format_args!(r#"{{"type":"message_stop"}}"#));
    }

    fn error(&mut self, error: &ApiError, frames: &mut BytesMut) {
        event(frames, "error", format_args!("{}", error.body(None)));
    }

    fn part(&mut self, part: Part<'_>, frames: &mut BytesMut) {
        match part {
            Part::Begin { id, model, usage } => {
                self.begun = true;
                let model = if model.is_empty() { &self.model } else { model };
                let id = if id.is_empty() { new_id("msg_") } else { id.to_owned() };
                let (id, model, usage) = (Value::from(id), Value::from(model), with_required_counts(usage));
                event(
                    frames,
                    "message_start",
                    format_args!(
                        r#"{{"message":{{"content":[],"id":{id},"model":{model},"role":"assistant","stop_reason":null,"stop_sequence":null,"type":"message","usage":{usage}}},"type":"message_start"}}"#
                    ),
                );
            }
            Part::Open { index, block } => {
                let block = match block {
                    Block::Text => r#"{"type":"text","text":""}"#,
                    Block::Thinking => r#"{"type":"thinking","thinking":"","signature":""}"#,
                    Block::Whole(block) => block,
                };
                let data = format_args!(
                    r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#
                );
                event(frames, "content_block_start", data);
            }
            Part::Text { index, text } => {
                if self.before_text.0 != index {
                    self.before_text = (index, before_text(index));
                }
                frames.put_slice(self.before_text.1.as_bytes());
                frames.put_slice(text.as_bytes());
                frames.put_slice(b"}}\n\n");
            }
            Part::Delta { index, delta, .. } => {
                let data =
                    format_args!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#);
                event(frames, "content_block_delta", data);
            }
            Part::Close { index } => {
                let data = format_args!(r#"{{"type":"content_block_stop","index":{index}}}"#);
                event(frames, "content_block_stop", data);
            }
            Part::Call { index, call, .. } => {
                let block = json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
                let data = format_args!(
                    r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#
                );
                event(frames, "content_block_start", data);
                let delta = json!({ "type": "input_json_delta", "partial_json": call.input.to_string() });
                let data =
                    format_args!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#);
                event(frames, "content_block_delta", data);
                self.part(Part::Close { index }, frames);
            }
            Part::Waiting => frames.put_slice(self.ping()),
            Part::Permission(request) => {
                frames.put_slice(self.ping());
                permission(request, frames);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::server::dialect::anthropic::usage as usage_of;
    use crate::turn::Status;

    fn data(frames: &BytesMut) -> Vec<String> {
        let frames = std::str::from_utf8(frames).unwrap();
        frames.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
    }

    fn writer(session: &str, model: &str) -> EventWriter {
        EventWriter::new(&AnswerContext { session: session.to_owned(), created: 0, model: model.to_owned() })
    }

    proptest! {
        #[test]
        fn start_is_that_of_a_tree(
            id in "\\PC{1,8}", model in "\\PC{1,8}", input in "[0-9]{1,3}|-1|1.5|null|\"7\"", more in "[a-z\\r ]{0,4}",
        ) {
            // In the order of the alphabet, so that the bytes can be compared.
            for usage in [
                format!("{{\"input_tokens\":{input},\"output_tokens\":3,\"z\":{{}}}}"),
                format!("{{\"input_tokens\":{input},{}\"output_tokens\":3}}", more.replace(|it| it != '\r' && it != ' ', "")),
                format!("{{\"output_tokens\":{input}}}"),
                "[1,2]".to_owned(),
                more.clone(),
            ] {
                let mut frames = BytesMut::new();
                writer("s", "m").part(Part::Begin { id: &id, model: &model, usage: &usage }, &mut frames);
                let tree = json!({
                    "type": "message_start",
                    "message": {
                        "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
                        "stop_reason": null, "stop_sequence": null, "usage": completed(&usage),
                    },
                });
                let sent = data(&frames);
                prop_assert_eq!(sent.len(), 1);
                prop_assert!(!sent[0].contains('\r'));
                let is_spaced = usage.contains(' ');
                let expected = if is_spaced { serde_json::from_str::<Value>(&sent[0]).unwrap().to_string() } else { sent[0].clone() };
                prop_assert_eq!(expected, tree.to_string());
            }
        }

        #[test]
        fn end_is_that_of_a_tree(session in "\\PC{0,8}", reason in "\\PC{1,8}", cost: f64, input: u64, output: u64, context_lost: bool) {
            let usage = Usage { input_tokens: input, output_tokens: output, ..Usage::default() };
            let outcome = Outcome {
                status: Status::Completed,
                text: String::new(),
                stop_reason: Some(reason),
                tool_calls: Vec::new(),
                usage,
                cost_usd: cost,
                cli_session_id: String::new(),
                retries: 0,
                context_lost,
                duration: Duration::ZERO,
            };
            let mut tree = json!({
                "type": "message_delta",
                "delta": { "stop_reason": stop_reason(&outcome), "stop_sequence": null },
                "usage": usage_of(&outcome.usage),
                "session_id": session,
                "cost_usd": cost,
            });
            crate::server::dialect::mark_context_lost(&outcome, &mut tree);
            let (mut frames, mut writer) = (BytesMut::new(), writer(&session, "m"));
            writer.begun = true;
            writer.end(&outcome, &mut frames);
            prop_assert_eq!(&data(&frames)[0], &tree.to_string());
        }
    }
}
