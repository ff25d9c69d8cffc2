//! Tokens in responses of the Messages API, read as they pass. At most [`MAX_KEPT`] bytes are kept.

use memchr::memmem;
use serde::Deserialize;

use crate::adapter::broker::UsageReader;
use crate::adapter::claude::amounts::plausible_tokens;
use crate::model::Usage;

/// Longest event, or value of a field, that is parsed: usage has some hundred bytes, the first event about a thousand.
const MAX_KEPT: usize = 64 << 10;

/// Reader of the tokens that a response reports.
pub(crate) fn usage_reader(is_stream: bool) -> Box<dyn UsageReader> {
    if is_stream { Box::<StreamReader>::default() } else { Box::<DocumentReader>::default() }
}

/// What was reported up to now.
#[derive(Default)]
struct Reported {
    model: Option<String>,
    usage: Usage,
    is_final: bool,
}

/// Later reports of a stream are totals, and may omit fields.
#[derive(Deserialize, Default)]
struct Tokens {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Event {
    message: Option<Message>,
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    usage: Option<Tokens>,
}

impl Reported {
    fn add(&mut self, tokens: Tokens) {
        let usage = &mut self.usage;
        for (total, reported) in [
            (&mut usage.input_tokens, tokens.input_tokens),
            (&mut usage.output_tokens, tokens.output_tokens),
            (&mut usage.cache_creation_input_tokens, tokens.cache_creation_input_tokens),
            (&mut usage.cache_read_input_tokens, tokens.cache_read_input_tokens),
        ] {
            *total = reported.and_then(plausible_tokens).unwrap_or(*total);
        }
    }

    fn line(&mut self, line: &[u8]) {
        // The text of a model cannot hold this: its quotes are escaped.
        let Some(data) = line.strip_prefix(b"data:") else { return };
        if memmem::find(data, b"\"usage\"").is_none() {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event>(data.trim_ascii()) else { return };
        if let Some(message) = event.message {
            self.model = message.model.or(self.model.take());
            self.add(message.usage.unwrap_or_default());
        }
        self.is_final |= event.usage.is_some();
        self.add(event.usage.unwrap_or_default());
    }
}

/// Reads server-sent events.
#[derive(Default)]
struct StreamReader {
    reported: Reported,
    /// Beginning of a line that continues in the next piece.
    begun: Vec<u8>,
    /// The line is too long and left out.
    is_skipping: bool,
}

impl UsageReader for StreamReader {
    fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            if self.begun.is_empty() {
                self.reported.line(line);
            } else {
                if self.begun.len() + line.len() <= MAX_KEPT {
                    self.begun.extend_from_slice(line);
                    self.reported.line(&self.begun);
                }
                self.begun.clear();
            }
        }
        if self.is_skipping || rest.is_empty() {
            return;
        }
        if self.begun.len() + rest.len() > MAX_KEPT {
            self.is_skipping = true;
            // The memory of one long line is not kept for the rest of the stream.
            self.begun = Vec::new();
        } else {
            self.begun.extend_from_slice(rest);
        }
    }

    fn reported(&self) -> (Option<&str>, Usage) {
        (self.reported.model.as_deref(), self.reported.usage)
    }

    fn is_final(&self) -> bool {
        self.reported.is_final
    }
}

/// Reads one JSON object: the fields `model` and `usage` of its first level.
#[derive(Default)]
struct DocumentReader {
    reported: Reported,
    depth: u32,
    in_string: bool,
    is_escaped: bool,
    /// The last text of the first level, which is a key if a colon follows.
    text: Vec<u8>,
    /// The field whose value is being read, and its bytes.
    field: Option<Field>,
    value: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Field {
    Model,
    Usage,
    Other,
}

impl DocumentReader {
    fn byte(&mut self, byte: u8) {
        if self.depth == 1 && !self.in_string && matches!(byte, b',' | b'}') {
            self.end_field();
        }
        if matches!(self.field, Some(Field::Model | Field::Usage)) && self.value.len() < MAX_KEPT {
            self.value.push(byte);
        }
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ if self.depth == 1 && self.text.len() < 16 => self.text.push(byte),
                _ => {}
            }
            return;
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.text.clear();
            }
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' if self.depth == 1 => {
                self.value.clear();
                self.field = Some(match self.text.as_slice() {
                    b"model" => Field::Model,
                    b"usage" => Field::Usage,
                    _ => Field::Other,
                });
            }
            _ => {}
        }
    }

    fn end_field(&mut self) {
        let value = std::mem::take(&mut self.value);
        match self.field.take() {
            Some(Field::Model) => self.reported.model = serde_json::from_slice(&value).ok(),
            Some(Field::Usage) => {
                let tokens = serde_json::from_slice::<Tokens>(&value).unwrap_or_default();
                self.reported.is_final = tokens.output_tokens.is_some();
                self.reported.add(tokens);
            }
            _ => {}
        }
    }
}

impl UsageReader for DocumentReader {
    fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn reported(&self) -> (Option<&str>, Usage) {
        (self.reported.model.as_deref(), self.reported.usage)
    }

    fn is_final(&self) -> bool {
        self.reported.is_final
    }
}

/// List prices in US dollars per million tokens: input, output, cache write, cache read. The cheapest of each family that
/// the API serves: the CLI's own figure, which is known at the end of a turn, is never below.
const PRICES: [(&str, [f64; 4]); 3] =
    [("haiku", [0.8, 4.0, 1.0, 0.08]), ("sonnet", [3.0, 15.0, 3.75, 0.3]), ("opus", [5.0, 25.0, 6.25, 0.5])];
/// Of an unknown model: the dearest family, so that no other name for a model is cheaper.
const OTHER: [f64; 4] = [5.0, 25.0, 6.25, 0.5];

/// Lowest cost of these tokens by list price, in millionths of a US dollar.
pub(crate) fn list_price(model: Option<&str>, usage: &Usage) -> u64 {
    let family = |(family, _): &&(&str, _)| model.is_some_and(|model| model.contains(family));
    let [input, output, cache_write, cache_read] =
        PRICES.iter().find(family).map_or(OTHER, |(_, price)| *price);
    // A dollar per million tokens is a millionth of a dollar per token.
    let cost = usage.input_tokens as f64 * input
        + usage.output_tokens as f64 * output
        + usage.cache_creation_input_tokens as f64 * cache_write
        + usage.cache_read_input_tokens as f64 * cache_read;
    cost.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"model\":\"claude-opus-4-5\",",
        "\"content\":[],\"usage\":{\"input_tokens\":10,\"cache_creation_input_tokens\":20,",
        "\"cache_read_input_tokens\":30,\"output_tokens\":1}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":",
        "\"data: {\\\"usage\\\":{\\\"output_tokens\\\":999}}\"}}\n\n",
        ": ping\r\n\r\n",
        "event: message_delta\r\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},",
        "\"usage\":{\"output_tokens\":40}}\r\n\r\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );
    const DOCUMENT: &str = concat!(
        "{\"id\":\"m\",\"content\":[{\"type\":\"text\",\"text\":\"a \\\"usage\\\": } , ]\",\"usage\":{\"output_tokens\":9}}],",
        "\"stop_reason\":null,\"model\":\"claude-opus-4-5\",\"usage\": {\"input_tokens\":10,\"output_tokens\":40,",
        "\"cache_creation_input_tokens\":20,\"cache_read_input_tokens\":30,\"server_tool_use\":{\"x\":[1]}} }"
    );

    fn usage(input: u64, output: u64, cache_creation: u64, cache_read: u64) -> Usage {
        Usage {
            input_tokens: input,
            output_tokens: output,
            cache_creation_input_tokens: cache_creation,
            cache_read_input_tokens: cache_read,
        }
    }

    #[test]
    fn tokens_are_read_in_pieces_of_any_size() {
        for (text, is_stream) in [(STREAM, true), (DOCUMENT, false)] {
            for size in 1..text.len() {
                let mut reader = usage_reader(is_stream);
                text.as_bytes().chunks(size).for_each(|piece| reader.read(piece));
                let expected = (Some("claude-opus-4-5"), usage(10, 40, 20, 30));
                assert_eq!(reader.reported(), expected, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn cut_stream_reports_what_was_seen() {
        let mut reader = usage_reader(true);
        reader.read(STREAM.split("event: message_delta").next().unwrap().as_bytes());
        assert_eq!(reader.reported().1, usage(10, 1, 20, 30));
    }

    #[test]
    fn long_line_is_left_out_and_not_kept() {
        let mut reader = StreamReader::default();
        for _ in 0..64 {
            reader.read(&[b'x'; 8 << 10]);
            assert!(reader.begun.len() <= MAX_KEPT);
        }
        reader.read(b"\n");
        reader.read(STREAM.as_bytes());
        assert_eq!(reader.reported().1, usage(10, 40, 20, 30));
        let mut reader = DocumentReader::default();
        reader.read(b"{\"model\":\"");
        for _ in 0..64 {
            reader.read(&[b'x'; 8 << 10]);
        }
        assert!(reader.value.len() <= MAX_KEPT);
        reader.read(b"\",\"usage\":{\"output_tokens\":4}}");
        assert_eq!(reader.reported(), (None, usage(0, 4, 0, 0)));
    }

    #[test]
    fn list_price_depends_on_the_family() {
        let million = usage(1_000_000, 1_000_000, 1_000_000, 1_000_000);
        assert_eq!(list_price(Some("claude-haiku-4-5"), &million), 5_880_000);
        assert_eq!(list_price(Some("claude-opus-4-5"), &million), 36_750_000);
        let dearest = PRICES.iter().map(|(family, _)| list_price(Some(family), &million)).max().unwrap();
        for unknown in [None, Some("claude-next-1"), Some("own-model")] {
            assert_eq!(list_price(unknown, &million), dearest, "{unknown:?}");
        }
        assert_eq!(list_price(Some("opus"), &Usage::default()), 0);
    }

    proptest! {
        #[test]
        fn any_response_is_read_without_panic(pieces: Vec<Vec<u8>>, is_stream: bool) {
            let mut reader = usage_reader(is_stream);
            pieces.iter().for_each(|piece| reader.read(piece));
            reader.reported();
        }
    }
}
