//! Requests of the Responses API: what came before them, and the record of their answer.

use std::io;
use std::sync::Arc;

use axum::http::StatusCode;

use super::TurnHandler;
use super::conversation::{Conversation, Held};
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::server::api::error::ApiError;
use crate::server::conversations::HistoryDigest;
use crate::server::dialect::TurnRequest;
use crate::server::dialect::responses::{Former, previous_not_found};
use crate::server::responses::{Asked, Chain, Head, ResponseId, Stored, UserResponses, resolved};
use crate::support::blocking::blocking_long;
use crate::support::keyed_gates::Inside;
use crate::turn::Hold;

/// The response that a request continues.
pub(super) struct Continued {
    head: Head,
    /// Everything that was said is at hand, so that another conversation can be given it.
    is_known: bool,
}

/// A response that is stored if it ends with an answer.
pub(super) struct Recording {
    user: Arc<UserResponses>,
    id: ResponseId,
    head: Head,
    asked: Asked,
    digest: HistoryDigest,
    /// The input counts as memory of the request until it is stored.
    hold: Option<Hold>,
}

impl Recording {
    /// Takes over the input of an accepted request.
    pub(super) fn keep(&mut self, request: &mut TurnRequest, hold: Hold) {
        if let Some(asked) = &mut request.response {
            self.asked.input = std::mem::take(&mut asked.items);
            self.hold = Some(hold);
        }
    }

    /// Stores the response. A failure costs what follows from it, not the answer.
    pub(super) async fn save(mut self, response: String, text: &str, calls: &[String]) {
        self.head.digest = self.digest.answered(text, calls);
        let stored = Stored { head: self.head, asked: self.asked, response };
        if let Err(error) = self.user.save(&self.id, stored).await {
            tracing::warn!(%error, "a response was not stored: it can neither be read nor continued");
        }
    }
}

/// What a request needs of others.
type Completed = (Box<TurnRequest>, Option<Continued>, Option<Hold>);

impl TurnHandler {
    /// Completes a request that continues a response or refers to items of some.
    pub(super) async fn complete(
        &self,
        user: &UserId,
        mut request: Box<TurnRequest>,
    ) -> Result<Completed, ApiError> {
        let Some(asked) = &request.response else {
            return Ok((request, None, None));
        };
        let responses = self.app.responses.of(user);
        let previous = match &asked.previous {
            Some(id) => Some(responses.read(id).await.map_err(storage)?.ok_or_else(previous_not_found)?),
            None => None,
        };
        let completed = blocking_long(move || {
            let completed = complete(&responses, &mut request, previous)?;
            Ok(completed.map(|(continued, bytes)| (request, continued, bytes)))
        });
        let (request, continued, bytes) = completed.await.map_err(storage)??;
        self.refuse_ignored_fields(&request)?;
        // As long as the body itself: what was read is a part of the request from now on.
        let hold = self.app.bodies.reserve(&self.caller, bytes).await?;
        Ok((request, continued, Some(hold)))
    }

    /// The conversation of the response that the request continues, else a new one that is given all that was said.
    pub(super) async fn continued(
        &self,
        inside: &Inside<UserId>,
        request: &TurnRequest,
        named: Option<String>,
        continued: Continued,
    ) -> Result<Conversation, ApiError> {
        let (Some(asked), Some(digest)) = (&request.response, &request.history_digest) else {
            return Err(TurnError::Internal("a continued response has no digest").into());
        };
        let Continued { head, is_known } = continued;
        let user = inside.key();
        if named.as_ref().is_some_and(|name| *name != head.conversation) {
            let message = "previous_response_id: this response is of another conversation than x-pilotlight-session names";
            let error = ApiError::invalid("previous_response_elsewhere", message);
            return Err(error.about("previous_response_id"));
        }
        let name = head.conversation.clone();
        let mut held = Held::default();
        if head.named {
            let responses = self.app.responses.of(user);
            let advanced = responses.advance(&name, asked.previous.as_ref(), &asked.id).await;
            held.advance = advanced.map_err(storage)?;
            if held.advance.is_some() {
                self.app.conversations.exclude(inside, &name).await;
            }
        } else {
            held.claim = self.app.conversations.claim_named(user, &name, digest).await;
        }
        if held.advance.is_some() || held.claim.is_some() {
            // A session that is gone would begin again with nothing.
            if !is_known && self.is_unused(user, &name).await? {
                return Err(previous_not_found());
            }
            let head = Head { previous: asked.previous.clone(), ..head };
            held.recording = self.recording(user, request, head);
            return Ok(Conversation { name, held });
        }
        if named.is_some() {
            return Err(not_last("or without x-pilotlight-session, to begin another conversation with it"));
        }
        if !head.whole {
            return Err(not_last("and others have spoken in its conversation, which is named"));
        }
        if !is_known {
            return Err(previous_not_found());
        }
        let claim = self.app.conversations.claim_new(user, digest).await?;
        let name = claim.conversation().to_owned();
        let head =
            Head { conversation: name.clone(), named: false, previous: asked.previous.clone(), ..head };
        held.claim = Some(claim);
        held.recording = self.recording(user, request, head);
        Ok(Conversation { name, held })
    }

    /// Notes that a response begins in a conversation that a request names or that was found by its history.
    pub(super) async fn begun(
        &self,
        user: &UserId,
        request: &TurnRequest,
        conversation: &mut Conversation,
    ) -> Result<(), ApiError> {
        let Some(asked) = &request.response else { return Ok(()) };
        let named = conversation.held.claim.is_none();
        let mut whole = true;
        if named {
            let responses = self.app.responses.of(user);
            let advance = responses.advance(&conversation.name, None, &asked.id).await.map_err(storage)?;
            whole = advance.as_ref().is_some_and(|advance| advance.is_first())
                && self.is_unused(user, &conversation.name).await?;
            conversation.held.advance = advance;
        }
        let head = Head {
            conversation: conversation.name.clone(),
            named,
            whole,
            previous: None,
            digest: String::new(),
        };
        conversation.held.recording = self.recording(user, request, head);
        Ok(())
    }

    async fn is_unused(&self, user: &UserId, name: &str) -> Result<bool, ApiError> {
        let session = self.app.pilot.conversation(user.as_bytes(), name);
        let known = session.known().await?;
        Ok(known.is_none_or(|status| status.turns == 0 && status.queue_depth == 0))
    }

    fn recording(&self, user: &UserId, request: &TurnRequest, head: Head) -> Option<Box<Recording>> {
        let asked = request.response.as_ref().filter(|asked| asked.is_stored)?;
        Some(Box::new(Recording {
            user: self.app.responses.of(user),
            id: asked.id.clone(),
            head,
            asked: Asked { system: asked.system.clone(), input: Vec::new() },
            digest: request.history_digest?,
            hold: None,
        }))
    }
}

/// Reads what came before the request and completes it. Returns the bytes that were read. Blocks.
fn complete(
    responses: &UserResponses,
    request: &mut TurnRequest,
    previous: Option<Stored>,
) -> io::Result<Result<(Option<Continued>, usize), ApiError>> {
    let Some(asked) = &mut request.response else { return Ok(Ok((None, 0))) };
    let mut bytes = match resolved(responses, &mut asked.items)? {
        Ok(bytes) => bytes,
        Err(index) => return Ok(Err(no_such_item(index))),
    };
    let (mut continued, mut former) = (None, None);
    if let Some(previous) = previous {
        let (head, system) = (previous.head.clone(), previous.asked.system.clone());
        let chain = if head.whole { Chain::read(responses, previous)? } else { None };
        bytes += chain.as_ref().map_or(0, |chain| chain.bytes);
        let items = chain.map(|chain| chain.items);
        continued = Some(Continued { is_known: items.is_some(), head: head.clone() });
        former = Some(Former { digest: head.digest, system, items });
    }
    Ok(request.complete(former).map(|()| (continued, bytes)))
}

fn no_such_item(index: usize) -> ApiError {
    let message = format!("input[{index}]: there is no such item in a stored response");
    ApiError::new(StatusCode::NOT_FOUND, "item_not_found", message).about("input")
}

fn not_last(way_out: &str) -> ApiError {
    let message = format!(
        "previous_response_id: the conversation of this response has gone on since. Send the request without \
         previous_response_id, to go on in the conversation as it is, {way_out}"
    );
    ApiError::conflict("previous_response_not_last", message, None).about("previous_response_id")
}

fn storage(error: io::Error) -> ApiError {
    TurnError::Storage(error.into()).into()
}
