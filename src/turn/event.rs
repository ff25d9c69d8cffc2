//! One line of the CLI, as it was.

use bytes::Bytes;

use crate::adapter::{self, LineKind};

/// One line of the CLI within a turn, byte for byte, without its line end. Cheap to clone. pilotlight's own notices
/// have the same form: a JSON object whose `type` is `pilotlight`.
#[derive(Clone, Debug)]
pub struct Event {
    line: Bytes,
}

impl Event {
    pub(crate) fn new(line: Bytes) -> Self {
        Self { line }
    }

    /// The line. Nearly always a JSON object in UTF-8, but the CLI's bytes are passed on unchecked.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.line
    }

    /// The line as text; invalid UTF-8 is replaced.
    #[must_use]
    pub fn to_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.line)
    }

    /// The piece of the answer that this event brings, if it brings one. Needs `cli.partial_messages`.
    #[must_use]
    pub fn text_delta(&self) -> Option<String> {
        adapter::text_delta(&self.line)
    }

    /// Whether this is the last event of a turn that the CLI itself ended.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        adapter::classify(&self.line) == LineKind::Terminal
    }
}
