//! Reading `text/event-stream` as it arrives.

use serde_json::Value;

/// What a stream of events says.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// `data:` with JSON.
    Event(Value),
    /// `data: [DONE]`.
    Done,
    /// A line that begins with a colon: a sign of life.
    Comment(String),
}

/// Turns pieces of any size into frames.
#[derive(Default)]
pub struct Reader {
    unread: Vec<u8>,
}

impl Reader {
    /// The frames that are complete with this piece.
    pub fn push(&mut self, piece: &[u8]) -> Vec<Frame> {
        self.unread.extend_from_slice(piece);
        let mut frames = Vec::new();
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.unread.drain(..end + 2).collect();
            let text = String::from_utf8(frame).expect("events are UTF-8");
            frames.extend(text.lines().filter(|line| !line.is_empty()).map(frame_of));
        }
        frames
    }

    /// Whether the stream ended with a frame, not within one.
    pub fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }
}

fn frame_of(line: &str) -> Frame {
    if let Some(comment) = line.strip_prefix(':') {
        return Frame::Comment(comment.trim().into());
    }
    let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("neither data nor comment: {line}"));
    if data == "[DONE]" {
        return Frame::Done;
    }
    Frame::Event(serde_json::from_str(data).unwrap_or_else(|error| panic!("{error} in {data}")))
}
