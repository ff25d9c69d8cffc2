//! The conversation that a request continues.

use super::responses::{Continued, Recording};
use super::{SESSION_HEADER, TurnHandler};
use crate::model::ids::{DEFAULT_CONVERSATION, UserId};
use crate::server::api::error::ApiError;
use crate::server::api::sessions::addressable;
use crate::server::auth::caller;
use crate::server::conversations::Claim;
use crate::server::dialect::{Dialect, TurnRequest};
use crate::server::responses::Advance;
use crate::support::keyed_gates::Inside;

pub(super) struct Conversation {
    pub(super) name: String,
    pub(super) held: Held,
}

/// What a turn has taken of its conversation, until it ends.
#[derive(Default)]
pub(super) struct Held {
    /// When the conversation was found by its history.
    pub(super) claim: Option<Claim>,
    /// When a response began in a conversation that is named.
    pub(super) advance: Option<Advance>,
    /// When the answer is to be stored.
    pub(super) recording: Option<Box<Recording>>,
}

impl Held {
    /// Called before the message is sent: from now on the child may receive it.
    pub(super) fn mark_sent(&mut self) {
        self.claim.as_mut().map(Claim::mark_sent);
        self.advance.as_mut().map(Advance::mark_sent);
    }

    /// Called when the message was refused before the child received anything.
    pub(super) fn mark_unsent(&mut self) {
        self.claim.as_mut().map(Claim::mark_unsent);
        self.advance.as_mut().map(Advance::mark_unsent);
    }

    /// Whether the text of the answer is needed at its end.
    pub(super) fn needs_text(&self) -> bool {
        self.claim.is_some() || self.recording.is_some()
    }
}

impl TurnHandler {
    /// The conversation of the response that is continued, else the named one, else the one with the history of the
    /// request, else the default one.
    pub(super) async fn conversation(
        &self,
        user: &Inside<UserId>,
        request: &TurnRequest,
        continued: Option<Continued>,
    ) -> Result<Conversation, ApiError> {
        let named = self.named(request)?;
        if let Some(continued) = continued {
            return Box::pin(self.continued(user, request, named, continued)).await;
        }
        let mut conversation = self.found(user, request, named).await?;
        if request.response.is_some() {
            Box::pin(self.begun(user.key(), request, &mut conversation)).await?;
        }
        Ok(conversation)
    }

    /// The name of the conversation, if the request has one.
    fn named(&self, request: &TurnRequest) -> Result<Option<String>, ApiError> {
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
            let field = if request.dialect == Dialect::Responses { "conversation" } else { "session_id" };
            addressable(name).map_err(|error| ApiError::field(field, error.message()))?;
        }
        Ok(request.conversation.clone().or(header))
    }

    async fn found(
        &self,
        user: &Inside<UserId>,
        request: &TurnRequest,
        named: Option<String>,
    ) -> Result<Conversation, ApiError> {
        if let Some(name) = named {
            self.app.conversations.exclude(user, &name).await;
            return Ok(Conversation { name, held: Held::default() });
        }
        match &request.history_digest {
            Some(digest) => {
                let claim = self.app.conversations.claim(user.key(), digest).await?;
                let name = claim.conversation().to_owned();
                Ok(Conversation { name, held: Held { claim: Some(claim), ..Held::default() } })
            }
            None => Ok(Conversation { name: DEFAULT_CONVERSATION.to_owned(), held: Held::default() }),
        }
    }
}
