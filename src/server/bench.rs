//! What the benches measure and cannot reach from outside. No part of the crate's interface.

use std::path::PathBuf;

use super::conversations::{Conversations, HistoryDigest};
use super::dialect::message::Message;
use crate::model::ids::UserId;

/// Conversations that are kept of the user. That there are many of them does not matter: they are found by a digest.
const KEPT: usize = 16;

/// A history that a client tells, and where its conversation is looked for.
pub struct Matching {
    history: Vec<Message>,
    last: Message,
    conversations: Conversations,
    user: UserId,
}

impl Matching {
    /// Reads `messages` as a request has them; `None` if they are not such.
    #[must_use]
    pub fn new(directory: PathBuf, messages: &[u8]) -> Option<Self> {
        let mut history: Vec<Message> = serde_json::from_slice(messages).ok()?;
        let last = history.pop()?;
        let conversations = Conversations::new(directory, KEPT);
        Some(Self { history, last, conversations, user: UserId::new("bench").ok()? })
    }

    /// Finds the conversation as for each request, and gives it back; whether there was one.
    pub async fn find(&self) -> bool {
        let digest = HistoryDigest::of(&self.history, &self.last, None);
        self.conversations.claim(&self.user, &digest).await.is_ok()
    }
}
