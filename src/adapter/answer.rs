//! The answer of a turn as clients see it: an ordered sequence of text and thinking blocks.

use crate::model::ToolCall;

/// Part of an answer. Texts are JSON string literals with quotes and escapes, forwarded without parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Begin of the answer: once, before all blocks. Missing if there are no blocks.
    Begin {
        /// Message id at the model's API.
        id: &'a str,
        /// Name of the model.
        model: &'a str,
        /// Token usage so far, as a JSON object.
        usage: &'a str,
    },
    /// Begin of a block, after the end of the previous one.
    Open {
        /// Index of the block, from 0 without gaps.
        index: u32,
        /// Kind of the block.
        block: Block<'a>,
    },
    /// Text of the open block.
    Text {
        /// Index of the block.
        index: u32,
        /// Text, as a JSON string.
        text: &'a str,
    },
    /// Other delta of the open block, as the model's API sends it (such as `thinking_delta`).
    Delta {
        /// Index of the block.
        index: u32,
        /// JSON object.
        delta: &'a str,
        /// Thought in the delta, as a JSON string.
        thought: Option<&'a str>,
    },
    /// End of the open block.
    Close {
        /// Index of the block.
        index: u32,
    },
    /// The model calls a tool of the caller's: a whole block.
    Call {
        /// Index of the block.
        index: u32,
        /// Number of the call in the answer, from 0.
        number: usize,
        /// The call.
        call: &'a ToolCall,
    },
    /// Hidden work continues: the CLI retries a request to the model.
    Waiting,
    /// A tool waits for permission: the CLI's request, one line of JSON.
    Permission(&'a str),
}

/// Initial content of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block<'a> {
    /// Empty text.
    Text,
    /// Empty thinking.
    Thinking,
    /// Complete block without deltas, as a JSON object.
    Whole(&'a str),
}
