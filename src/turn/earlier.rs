//! What was said before a turn, on its way to a conversation that may not know it.

use std::fmt;
use std::sync::Arc;

use super::Prompt;
use crate::model::{History, Role};

/// A history and the prompt that follows it.
pub(crate) struct Earlier {
    pub(crate) history: Arc<History>,
    pub(crate) prompt: Prompt,
}

impl Earlier {
    /// Whether a child has to be started with the history: what the user alone has said goes with the prompt.
    pub(crate) fn needs_start(&self) -> bool {
        self.history.messages().iter().any(|message| message.role == Role::Assistant)
    }
}

impl fmt::Debug for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Earlier(redacted)")
    }
}
