//! Renders the events of a response.
//!
//! `response.created`, `response.in_progress`, the items one after the other, and exactly one of `response.completed`,
//! `response.incomplete` and `response.failed`. Events are numbered from 0 without gaps. Each block of the answer is an
//! item with one part.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::object::{Object, incomplete};
use super::output::{call, message, reasoning, summary_part, text_part};
use super::request::Asked;
use crate::adapter::answer::{Block, Part};
use crate::model::ToolCall;
use crate::server::api::error::ApiError;
use crate::server::dialect::AnswerContext;
use crate::server::dialect::sse::{PING, permission};
use crate::server::dialect::streamed::PartWriter;
use crate::server::responses::ResponseId;
use crate::turn::Outcome;

pub(crate) struct EventWriter {
    id: ResponseId,
    object: Object,
    /// As named by the caller, until the CLI reports one.
    model: String,
    sequence: u64,
    begun: bool,
    open: Option<Item>,
    /// Items that are done, as JSON.
    items: Vec<String>,
    /// The response as it ended with an answer.
    document: Option<String>,
}

/// The item whose block is open.
struct Item {
    id: String,
    is_text: bool,
    /// The text so far, as the inside of a JSON string.
    text: String,
    /// The event of a delta up to its text: constant for an item.
    before_delta: String,
    /// Whether the only part of a reasoning item has begun.
    has_part: bool,
}

impl EventWriter {
    pub(in crate::server::dialect) fn new(context: &AnswerContext, asked: &Asked) -> Self {
        Self {
            id: asked.id.clone(),
            object: Object::new(context, asked),
            model: context.model.clone(),
            sequence: 0,
            begun: false,
            open: None,
            items: Vec::new(),
            document: None,
        }
    }

    /// `fields` follow the type: `,"name":value`.
    fn event(&mut self, kind: &str, fields: std::fmt::Arguments<'_>, frames: &mut BytesMut) {
        let number = self.next();
        let written = write!(
            frames,
            "event: {kind}\ndata: {{\"type\":\"{kind}\"{fields},\"sequence_number\":{number}}}\n\n"
        );
        // Writing to memory does not fail.
        debug_assert!(written.is_ok());
    }

    fn next(&mut self) -> u64 {
        let number = self.sequence;
        self.sequence += 1;
        number
    }

    fn begin(&mut self, frames: &mut BytesMut) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let response = self.object.begun(&self.model);
        self.event("response.created", format_args!(r#","response":{response}"#), frames);
        self.event("response.in_progress", format_args!(r#","response":{response}"#), frames);
    }

    fn open(&mut self, block: Block<'_>, frames: &mut BytesMut) {
        let index = self.items.len();
        let is_text = match block {
            Block::Text => true,
            Block::Thinking => false,
            // An encrypted thought, which nobody can read.
            Block::Whole(_) => return,
        };
        let id = self.id.output_item(if is_text { "msg" } else { "rs" }, index);
        let item = if is_text { message(&id, "in_progress", None) } else { reasoning(&id, None) };
        self.event(
            "response.output_item.added",
            format_args!(r#","output_index":{index},"item":{item}"#),
            frames,
        );
        let (kind, at) = if is_text {
            ("output_text", "content_index")
        } else {
            ("reasoning_summary_text", "summary_index")
        };
        let before_delta = format!(
            "event: response.{kind}.delta\ndata: {{\"type\":\"response.{kind}.delta\",\"item_id\":\"{id}\",\"output_index\":{index},\"{at}\":0,\"delta\":"
        );
        self.open = Some(Item { id, is_text, text: String::new(), before_delta, has_part: false });
        if is_text {
            self.begin_part(frames);
        }
    }

    /// Announces the only part of the open item.
    fn begin_part(&mut self, frames: &mut BytesMut) {
        let index = self.items.len();
        let Some(item) = self.open.as_mut().filter(|item| !item.has_part) else { return };
        item.has_part = true;
        let (id, is_text) = (item.id.clone(), item.is_text);
        let place = place(&id, index, is_text);
        if is_text {
            let part = text_part("\"\"");
            self.event("response.content_part.added", format_args!(r#"{place},"part":{part}"#), frames);
        } else {
            let part = summary_part("\"\"");
            self.event(
                "response.reasoning_summary_part.added",
                format_args!(r#"{place},"part":{part}"#),
                frames,
            );
        }
    }

    /// `text` is a JSON string.
    fn delta(&mut self, text: &str, frames: &mut BytesMut) {
        let number = self.sequence;
        let Some(item) = &mut self.open else { return };
        item.text
            .push_str(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default());
        frames.put_slice(item.before_delta.as_bytes());
        frames.put_slice(text.as_bytes());
        let logprobs = if item.is_text { ",\"logprobs\":[]" } else { "" };
        let written = write!(frames, "{logprobs},\"sequence_number\":{number}}}\n\n");
        debug_assert!(written.is_ok());
        self.sequence += 1;
    }

    /// A call comes as a whole.
    fn call(&mut self, called: &ToolCall, frames: &mut BytesMut) {
        self.begin(frames);
        self.close(frames);
        let index = self.items.len();
        let id = self.id.output_item("fc", index);
        let (named, arguments) = ((called.id.as_str(), called.name.as_str()), called.input.to_string());
        let item = call(&id, named, "in_progress", "");
        self.event(
            "response.output_item.added",
            format_args!(r#","output_index":{index},"item":{item}"#),
            frames,
        );
        let text = Value::from(arguments.as_str());
        let place = format!(r#","item_id":"{id}","output_index":{index}"#);
        self.event(
            "response.function_call_arguments.delta",
            format_args!(r#"{place},"delta":{text}"#),
            frames,
        );
        let name = Value::from(called.name.as_str());
        self.event(
            "response.function_call_arguments.done",
            format_args!(r#"{place},"name":{name},"arguments":{text}"#),
            frames,
        );
        let done = call(&id, named, "completed", &arguments);
        self.event(
            "response.output_item.done",
            format_args!(r#","output_index":{index},"item":{done}"#),
            frames,
        );
        self.items.push(done);
    }

    fn close(&mut self, frames: &mut BytesMut) {
        let Some(item) = self.open.take() else { return };
        let (index, id) = (self.items.len(), &item.id);
        let text = format!("\"{}\"", item.text);
        let place = place(id, index, item.is_text);
        let done = if item.is_text {
            self.event(
                "response.output_text.done",
                format_args!(r#"{place},"text":{text},"logprobs":[]"#),
                frames,
            );
            let part = text_part(&text);
            self.event("response.content_part.done", format_args!(r#"{place},"part":{part}"#), frames);
            message(id, "completed", Some(&text))
        } else if item.has_part {
            self.event(
                "response.reasoning_summary_text.done",
                format_args!(r#"{place},"text":{text}"#),
                frames,
            );
            let part = summary_part(&text);
            self.event(
                "response.reasoning_summary_part.done",
                format_args!(r#"{place},"part":{part}"#),
                frames,
            );
            reasoning(id, Some(&text))
        } else {
            reasoning(id, None)
        };
        self.event(
            "response.output_item.done",
            format_args!(r#","output_index":{index},"item":{done}"#),
            frames,
        );
        self.items.push(done);
    }
}

/// Where in the response a part is.
fn place(id: &str, index: usize, is_text: bool) -> String {
    let at = if is_text { "content_index" } else { "summary_index" };
    format!(r#","item_id":"{id}","output_index":{index},"{at}":0"#)
}

impl PartWriter for EventWriter {
    const DONE: &[u8] = b"";

    fn part(&mut self, part: Part<'_>, frames: &mut BytesMut) {
        match part {
            Part::Begin { model, .. } => {
                if !model.is_empty() {
                    model.clone_into(&mut self.model);
                }
                self.begin(frames);
            }
            Part::Open { block, .. } => {
                self.begin(frames);
                self.open(block, frames);
            }
            Part::Text { text, .. } => self.delta(text, frames),
            Part::Delta { thought: Some(thought), .. } => {
                self.begin_part(frames);
                self.delta(thought, frames);
            }
            Part::Delta { thought: None, .. } => {}
            Part::Close { .. } => self.close(frames),
            Part::Call { call, .. } => self.call(call, frames),
            Part::Waiting => frames.put_slice(PING),
            Part::Permission(request) => permission(request, frames),
        }
    }

    fn ping(&self) -> &'static [u8] {
        PING
    }

    fn end(&mut self, outcome: &Outcome, frames: &mut BytesMut) {
        self.begin(frames);
        self.close(frames);
        let response = self.object.ended(&self.model, outcome, &self.items);
        let kind = if incomplete(outcome).is_some() { "response.incomplete" } else { "response.completed" };
        self.event(kind, format_args!(r#","response":{response}"#), frames);
        self.document = Some(response);
    }

    /// The response has failed, for those who read its object; and an event on which SDKs raise their exception.
    fn error(&mut self, error: &ApiError, frames: &mut BytesMut) {
        self.begin(frames);
        self.close(frames);
        let response = self.object.failed(&self.model, (error.code(), error.message()), &self.items);
        self.event("response.failed", format_args!(r#","response":{response}"#), frames);
        let Value::Object(body) = error.response_event() else { return };
        let fields = body.iter().filter(|(name, _)| *name != "type");
        let fields: String = fields.map(|(name, value)| format!(r#","{name}":{value}"#)).collect();
        self.event("error", format_args!("{fields}"), frames);
    }

    fn document(&mut self) -> Option<String> {
        self.document.take()
    }
}
