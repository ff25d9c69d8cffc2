//! Converts the lines of a turn to the parts of its answer.
//!
//! A turn has several messages of the model, one before each use of a tool. Each message comes twice: as deltas, and as
//! complete blocks. Callers get one answer: the visible blocks of all messages, numbered consecutively. When a stream
//! breaks, the CLI repeats the request without streaming and retracts nothing: the complete block then provides the text
//! that did not come as deltas.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::delta::TextDelta;
use super::fields::replace_lone_surrogates;
use crate::adapter::answer::{Block, Part};
use crate::model::ToolCall;

mod lines;
#[cfg(test)]
mod tests;

use lines::{ApiEvent, Line, Message, Piece, adds_nothing};

/// Reader of the lines of one turn.
#[derive(Debug, Default)]
pub(crate) struct AnswerReader {
    /// Emits deltas as they come; otherwise complete blocks only.
    by_deltas: bool,
    /// Emits only the final text: what comes before it is not the answer.
    only_final_text: bool,
    begun: bool,
    /// Index of the next block.
    next: u32,
    /// Index of the open block.
    open: Option<u32>,
    text_emitted: bool,
    /// Blocks of the present message that came as deltas.
    streamed: Vec<StreamedBlock>,
}

/// Block that came as deltas.
#[derive(Debug)]
struct StreamedBlock {
    /// Index in the model's message.
    inner: u64,
    index: u32,
    kind: Kind,
    /// Emitted text until the complete block comes, as the inside of a JSON string: it is seldom parsed.
    text: String,
    /// The complete block has come; later deltas are ignored.
    complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Redacted,
}

impl Kind {
    /// The kind of a visible block; the others are internal to CLI and model.
    fn of(block_type: &str) -> Option<Self> {
        match block_type {
            "text" => Some(Self::Text),
            "thinking" => Some(Self::Thinking),
            "redacted_thinking" => Some(Self::Redacted),
            _ => None,
        }
    }
}

/// The text as a JSON string literal.
fn literal(text: &str) -> String {
    // Strings always serialise.
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// The rest of `whole` after its emitted beginning; `None` if `emitted` is not its beginning. A character that was cut
/// between two deltas was emitted as two replacement characters.
fn rest<'a>(whole: &'a str, emitted: &str) -> Option<Cow<'a, str>> {
    if let Some(rest) = whole.strip_prefix(emitted) {
        return Some(Cow::Borrowed(rest));
    }
    let is_half = |unit: u16| (0xD800..0xE000).contains(&unit);
    let is_same = |(unit, emitted): (&u16, &u16)| unit == emitted || (*emitted == 0xFFFD && is_half(*unit));
    let whole: Vec<u16> = whole.encode_utf16().collect();
    let emitted: Vec<u16> = emitted.encode_utf16().collect();
    let (begin, rest) = whole.split_at_checked(emitted.len())?;
    begin.iter().zip(&emitted).all(is_same).then(|| Cow::Owned(String::from_utf16_lossy(rest)))
}

impl AnswerReader {
    /// A reader by deltas, or by complete blocks.
    pub(crate) fn new(by_deltas: bool) -> Self {
        Self { by_deltas, ..Self::default() }
    }

    /// The same, without any text but the final one.
    pub(crate) fn with_final_text(self) -> Self {
        Self { only_final_text: true, ..self }
    }

    fn is_shown(&self, kind: Kind) -> bool {
        !(self.only_final_text && kind == Kind::Text)
    }

    /// Emits the parts that a line (without its LF) adds to the answer.
    pub(crate) fn read(&mut self, line: &[u8], emit: &mut dyn FnMut(Part<'_>)) {
        let delta = if self.by_deltas { TextDelta::of(line) } else { None };
        let is_done = delta.and_then(|delta| self.text_delta(delta, emit)).is_some();
        if !is_done && !adds_nothing(line, self.by_deltas) {
            self.parse(line, emit);
        }
    }

    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Part<'_>)) {
        // The common case is valid UTF-8 and needs no copy.
        let text = std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
        let text = replace_lone_surrogates(&text);
        let Some(line) = Line::read(&text) else { return };
        if line.parent_tool_use_id.is_some() {
            return;
        }
        let kind = line.r#type.clone();
        match (&*kind, line.subtype.map(RawValue::get)) {
            ("system", Some(r#""api_retry""#)) => emit(Part::Waiting),
            ("control_request", _) => emit(Part::Permission(&text)),
            (kind, _) => {
                // An unreadable message adds nothing.
                self.message(kind, line, emit);
            }
        }
    }

    /// Emits the parts that are missing at the end of the turn. `text` is the final text, emitted if no text was before.
    pub(crate) fn end(&mut self, text: &str, emit: &mut dyn FnMut(Part<'_>)) {
        if !self.text_emitted && !text.is_empty() {
            self.whole_text(&literal(text), emit);
        }
        self.close(emit);
    }

    /// Emits the calls of the caller's tools that ended the turn, after [`Self::end`].
    pub(crate) fn calls(&mut self, calls: &[ToolCall], emit: &mut dyn FnMut(Part<'_>)) {
        for (number, call) in calls.iter().enumerate() {
            self.begin(&Message::default(), emit);
            let index = self.next;
            self.next += 1;
            emit(Part::Call { index, number, call });
        }
    }

    fn message(&mut self, kind: &str, line: Line<'_>, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        match kind {
            "stream_event" if self.by_deltas => self.event(line.event?, emit),
            "assistant" if line.error.is_none() => self.complete_blocks(line.message?, emit),
            _ => None,
        }
    }

    /// Emits a text delta of the open block; `None` for one of another block.
    fn text_delta(&mut self, delta: TextDelta<'_>, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let at = self.streamed.iter().rposition(|block| block.inner == delta.index)?;
        let block = self.streamed.get(at)?;
        if block.complete || self.open != Some(block.index) {
            return None;
        }
        self.more(at, delta.text, emit)
    }

    fn event(&mut self, event: ApiEvent<'_>, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        match &*event.r#type {
            "message_start" => {
                self.close(emit);
                self.streamed.clear();
                self.begin(&event.message?, emit);
            }
            "content_block_start" => {
                let block = event.content_block?;
                let piece: Piece<'_> = serde_json::from_str(block.get()).ok()?;
                let kind = Kind::of(&piece.r#type).filter(|kind| self.is_shown(*kind))?;
                let index = self.open(kind, block.get(), emit);
                self.streamed.push(StreamedBlock {
                    inner: event.index?,
                    index,
                    kind,
                    text: String::new(),
                    complete: false,
                });
                // The API sends it empty.
                if let Some(text) = piece.text.filter(|text| text.get() != "\"\"") {
                    self.more(self.streamed.len() - 1, text.get(), emit)?;
                }
            }
            "content_block_delta" => {
                let at = self.streamed.iter().rposition(|block| Some(block.inner) == event.index)?;
                let delta = event.delta?;
                let piece: Piece<'_> = serde_json::from_str(delta.get()).ok()?;
                let block = self.streamed.get(at)?;
                let index = block.index;
                if block.complete || self.open != Some(index) {
                    return None;
                }
                match piece.text {
                    Some(text) => self.more(at, text.get(), emit)?,
                    None => {
                        let thought = piece.thinking.map(RawValue::get);
                        emit(Part::Delta { index, delta: delta.get(), thought });
                    }
                }
            }
            "content_block_stop" => {
                let block = self.streamed.iter().rev().find(|block| Some(block.inner) == event.index)?;
                if self.open == Some(block.index) {
                    self.close(emit);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn more(&mut self, at: usize, text: &str, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let block = self.streamed.get_mut(at)?;
        block.text.push_str(text.strip_prefix('"')?.strip_suffix('"')?);
        self.text_emitted = true;
        emit(Part::Text { index: block.index, text });
        Some(())
    }

    /// Reads the complete blocks of a message.
    fn complete_blocks(&mut self, message: Message<'_>, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        for block in &message.content {
            let Ok(piece) = serde_json::from_str::<Piece<'_>>(block.get()) else { continue };
            let Some(kind) = Kind::of(&piece.r#type).filter(|kind| self.is_shown(*kind)) else { continue };
            self.begin(&message, emit);
            let streamed = self.streamed.iter_mut().find(|block| block.kind == kind && !block.complete);
            match (streamed, kind) {
                (Some(block), Kind::Text) => {
                    block.complete = true;
                    let (index, emitted) = (block.index, std::mem::take(&mut block.text));
                    self.missing_text(index, &emitted, piece.text?, emit)?;
                }
                // The rest of a thought whose stream broke is dropped.
                (Some(block), Kind::Thinking | Kind::Redacted) => block.complete = true,
                (None, Kind::Text) => self.whole_text(piece.text?.get(), emit),
                (None, Kind::Thinking) => self.whole_thought(&piece, emit)?,
                (None, Kind::Redacted) => {
                    self.open(kind, block.get(), emit);
                    self.close(emit);
                }
            }
        }
        Some(())
    }

    /// Emits the text of a complete block that did not come as deltas.
    fn missing_text(
        &mut self,
        index: u32,
        emitted: &str,
        text: &RawValue,
        emit: &mut dyn FnMut(Part<'_>),
    ) -> Option<()> {
        let whole: Cow<'_, str> = serde_json::from_str(text.get()).ok()?;
        let emitted: String = serde_json::from_str(&format!("\"{emitted}\"")).ok()?;
        match rest(&whole, &emitted).as_deref() {
            Some("") => {}
            Some(rest) if self.open == Some(index) => emit(Part::Text { index, text: &literal(rest) }),
            Some(rest) => self.whole_text(&literal(rest), emit),
            // The repeated request gave another answer; emitted text cannot be retracted.
            None => self.whole_text(text.get(), emit),
        }
        Some(())
    }

    fn whole_thought(&mut self, piece: &Piece<'_>, emit: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let thought = piece.thinking?.get();
        let index = self.open(Kind::Thinking, "", emit);
        let delta = format!(r#"{{"type":"thinking_delta","thinking":{thought}}}"#);
        emit(Part::Delta { index, delta: &delta, thought: Some(thought) });
        if let Some(signature) = piece.signature {
            let delta = format!(r#"{{"type":"signature_delta","signature":{signature}}}"#);
            emit(Part::Delta { index, delta: &delta, thought: None });
        }
        self.close(emit);
        Some(())
    }

    fn begin(&mut self, message: &Message<'_>, emit: &mut dyn FnMut(Part<'_>)) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let text = |field: &Option<Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
        let usage = message.usage.map_or("{}", RawValue::get);
        emit(Part::Begin { id: &text(&message.id), model: &text(&message.model), usage });
    }

    fn whole_text(&mut self, text: &str, emit: &mut dyn FnMut(Part<'_>)) {
        let index = self.open(Kind::Text, "", emit);
        self.text_emitted = true;
        emit(Part::Text { index, text });
        self.close(emit);
    }

    fn open(&mut self, kind: Kind, block: &str, emit: &mut dyn FnMut(Part<'_>)) -> u32 {
        self.begin(&Message::default(), emit);
        self.close(emit);
        let index = self.next;
        self.next += 1;
        self.open = Some(index);
        let block = match kind {
            Kind::Text => Block::Text,
            Kind::Thinking => Block::Thinking,
            Kind::Redacted => Block::Whole(block),
        };
        emit(Part::Open { index, block });
        index
    }

    fn close(&mut self, emit: &mut dyn FnMut(Part<'_>)) {
        if let Some(index) = self.open.take() {
            emit(Part::Close { index });
        }
    }
}
