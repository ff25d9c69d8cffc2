//! The conversation of a session as a whole: its messages.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::Value;

use crate::model::{Role, SpokenMessage, Usage};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing, seconds};
use crate::server::app::App;

const LISTED: usize = 100;
/// Maximum length of a page; it is bounded in bytes as well.
const MOST_LISTED: usize = 1000;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sessions/{id}/messages", get(messages))
}

#[derive(Serialize)]
pub(crate) struct Page {
    messages: Vec<MessageView>,
    limit: usize,
    /// Whether there are more messages after these.
    has_more: bool,
}

#[derive(Serialize)]
struct MessageView {
    uuid: String,
    role: &'static str,
    content: Vec<Value>,
    /// Seconds since 1970.
    created_at: Option<f64>,
    model: Option<String>,
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_summary: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
}

impl From<SpokenMessage> for MessageView {
    fn from(message: SpokenMessage) -> Self {
        Self {
            uuid: message.uuid,
            role: match message.role {
                Role::User => "user",
                Role::Assistant => "assistant",
            },
            content: message.blocks,
            created_at: message.time.map(seconds),
            model: message.model,
            usage: message.usage,
            is_summary: message.is_summary,
            is_error: message.is_error,
        }
    }
}

async fn messages(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Page>, ApiError> {
    let limit = query.fields.limit(LISTED, MOST_LISTED)?;
    let after = query.fields.text("after")?;
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    // The semaphore is never closed. Transcripts are read whole, so concurrent readers are limited.
    let _room = app.gathering.acquire().await;
    let page = session.messages(after, limit).await?;
    let messages = page.messages.into_iter().map(MessageView::from).collect();
    Ok(Json(Page { messages, limit, has_more: page.has_more }))
}
