//! From an accepted turn to `202 Accepted`.

use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::AsyncTurn;
use crate::model::ids::UserId;
use crate::server::api::error::ErrorForm;
use crate::server::api::router::OfTurn;
use crate::server::api::turns::running;
use crate::server::auth::caller;
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
        let (session, is_stream) = (turn.conversation.name.clone(), turn.request.stream);
        let ignored = turn.request.without_effect().join(",");
        let id = format!("turn_{}", uuid::Uuid::new_v4().simple());
        let entry = Arc::new(AsyncTurn::new(id, user.clone(), session, is_stream, form, control));
        let answering = respond(turn, user, false, form);
        let revoked = self.caller.revoked().cloned();
        self.app.async_turns.start(entry.clone(), revoked, self.request_id.clone(), answering);

        let mut response = running(&self.app, &entry);
        *response.status_mut() = StatusCode::ACCEPTED;
        response.extensions_mut().insert(OfTurn);
        let headers = response.headers_mut();
        headers.insert(APPLIED_HEADER, HeaderValue::from_static("respond-async"));
        // Digits and letters only.
        if let Ok(place) = HeaderValue::from_str(&format!("/v1/turns/{}", entry.id)) {
            headers.insert(header::LOCATION, place);
        }
        headers.insert(SESSION_HEADER, caller::header_text(&entry.session));
        if !ignored.is_empty() {
            headers.insert(IGNORED_HEADER, caller::header_text(&ignored));
        }
        response
    }
}
