//! Text for the running turn.

use tokio::sync::oneshot;
use uuid::Uuid;

use super::Session;
use crate::child::Steer;
use crate::model::{LONGEST_STEER, SteerError};
use crate::session::SessionMessage;
use crate::turn::SteerRights;

impl Session {
    /// Puts a text into the running turn: the CLI reads it when the next tool of the turn ends. Returns whether it was read;
    /// that may take until the end of the turn. A text that was not read is in no turn: send it as a message. Dropped before
    /// it was given to the CLI, the text is withdrawn.
    ///
    /// In a rare case false is returned for a text that has reached the conversation: it arrived at the very end of
    /// the turn, and the CLI had begun another turn with it, which was interrupted at once.
    ///
    /// # Errors
    /// [`SteerError::NoRunningTurn`], [`SteerError::TooMany`], [`SteerError::Length`].
    pub async fn steer(&self, text: impl Into<String>) -> Result<bool, SteerError> {
        self.steer_with(text.into(), SteerRights::default()).await
    }

    /// As [`Session::steer`], for a caller with these rights.
    pub(crate) async fn steer_with(&self, text: String, rights: SteerRights) -> Result<bool, SteerError> {
        if text.trim().is_empty() || text.len() > LONGEST_STEER {
            return Err(SteerError::Length);
        }
        let entry = self.entry().ok_or(SteerError::NoRunningTurn)?;
        let (reply, read) = oneshot::channel();
        let steer = Steer { text, id: Uuid::new_v4(), reply };
        drop(entry.actor.cast(SessionMessage::Steer(steer, rights)));
        // The child ended meanwhile.
        read.await.unwrap_or(Ok(false))
    }
}
