//! Renders the chunks of a chat completion.

use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};

use super::{finish_reason, usage};
use crate::adapter::answer::Part;
use crate::server::api::error::ApiError;
use crate::server::dialect::sse::{DONE, PING, lines as lines_of, permission};
use crate::server::dialect::{
    AnswerContext, Dialect, KeptText, Reader, Render, TurnEnd, TurnRequest, is_answer, new_id,
};
use crate::server::files::ChangedFiles;
use crate::turn::Outcome;

/// Marks a loss of context: a comment, because chunks have no field for it.
const CONTEXT_LOST: &[u8] = b": context_lost\n\n";

/// The renderer of one turn.
pub(crate) struct Chunks {
    reader: Reader,
    writer: ChunkWriter,
    text: KeptText,
    session: String,
}

/// The constant part of each chunk, rendered once.
struct ChunkWriter {
    id: String,
    created: u64,
    model: String,
    /// Everything before the delta.
    before: String,
    begun: bool,
    /// Clients that ask for token counts expect the field in every chunk.
    with_usage: bool,
}

impl Chunks {
    pub(in crate::server::dialect) fn new(
        reader: Reader,
        context: &AnswerContext,
        request: &TurnRequest,
        keep_text: bool,
    ) -> Self {
        let mut writer = ChunkWriter {
            id: new_id("chatcmpl-"),
            created: context.created,
            model: request.model.clone(),
            before: String::new(),
            begun: false,
            with_usage: request.include_usage,
        };
        writer.prepare();
        Self { reader, writer, text: KeptText::new(keep_text), session: context.session.clone() }
    }
}

impl ChunkWriter {
    fn prepare(&mut self) {
        // Writing to memory does not fail.
        let model = serde_json::to_string(&self.model).unwrap_or_default();
        let (id, created) = (&self.id, self.created);
        self.before = format!(
            r#"{{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":{model},"choices":[{{"index":0,"delta":"#
        );
    }

    fn delta(&self, delta: &[&str], finish_reason: &str, frames: &mut BytesMut) {
        frames.put_slice(b"data: ");
        frames.put_slice(self.before.as_bytes());
        for piece in delta {
            frames.put_slice(piece.as_bytes());
        }
        frames.put_slice(br#","finish_reason":"#);
        frames.put_slice(finish_reason.as_bytes());
        frames.put_slice(b"}]");
        if self.with_usage {
            frames.put_slice(br#","usage":null"#);
        }
        frames.put_slice(b"}\n\n");
    }

    fn begin(&mut self, frames: &mut BytesMut) {
        if !std::mem::replace(&mut self.begun, true) {
            self.delta(&[r#"{"role":"assistant","content":""}"#], "null", frames);
        }
    }

    fn write(&mut self, part: Part<'_>, frames: &mut BytesMut) {
        match part {
            Part::Begin { model, .. } => {
                if !model.is_empty() {
                    model.clone_into(&mut self.model);
                    self.prepare();
                }
                self.begin(frames);
            }
            Part::Text { text, .. } => self.delta(&[r#"{"content":"#, text, "}"], "null", frames),
            Part::Delta { thought: Some(thought), .. } => {
                self.delta(&[r#"{"reasoning_content":"#, thought, "}"], "null", frames);
            }
            Part::Open { .. } | Part::Close { .. } | Part::Delta { thought: None, .. } => {}
            Part::Waiting => frames.put_slice(PING),
            Part::Permission(request) => permission(request, frames),
        }
    }
}

impl Render for Chunks {
    fn lines(&mut self, lines: &[u8], frames: &mut BytesMut) {
        let Self { reader, writer, text, .. } = self;
        frames.reserve(lines.len());
        for line in lines_of(lines) {
            reader.read(line, &mut |part| {
                writer.write(part, frames);
                text.keep(part);
            });
        }
    }

    fn ping(&self) -> &'static [u8] {
        PING
    }

    fn end(&mut self, ending: TurnEnd<'_>, _files: Option<&ChangedFiles>, frames: &mut BytesMut) {
        match ending {
            TurnEnd::Finished(outcome) if is_answer(Dialect::OpenAi, outcome) => {
                self.answered(outcome, frames)
            }
            TurnEnd::Finished(outcome) => error(&ApiError::from(&outcome.status), frames),
            TurnEnd::Failed(lost) => error(&ApiError::from(lost.clone()), frames),
        }
        frames.put_slice(DONE);
    }

    fn text(&self) -> String {
        self.text.text()
    }
}

impl Chunks {
    fn answered(&mut self, outcome: &Outcome, frames: &mut BytesMut) {
        let Self { reader, writer, text, .. } = self;
        let said = if outcome.is_ok() { outcome.text.as_str() } else { "" };
        reader.end(said, &mut |part| {
            writer.write(part, frames);
            text.keep(part);
        });
        writer.begin(frames);
        if outcome.context_lost {
            frames.put_slice(CONTEXT_LOST);
        }
        writer.delta(&["{}"], &format!("\"{}\"", finish_reason(outcome)), frames);
        if writer.with_usage {
            let last = json!({
                "id": writer.id,
                "object": "chat.completion.chunk",
                "created": writer.created,
                "model": writer.model,
                "choices": [],
                "usage": usage(&outcome.usage),
                "session_id": self.session,
                "cost_usd": outcome.cost_usd,
            });
            data(&last, frames);
        }
    }
}

fn data(value: &Value, frames: &mut BytesMut) {
    frames.put_slice(b"data: ");
    frames.put_slice(value.to_string().as_bytes());
    frames.put_slice(b"\n\n");
}

fn error(error: &ApiError, frames: &mut BytesMut) {
    data(&error.openai_body(), frames);
}
