//! From an accepted turn to `202 Accepted`.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::AsyncTurn;
use crate::model::ids::UserId;
use crate::server::api::error::ErrorForm;
use crate::server::api::responses::json;
use crate::server::api::router::OfTurn;
use crate::server::api::turns::running;
use crate::server::auth::caller;
use crate::server::dialect::responses::Background;
use crate::server::turns::control::TurnControl;
use crate::server::turns::handler::{TurnHandler, respond};
use crate::server::turns::prefer::APPLIED_HEADER;
use crate::server::turns::{IGNORED_HEADER, PendingTurn, SESSION_HEADER};

/// A turn that is to be answered later.
pub(in crate::server::turns) struct Accepted {
    pub(in crate::server::turns) turn: Box<PendingTurn>,
    pub(in crate::server::turns) user: UserId,
    pub(in crate::server::turns) form: ErrorForm,
    pub(in crate::server::turns) control: Arc<TurnControl>,
}

impl TurnHandler {
    /// Lets the turn run without its caller, and says where its answer will be.
    pub(in crate::server::turns) fn respond_later(&self, accepted: Accepted) -> Response {
        let Accepted { turn, user, form, control } = accepted;
        let ignored = turn.request.without_effect().join(",");
        let asked = turn.request.response.as_ref().filter(|asked| asked.is_background);
        let id = match asked {
            Some(asked) => asked.id.to_string(),
            None => format!("turn_{}", uuid::Uuid::new_v4().simple()),
        };
        let background = asked.map(|asked| Arc::new(Background::new(&turn.context(), asked)));
        let entry = Arc::new(AsyncTurn::new(id, user.clone(), &turn, form, control));
        let answering = respond(turn, user, false, form);
        let revoked = self.caller.revoked().cloned();
        let turns = &self.app.async_turns;
        turns.start(entry.clone(), background.clone(), revoked, self.request_id.clone(), answering);

        let mut response = match background {
            None => self.accepted(&entry),
            // As the API has it: the events, or the response without its answer.
            Some(_) if entry.is_stream => {
                turns.follow(&entry.id, &HeaderMap::new()).unwrap_or_else(IntoResponse::into_response)
            }
            Some(background) => json(background.unfinished(false)),
        };
        response.extensions_mut().insert(OfTurn);
        let headers = response.headers_mut();
        headers.insert(SESSION_HEADER, caller::header_text(&entry.session));
        if !ignored.is_empty() {
            headers.insert(IGNORED_HEADER, caller::header_text(&ignored));
        }
        response
    }

    fn accepted(&self, turn: &AsyncTurn) -> Response {
        let mut response = running(&self.app, turn);
        *response.status_mut() = StatusCode::ACCEPTED;
        let headers = response.headers_mut();
        headers.insert(APPLIED_HEADER, HeaderValue::from_static("respond-async"));
        // Digits and letters only.
        if let Ok(place) = HeaderValue::from_str(&format!("/v1/turns/{}", turn.id)) {
            headers.insert(header::LOCATION, place);
        }
        response
    }
}
