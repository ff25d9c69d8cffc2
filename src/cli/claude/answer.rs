//! From the lines of a turn to the parts of its answer.
//!
//! A turn holds several messages of the model (one before each use of a tool) and says each of them twice: as deltas,
//! and as a whole when a block is complete. Callers get one answer: the visible blocks of all messages, numbered
//! through. What never came as deltas (the CLI asks again without streaming when a stream breaks, and takes nothing
//! back) is made up for from the whole.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fields::mend_surrogates;
use crate::cli::answer::{AnswerReader, Block, Part};

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

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    /// As it is written: an optional text would be copied.
    #[serde(borrow)]
    subtype: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    /// Of the CLI itself: the turn's end tells it.
    error: Option<serde::de::IgnoredAny>,
    parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

/// A line with a piece of text: nearly all lines are, so it is read in one go.
#[derive(Deserialize)]
struct TextLine<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    event: TextEvent<'a>,
    parent_tool_use_id: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct TextEvent<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    index: u64,
    #[serde(borrow)]
    delta: TextDelta<'a>,
}

#[derive(Deserialize)]
struct TextDelta<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    text: &'a RawValue,
}

#[derive(Deserialize)]
struct ApiEvent<'a> {
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

#[derive(Deserialize, Default)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content: Vec<&'a RawValue>,
}

/// A block of content or a delta.
#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    signature: Option<&'a RawValue>,
}

impl AnswerReader for Reader {
    fn read(&mut self, line: &[u8], tell: &mut dyn FnMut(Part<'_>)) {
        // Seldom anything else; the repair looks at each byte for itself.
        let text = std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
        let text = mend_surrogates(&text);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The parts of these lines in short: `B` begin, `[0` open, `]0` close, `"x"` text, `d` another delta.
    fn parts(by_deltas: bool, lines: &[Value], end: &str) -> String {
        let mut reader = Reader::new(by_deltas);
        let mut told = String::new();
        let mut tell = |part: Part<'_>| {
            let short = match part {
                Part::Begin { id, model, .. } => format!("B({id},{model})"),
                Part::Open { index, block: Block::Text } => format!("[{index}"),
                Part::Open { index, block: Block::Thinking } => format!("[{index}t"),
                Part::Open { index, block: Block::Whole(_) } => format!("[{index}w"),
                Part::Text { text, .. } => text.to_owned(),
                Part::Delta { thought, .. } => {
                    thought.map_or("d".to_owned(), |thought| format!("d{thought}"))
                }
                Part::Close { index } => format!("]{index}"),
                Part::Waiting => "W".to_owned(),
                Part::Permission(_) => "P".to_owned(),
            };
            told.push_str(&short);
            told.push(' ');
        };
        for line in lines {
            reader.read(line.to_string().as_bytes(), &mut tell);
        }
        reader.end(end, &mut tell);
        told.trim_end().to_owned()
    }

    fn event(event: Value) -> Value {
        json!({ "type": "stream_event", "event": event, "parent_tool_use_id": null })
    }

    fn start(id: &str) -> Value {
        event(
            json!({ "type": "message_start", "message": { "id": id, "model": "m", "content": [], "usage": {} } }),
        )
    }

    fn open(index: u64, kind: &str) -> Value {
        event(
            json!({ "type": "content_block_start", "index": index, "content_block": { "type": kind, "text": "" } }),
        )
    }

    fn text(index: u64, text: &str) -> Value {
        event(
            json!({ "type": "content_block_delta", "index": index, "delta": { "type": "text_delta", "text": text } }),
        )
    }

    fn stop(index: u64) -> Value {
        event(json!({ "type": "content_block_stop", "index": index }))
    }

    fn whole(id: &str, content: Value) -> Value {
        let message = json!({ "id": id, "model": "m", "content": content });
        json!({ "type": "assistant", "message": message, "parent_tool_use_id": null })
    }

    fn whole_text(id: &str, text: &str) -> Value {
        whole(id, json!([{ "type": "text", "text": text }]))
    }

    #[test]
    fn a_streamed_answer_is_told_once() {
        let lines =
            [start("a"), open(0, "text"), text(0, "he"), text(0, "y"), whole_text("a", "hey"), stop(0)];
        assert_eq!(parts(true, &lines, "hey"), r#"B(a,m) [0 "he" "y" ]0"#);
        assert_eq!(parts(false, &lines, "hey"), r#"B(a,m) [0 "hey" ]0"#);
    }

    #[test]
    fn blocks_of_several_messages_are_numbered_through_and_tools_are_hidden() {
        let lines = [
            start("a"),
            open(0, "text"),
            text(0, "x"),
            whole_text("a", "x"),
            stop(0),
            open(1, "tool_use"),
            event(
                json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "input_json_delta" } }),
            ),
            whole("a", json!([{ "type": "tool_use", "id": "t" }])),
            stop(1),
            json!({ "type": "user", "message": { "content": [{ "type": "tool_result" }] } }),
            json!({ "type": "assistant", "message": { "content": [{ "type": "text", "text": "sub" }] },
                "parent_tool_use_id": "t" }),
            json!({ "type": "stream_event", "event": { "type": "message_start", "message": { "id": "s" } },
                "parent_tool_use_id": "t" }),
            start("b"),
            open(0, "text"),
            text(0, "y"),
            whole_text("b", "y"),
            stop(0),
        ];
        assert_eq!(parts(true, &lines, "y"), r#"B(a,m) [0 "x" ]0 [1 "y" ]1"#);
        assert_eq!(parts(false, &lines, "y"), r#"B(a,m) [0 "x" ]0 [1 "y" ]1"#);
    }

    #[test]
    fn what_never_came_as_deltas_is_made_up_for() {
        let broken = [start("a"), open(0, "text"), text(0, "he"), whole_text("b", "hey")];
        assert_eq!(parts(true, &broken, "hey"), r#"B(a,m) [0 "he" "y" ]0"#);
        let other = [start("a"), open(0, "text"), text(0, "he"), whole_text("b", "good day")];
        assert_eq!(parts(true, &other, ""), r#"B(a,m) [0 "he" ]0 [1 "good day" ]1"#);
        let without = [whole_text("b", "all"), whole_text("c", "of it")];
        assert_eq!(parts(true, &without, ""), r#"B(b,m) [0 "all" ]0 [1 "of it" ]1"#);
        assert_eq!(parts(true, &[], "from the end"), r#"B(,) [0 "from the end" ]0"#);
        assert_eq!(parts(true, &[start("a")], ""), "B(a,m)");
        let late = [start("a"), open(0, "text"), text(0, "a"), stop(0), whole_text("a", "ab")];
        assert_eq!(parts(true, &late, ""), r#"B(a,m) [0 "a" ]0 [1 "b" ]1"#);
    }

    #[test]
    fn a_character_cut_between_deltas_is_not_told_twice() {
        let half = |half: &str| {
            let delta = format!(r#"{{"type":"text_delta","text":"{half}"}}"#);
            format!(
                r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{delta}}},"parent_tool_use_id":null}}"#
            )
        };
        let mut reader = Reader::new(true);
        let mut count = 0;
        let mut tell = |part: Part<'_>| count += u32::from(matches!(part, Part::Text { .. }));
        reader.read(start("a").to_string().as_bytes(), &mut tell);
        reader.read(open(0, "text").to_string().as_bytes(), &mut tell);
        reader.read(half(r"\ud83d").as_bytes(), &mut tell);
        reader.read(half(r"\ude00").as_bytes(), &mut tell);
        reader.read(whole_text("a", "\u{1f600}").to_string().as_bytes(), &mut tell);
        reader.end("", &mut tell);
        assert_eq!(count, 2);
    }

    #[test]
    fn what_follows_a_cut_character_is_told_and_another_answer_as_long_is_not_lost() {
        for (whole, told, left) in [
            ("a\u{1f600}b", "a\u{fffd}\u{fffd}", Some("b")),
            ("a\u{1f600}", "a\u{fffd}\u{fffd}", Some("")),
            ("a\u{1f600}b", "a\u{fffd}", Some("\u{fffd}b")),
            ("a\u{fffd}b", "a\u{fffd}", Some("b")),
            ("xyz", "abc", None),
            ("axx", "a\u{fffd}\u{fffd}", None),
            ("a", "ab", None),
        ] {
            assert_eq!(rest(whole, told).as_deref(), left, "{whole} {told}");
        }
        let other = [start("a"), open(0, "text"), text(0, "abc"), whole_text("b", "xyz")];
        assert_eq!(parts(true, &other, ""), r#"B(a,m) [0 "abc" ]0 [1 "xyz" ]1"#);
    }

    #[test]
    fn thoughts_are_told_and_signed() {
        let block = json!([{ "type": "thinking", "thinking": "hm", "signature": "s" }, { "type": "redacted_thinking" }]);
        assert_eq!(parts(true, &[whole("a", block.clone())], ""), r#"B(a,m) [0t d"hm" d ]0 [1w ]1"#);
        let thought = json!({ "type": "thinking_delta", "thinking": "hm" });
        let streamed = [
            start("a"),
            open(0, "thinking"),
            event(json!({ "type": "content_block_delta", "index": 0, "delta": thought })),
            whole("a", block),
            stop(0),
        ];
        assert_eq!(parts(true, &streamed, ""), r#"B(a,m) [0t d"hm" ]0 [1w ]1"#);
    }

    #[test]
    fn work_that_is_not_shown_is_a_sign_of_life_and_errors_are_the_ends_to_tell() {
        let lines = [
            json!({ "type": "system", "subtype": "init" }),
            json!({ "type": "system", "subtype": "api_retry" }),
            json!({ "type": "control_request", "request_id": "r" }),
            json!({ "type": "assistant", "error": "rate_limit", "parent_tool_use_id": null,
                "message": { "content": [{ "type": "text", "text": "API Error" }] } }),
            json!({ "type": "result", "result": "API Error" }),
        ];
        assert_eq!(parts(true, &lines, ""), "W P");
    }

    proptest! {
        #[test]
        fn any_lines_are_told_in_order(
            steps in proptest::collection::vec((0..6u8, 0..3u64, "[ab]{0,3}"), 0..40),
            by_deltas: bool,
        ) {
            let lines: Vec<Value> = steps.iter().map(|(step, index, said)| match step {
                0 => start(said),
                1 => open(*index, if said.is_empty() { "tool_use" } else { "text" }),
                2 | 3 => text(*index, said),
                4 => stop(*index),
                _ => whole_text(said, said),
            }).collect();
            let mut reader = Reader::new(by_deltas);
            let (mut begun, mut open_now, mut next) = (false, None, 0);
            let mut tell = |part: Part<'_>| match part {
                Part::Begin { .. } => { assert!(!begun); begun = true; }
                Part::Open { index, .. } => {
                    assert!(begun && open_now.is_none() && index == next);
                    (open_now, next) = (Some(index), next + 1);
                }
                Part::Text { index, .. } | Part::Delta { index, .. } => assert_eq!(open_now, Some(index)),
                Part::Close { index } => { assert_eq!(open_now.take(), Some(index)); }
                Part::Waiting | Part::Permission(_) => {}
            };
            for line in &lines {
                reader.read(line.to_string().as_bytes(), &mut tell);
            }
            reader.end("end", &mut tell);
            assert_eq!(open_now, None);
        }

        #[test]
        fn never_panics(line: Vec<u8>) {
            let mut reader = Reader::new(true);
            reader.read(&line, &mut |_| {});
        }
    }
}
