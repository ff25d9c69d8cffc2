//! The conversation that a request continues.

use super::{SESSION_HEADER, TurnHandler};
use crate::model::ids::{DEFAULT_CONVERSATION, UserId};
use crate::server::api::error::ApiError;
use crate::server::api::sessions::addressable;
use crate::server::auth::caller;
use crate::server::conversations::Claim;
use crate::server::dialect::TurnRequest;
use crate::support::keyed_gates::Inside;

pub(super) struct Conversation {
    pub(super) name: String,
    /// Held when the conversation was found by its history.
    pub(super) claim: Option<Claim>,
}

impl TurnHandler {
    /// The named conversation, else the one with the history of the request, else the default one.
    pub(super) async fn conversation(
        &self,
        user: &Inside<UserId>,
        request: &TurnRequest,
    ) -> Result<Conversation, ApiError> {
        let header = match self.parts.headers.get(&SESSION_HEADER) {
            Some(value) => Some(caller::named_by_header(value).ok_or_else(|| {
                ApiError::invalid("invalid_session", format!("{SESSION_HEADER} is not percent-encoded UTF-8"))
            })?),
            None => None,
        };
        if let Some(name) = &header {
            addressable(name)?;
        }
        if let Some(name) = &request.conversation {
            addressable(name).map_err(|error| ApiError::field("session_id", error.message()))?;
        }
        if let Some(name) = request.conversation.clone().or(header) {
            self.app.conversations.exclude(user, &name).await;
            return Ok(Conversation { name, claim: None });
        }
        match &request.history_digest {
            Some(digest) => {
                let claim = self.app.conversations.claim(user.key(), digest).await?;
                Ok(Conversation { name: claim.conversation().to_owned(), claim: Some(claim) })
            }
            None => Ok(Conversation { name: DEFAULT_CONVERSATION.to_owned(), claim: None }),
        }
    }
}
