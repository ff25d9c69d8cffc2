//! Renders the events of the Messages API: `message_start`, blocks, `message_delta`, `message_stop`.

use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};

use super::{event, usage};
use crate::adapter::answer::{Block, Part};
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::{lines as lines_of, permission};
use crate::server::dialect::{
    AnswerContext, Dialect, KeptText, Reader, Render, TurnEnd, is_answer, mark_context_lost, new_id,
    stop_reason,
};
use crate::server::files::ChangedFiles;

/// SDKs skip `ping` events; before `message_start` a comment is safer.
const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
const EARLY_PING: &[u8] = b": ping\n\n";

/// The renderer of one turn.
pub(crate) struct Events {
    reader: Reader,
    session: String,
    /// Model as named by the caller, used if none is reported.
    model: String,
    begun: bool,
    text: KeptText,
}

impl Events {
    pub(in crate::server::dialect) fn new(reader: Reader, context: &AnswerContext, keep_text: bool) -> Self {
        let text = KeptText::new(keep_text);
        Self { reader, session: context.session.clone(), model: context.model.clone(), begun: false, text }
    }
}

impl Render for Events {
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut) {
        let Self { reader, begun, text, model, .. } = self;
        frames.reserve(lines.len());
        for line in lines_of(lines) {
            reader.read(line, &mut |part| {
                *begun |= matches!(part, Part::Begin { .. });
                write(part, model, *begun, frames);
                text.keep(part);
            });
        }
    }

    fn ping(&self) -> &'static [u8] {
        if self.begun { PING } else { EARLY_PING }
    }

    fn end(&mut self, ending: TurnEnd<'_>, _files: Option<&ChangedFiles>, frames: &mut BytesMut) {
        let outcome = match ending {
            TurnEnd::Finished(outcome) if is_answer(Dialect::Anthropic, outcome) => outcome,
            TurnEnd::Finished(outcome) => return error(&ApiError::from(&outcome.status), frames),
            TurnEnd::Failed(lost) => return error(&ApiError::from(lost.clone()), frames),
        };
        let Self { reader, begun, text, session, model } = self;
        let said = if outcome.is_ok() { outcome.text.as_str() } else { "" };
        reader.end(said, &mut |part| {
            *begun |= matches!(part, Part::Begin { .. });
            write(part, model, *begun, frames);
            text.keep(part);
        });
        if !std::mem::replace(begun, true) {
            write(Part::Begin { id: "", model, usage: "{}" }, model, true, frames);
        }
        let mut delta = json!({
            "type": "message_delta",
            "delta": { "stop_reason": stop_reason(outcome), "stop_sequence": null },
            "usage": usage(&outcome.usage),
            "session_id": session,
            "cost_usd": outcome.cost_usd,
        });
        mark_context_lost(outcome, &mut delta);
        event(frames, "message_delta", format_args!("{delta}"));
        event(frames, "message_stop", format_args!(r#"{{"type":"message_stop"}}"#));
    }

    fn text(&self) -> String {
        self.text.text()
    }
}

/// Written directly, so that a part costs little more than its bytes.
fn write(part: Part<'_>, request: &str, begun: bool, frames: &mut BytesMut) {
    match part {
        Part::Begin { id, model, usage } => {
            let model = if model.is_empty() { request } else { model };
            let id = if id.is_empty() { new_id("msg_") } else { id.to_owned() };
            let mut usage: Value = serde_json::from_str(usage).unwrap_or_default();
            // SDKs require these fields.
            if !usage.is_object() {
                usage = json!({});
            }
            for field in ["input_tokens", "output_tokens"] {
                if !usage[field].is_u64() {
                    usage[field] = json!(0);
                }
            }
            let start = json!({
                "type": "message_start",
                "message": {
                    "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
                    "stop_reason": null, "stop_sequence": null, "usage": usage,
                },
            });
            event(frames, "message_start", format_args!("{start}"));
        }
        Part::Open { index, block } => {
            let block = match block {
                Block::Text => r#"{"type":"text","text":""}"#,
                Block::Thinking => r#"{"type":"thinking","thinking":"","signature":""}"#,
                Block::Whole(block) => block,
            };
            let data =
                format_args!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#);
            event(frames, "content_block_start", data);
        }
        Part::Text { index, text } => {
            let data = format_args!(
                r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":{text}}}}}"#
            );
            event(frames, "content_block_delta", data);
        }
        Part::Delta { index, delta, .. } => {
            let data = format_args!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#);
            event(frames, "content_block_delta", data);
        }
        Part::Close { index } => {
            let data = format_args!(r#"{{"type":"content_block_stop","index":{index}}}"#);
            event(frames, "content_block_stop", data);
        }
        Part::Waiting => frames.put_slice(if begun { PING } else { EARLY_PING }),
        Part::Permission(request) => {
            frames.put_slice(if begun { PING } else { EARLY_PING });
            permission(request, frames);
        }
    }
}

fn error(error: &ApiError, frames: &mut BytesMut) {
    event(frames, "error", format_args!("{}", error.body(None)));
}
