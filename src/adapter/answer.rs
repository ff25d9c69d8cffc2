//! An answer as a caller sees it, whatever the CLI said between its parts: blocks of text and of thinking, in order.

/// One step of an answer. Texts are JSON string literals, quotes and escapes included, so that they are passed on
/// without being read and written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// The model answers. Comes once, before all blocks; not at all if nothing is said.
    Begin {
        /// The message's id at the model's API.
        id: &'a str,
        /// The model that answers.
        model: &'a str,
        /// The tokens so far, as a JSON object.
        usage: &'a str,
    },
    /// A block begins; the last one has been closed. Blocks are counted from 0 without gaps.
    Open {
        /// Which.
        index: u32,
        /// Of what kind.
        block: Block<'a>,
    },
    /// More of the open block.
    Text {
        /// Which.
        index: u32,
        /// The text, as a JSON string.
        text: &'a str,
    },
    /// More of the open block, in the words of the model's API (`thinking_delta` and the like, a JSON object).
    Delta {
        /// Which.
        index: u32,
        /// The object.
        delta: &'a str,
        /// The thought in it, as a JSON string, if it holds one.
        thought: Option<&'a str>,
    },
    /// The open block ends.
    Close {
        /// Which.
        index: u32,
    },
    /// Work that is not shown goes on: a request to the model is tried again.
    Waiting,
    /// A tool waits for permission; the CLI's own words, one line of JSON.
    Permission(&'a str),
}

/// What a block begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block<'a> {
    /// Empty text.
    Text,
    /// Empty thinking.
    Thinking,
    /// A block without deltas, as a JSON object.
    Whole(&'a str),
}

/// Reads the lines of one turn.
pub trait AnswerReader: Send {
    /// Tells what a line (without its LF) adds to the answer: nothing, one part or several.
    fn read(&mut self, line: &[u8], tell: &mut dyn FnMut(Part<'_>));

    /// Tells what is left when the turn is over: `text` is the final text, told only if no text was.
    fn end(&mut self, text: &str, tell: &mut dyn FnMut(Part<'_>));
}
