//! The messages before a turn, on their way to a conversation that may not have them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::SlashCommands;
use crate::error::TurnError;
use crate::model::History;
use crate::model::Prompt;

/// What a turn that begins a conversation is sent as; `None`: as any other.
pub(crate) type FirstLine = Result<Option<Bytes>, TurnError>;

#[derive(Clone)]
pub(crate) enum Earlier {
    /// Nothing but the user's own words: they go with the prompt.
    Unanswered(FirstLine),
    /// A child has to be started with it.
    Conversation(Arc<Conversation>),
}

pub(crate) struct Conversation {
    pub(crate) history: History,
    pub(crate) prompt: Prompt,
    /// Treatment of a prompt that begins with `/`.
    pub(crate) commands: SlashCommands,
}

impl Earlier {
    pub(crate) fn conversation(&self) -> Option<&Arc<Conversation>> {
        match self {
            Self::Conversation(conversation) => Some(conversation),
            Self::Unanswered(_) => None,
        }
    }
}

impl fmt::Debug for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Earlier(redacted)")
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conversation(redacted)")
    }
}
