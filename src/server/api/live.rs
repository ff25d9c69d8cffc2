//! `GET /v1/sessions/{id}/live`: the text of the running turn as it comes, for callers that may read the conversation.
//!
//! Watching changes nothing for the turn and its reader, unlike `…/events`. The text before the request is in
//! `…/messages` once its message is complete.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::adapter;
use crate::server::api::error::ApiError;
use crate::server::api::events::{Source, response};
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing};
use crate::server::app::App;
use crate::server::dialect::sse;

/// The text in the lines of a session's turns.
struct Texts(Receiver<Bytes>);

pub(crate) async fn watch(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Response, ApiError> {
    let user = query.subject()?;
    let (session, _) = existing(&app, &user, &name).await?;
    let hello = json!({ "type": "hello" });
    // Of a session on disk alone nothing comes: the stream ends, and the client asks again.
    let texts = session.watch().map(Texts);
    response(&app.event_streams, query.streams_of(user), &hello, texts)
}

impl Source for Texts {
    async fn next(&mut self) -> Option<Bytes> {
        let mut frames = BytesMut::new();
        while frames.is_empty() {
            match self.0.recv().await {
                Ok(lines) => render(&lines, &mut frames),
                Err(RecvError::Lagged(_)) => sse::event(&json!({ "type": "missed" }), &mut frames),
                Err(RecvError::Closed) => return None,
            }
        }
        Some(frames.freeze())
    }
}

fn render(lines: &[u8], frames: &mut BytesMut) {
    let text: String = sse::lines(lines).filter_map(adapter::text_delta).collect();
    if !text.is_empty() {
        sse::event(&json!({ "type": "text", "text": text }), frames);
    }
}
