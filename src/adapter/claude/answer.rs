//! From the lines of a turn to the parts of its answer.
//!
//! A turn holds several messages of the model (one before each use of a tool) and says each of them twice: as deltas,
//! and as a whole when a block is complete. Callers get one answer: the visible blocks of all messages, numbered
//! through. What never came as deltas (the CLI asks again without streaming when a stream breaks, and takes nothing
//! back) is made up for from the whole.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::fields::replace_lone_surrogates;
use crate::adapter::answer::{AnswerReader, Block, Part};

mod lines;
#[cfg(test)]
mod tests;

use lines::{ApiEvent, Line, Message, Piece, TextLine};

/// Reads one turn.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Told as the deltas come; else only as wholes.
    by_deltas: bool,
    begun: bool,
    /// The number of the next block.
    next: u32,
    /// The number of the block that is open.
    open: Option<u32>,
    text_told: bool,
    /// Blocks of the present message that came as deltas.
    told: Vec<Told>,
}

/// A block that was told by its deltas.
#[derive(Debug)]
struct Told {
    /// Its number in the model's message.
    inner: u64,
    index: u32,
    kind: Kind,
    /// What was told of its text, until the whole has come: the inside of a JSON string, for it is seldom looked at.
    text: String,
    /// The whole has come: nothing more of it is told.
    complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Redacted,
}

impl Kind {
    /// Everything else is between the CLI and the model.
    fn of(block_type: &str) -> Option<Self> {
        match block_type {
            "text" => Some(Self::Text),
            "thinking" => Some(Self::Thinking),
            "redacted_thinking" => Some(Self::Redacted),
            _ => None,
        }
    }
}

impl AnswerReader for Reader {
    fn read(&mut self, line: &[u8], tell: &mut dyn FnMut(Part<'_>)) {
        // Seldom anything else; the repair looks at each byte for itself.
        let text = std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
        let text = replace_lone_surrogates(&text);
        if self.by_deltas && self.text_delta(&text, tell).is_some() {
            return;
        }
        let Ok(line) = serde_json::from_str::<Line<'_>>(&text) else { return };
        if line.parent_tool_use_id.is_some() {
            return;
        }
        match (&*line.r#type, line.subtype.map(RawValue::get)) {
            ("system", Some(r#""api_retry""#)) => tell(Part::Waiting),
            ("control_request", _) => tell(Part::Permission(&text)),
            (kind, _) => {
                // What cannot be read adds nothing.
                self.told_by(kind, &line, tell);
            }
        }
    }

    fn end(&mut self, text: &str, tell: &mut dyn FnMut(Part<'_>)) {
        if !self.text_told && !text.is_empty() {
            self.new_text(&literal(text), tell);
        }
        self.close(tell);
    }
}

/// The text as a JSON string.
fn literal(text: &str) -> String {
    // A string can always be written.
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

/// What follows in `whole` after what was told of it; `None` if that is no beginning of it. A character that was cut
/// between two deltas was told as two replacements, one for each half.
fn rest<'a>(whole: &'a str, told: &str) -> Option<Cow<'a, str>> {
    if let Some(rest) = whole.strip_prefix(told) {
        return Some(Cow::Borrowed(rest));
    }
    let is_half = |unit: u16| (0xD800..0xE000).contains(&unit);
    let is_told = |(unit, told): (&u16, &u16)| unit == told || (*told == 0xFFFD && is_half(*unit));
    let (whole, told): (Vec<u16>, Vec<u16>) = (whole.encode_utf16().collect(), told.encode_utf16().collect());
    let (begin, rest) = whole.split_at_checked(told.len())?;
    begin.iter().zip(&told).all(is_told).then(|| Cow::Owned(String::from_utf16_lossy(rest)))
}

impl Reader {
    pub(super) fn new(by_deltas: bool) -> Self {
        Self { by_deltas, ..Self::default() }
    }

    fn told_by(&mut self, kind: &str, line: &Line<'_>, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        match kind {
            "stream_event" if self.by_deltas => self.event(line.event?, tell),
            "assistant" if line.error.is_none() => self.whole(line.message?, tell),
            _ => None,
        }
    }

    /// Reads a line that is a piece of text of the answer; `None` if it is none, or a piece of what was told already.
    fn text_delta(&mut self, line: &str, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        memchr::memmem::find(line.as_bytes(), b"\"text_delta\"")?;
        let line: TextLine<'_> = serde_json::from_str(line).ok()?;
        let event = line.event;
        let is_own = line.parent_tool_use_id.is_none() && line.r#type == "stream_event";
        if !is_own || event.r#type != "content_block_delta" || event.delta.r#type != "text_delta" {
            return None;
        }
        let at = self.told.iter().rposition(|told| told.inner == event.index)?;
        let told = self.told.get(at)?;
        if told.complete || self.open != Some(told.index) {
            return None;
        }
        self.more(at, event.delta.text.get(), tell)
    }

    fn event(&mut self, event: &RawValue, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let event: ApiEvent<'_> = serde_json::from_str(event.get()).ok()?;
        match &*event.r#type {
            "message_start" => {
                self.close(tell);
                self.told.clear();
                let message: Message<'_> = serde_json::from_str(event.message?.get()).ok()?;
                self.begin(&message, tell);
            }
            "content_block_start" => {
                let block = event.content_block?;
                let piece: Piece<'_> = serde_json::from_str(block.get()).ok()?;
                let kind = Kind::of(&piece.r#type)?;
                let index = self.open(kind, block.get(), tell);
                self.told.push(Told {
                    inner: event.index?,
                    index,
                    kind,
                    text: String::new(),
                    complete: false,
                });
                // Empty, by the API's habit.
                if let Some(text) = piece.text.filter(|text| text.get() != "\"\"") {
                    self.more(self.told.len() - 1, text.get(), tell)?;
                }
            }
            "content_block_delta" => {
                let at = self.told.iter().rposition(|told| Some(told.inner) == event.index)?;
                let delta = event.delta?;
                let piece: Piece<'_> = serde_json::from_str(delta.get()).ok()?;
                let told = self.told.get(at)?;
                let index = told.index;
                if told.complete || self.open != Some(index) {
                    return None;
                }
                match piece.text {
                    Some(text) => self.more(at, text.get(), tell)?,
                    None => {
                        let thought = piece.thinking.map(RawValue::get);
                        tell(Part::Delta { index, delta: delta.get(), thought });
                    }
                }
            }
            "content_block_stop" => {
                let block = self.told.iter().rev().find(|block| Some(block.inner) == event.index)?;
                if self.open == Some(block.index) {
                    self.close(tell);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn more(&mut self, at: usize, text: &str, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let block = self.told.get_mut(at)?;
        block.text.push_str(text.strip_prefix('"')?.strip_suffix('"')?);
        self.text_told = true;
        tell(Part::Text { index: block.index, text });
        Some(())
    }

    /// A message as a whole, or those of its blocks that have become complete.
    fn whole(&mut self, message: &RawValue, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let message: Message<'_> = serde_json::from_str(message.get()).ok()?;
        for block in &message.content {
            let Ok(piece) = serde_json::from_str::<Piece<'_>>(block.get()) else { continue };
            let Some(kind) = Kind::of(&piece.r#type) else { continue };
            self.begin(&message, tell);
            let told = self.told.iter_mut().find(|told| told.kind == kind && !told.complete);
            match (told, kind) {
                (Some(told), Kind::Text) => {
                    told.complete = true;
                    let (index, told) = (told.index, std::mem::take(&mut told.text));
                    self.make_up(index, &told, piece.text?, tell)?;
                }
                // Where the stream of a thought broke, its rest is of no use to anybody.
                (Some(told), Kind::Thinking | Kind::Redacted) => told.complete = true,
                (None, Kind::Text) => self.new_text(piece.text?.get(), tell),
                (None, Kind::Thinking) => self.new_thought(&piece, tell)?,
                (None, Kind::Redacted) => {
                    self.open(kind, block.get(), tell);
                    self.close(tell);
                }
            }
        }
        Some(())
    }

    /// The rest of a text of which `told` was told.
    fn make_up(
        &mut self,
        index: u32,
        told: &str,
        text: &RawValue,
        tell: &mut dyn FnMut(Part<'_>),
    ) -> Option<()> {
        let whole: Cow<'_, str> = serde_json::from_str(text.get()).ok()?;
        let told: String = serde_json::from_str(&format!("\"{told}\"")).ok()?;
        match rest(&whole, &told).as_deref() {
            Some("") => {}
            Some(rest) if self.open == Some(index) => tell(Part::Text { index, text: &literal(rest) }),
            Some(rest) => self.new_text(&literal(rest), tell),
            // Another answer than the one that was begun; what was told cannot be taken back.
            None => self.new_text(text.get(), tell),
        }
        Some(())
    }

    fn new_thought(&mut self, piece: &Piece<'_>, tell: &mut dyn FnMut(Part<'_>)) -> Option<()> {
        let thought = piece.thinking?.get();
        let index = self.open(Kind::Thinking, "", tell);
        let delta = format!(r#"{{"type":"thinking_delta","thinking":{thought}}}"#);
        tell(Part::Delta { index, delta: &delta, thought: Some(thought) });
        if let Some(signature) = piece.signature {
            let delta = format!(r#"{{"type":"signature_delta","signature":{signature}}}"#);
            tell(Part::Delta { index, delta: &delta, thought: None });
        }
        self.close(tell);
        Some(())
    }

    fn begin(&mut self, message: &Message<'_>, tell: &mut dyn FnMut(Part<'_>)) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let text = |field: &Option<Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
        let usage = message.usage.map_or("{}", RawValue::get);
        tell(Part::Begin { id: &text(&message.id), model: &text(&message.model), usage });
    }

    fn new_text(&mut self, text: &str, tell: &mut dyn FnMut(Part<'_>)) {
        let index = self.open(Kind::Text, "", tell);
        self.text_told = true;
        tell(Part::Text { index, text });
        self.close(tell);
    }

    fn open(&mut self, kind: Kind, block: &str, tell: &mut dyn FnMut(Part<'_>)) -> u32 {
        self.begin(&Message::default(), tell);
        self.close(tell);
        let index = self.next;
        self.next += 1;
        self.open = Some(index);
        let block = match kind {
            Kind::Text => Block::Text,
            Kind::Thinking => Block::Thinking,
            Kind::Redacted => Block::Whole(block),
        };
        tell(Part::Open { index, block });
        index
    }

    fn close(&mut self, tell: &mut dyn FnMut(Part<'_>)) {
        if let Some(index) = self.open.take() {
            tell(Part::Close { index });
        }
    }
}
