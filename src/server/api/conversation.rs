//! The conversation of a session as a whole: its messages, and the verbs that compact, replace, copy or shorten it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::{parsed, with_body};
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::model::{ContextCategory, Role, SpokenMessage, Usage};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, SessionView, addressable, existing, seconds};
use crate::server::app::App;
use crate::server::turns::restrict::restrict;
use crate::turn::TurnOptions;

const LISTED: usize = 100;
/// Maximum length of a page; it is bounded in bytes as well.
const MOST_LISTED: usize = 1000;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/sessions/{id}/messages", get(messages))
        .route("/v1/sessions/{id}/context", get(context))
        .route("/v1/sessions/{id}/compact", post(compact))
        .route("/v1/sessions/{id}/reset", post(reset))
        .route("/v1/sessions/{id}/fork", post(fork))
        .route("/v1/sessions/{id}/rewind", post(rewind))
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

/// What fills the model's context; fields that nobody knows are null.
async fn context(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    let _room = app.gathering.acquire().await;
    let used = session.context().await?.unwrap_or_default();
    let category = |it: &ContextCategory| json!({ "name": it.name, "tokens": it.tokens });
    let categories: Vec<_> = used.categories.iter().map(category).collect();
    Ok(Json(json!({
        "id": name,
        "source": if used.is_measured { "cli" } else { "last_turn" },
        "model": used.model,
        "total_tokens": used.total_tokens,
        "max_tokens": used.max_tokens,
        "auto_compact_at": used.auto_compact_at,
        "categories": categories,
    })))
}

async fn compact(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    app.refuse_when_draining()?;
    let user = query.subject()?;
    let (session, _) = existing(&app, &user, &name).await?;
    let mut options = TurnOptions::default();
    restrict(&mut options, query.caller.limits())?;
    let _permit = app.turn_permit(&user, &query.caller)?;
    let done = session.compact_with(options).await?;
    Ok(Json(json!({
        "id": name,
        "tokens_before": done.tokens_before,
        "tokens_after": done.tokens_after,
        "cost_usd": done.cost_usd,
    })))
}

async fn reset(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<SessionView>, ApiError> {
    let (user, interrupt) = (query.subject()?, query.fields.flag("interrupt")?);
    let (session, _) = existing(&app, &user, &name).await?;
    session.reset(interrupt).await?;
    forget_history(&app, &user, &name).await?;
    let (_, status) = existing(&app, &user, &name).await?;
    Ok(Json(SessionView::of(&name, status)))
}

/// What a client says was said before is no more: its history matches this conversation no longer.
async fn forget_history(app: &App, user: &UserId, name: &str) -> Result<(), ApiError> {
    // With a user who is being deleted all of them go.
    let Ok(inside) = app.pilot.enter(user) else { return Ok(()) };
    app.conversations.exclude(&inside, name).await;
    let forgotten = app.responses.of(user).forget_last_of(name).await;
    forgotten.map_err(|error| TurnError::Storage(error.into()).into())
}

/// Body of a fork; unknown fields are ignored.
#[derive(Deserialize)]
struct ForkBody {
    name: String,
    at: Option<String>,
}

async fn fork(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    app.refuse_when_draining()?;
    let user = query.subject()?;
    with_body(&app, &query.caller, request, parsed, async |ForkBody { name: other, at }| {
        addressable(&other)?;
        let (session, _) = existing(&app, &user, &name).await?;
        let _room = app.gathering.acquire().await;
        session.fork(&other, at.as_deref()).await?;
        let (_, status) = existing(&app, &user, &other).await?;
        Ok((StatusCode::CREATED, Json(SessionView::of(&other, status))))
    })
    .await
}

/// Body of a rewind; unknown fields are ignored.
#[derive(Deserialize)]
struct RewindBody {
    at: String,
}

async fn rewind(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let (user, interrupt) = (query.subject()?, query.fields.flag("interrupt")?);
    with_body(&app, &query.caller, request, parsed, async |RewindBody { at }| {
        let (session, _) = existing(&app, &user, &name).await?;
        let _room = app.gathering.acquire().await;
        session.rewind(&at, interrupt).await?;
        forget_history(&app, &user, &name).await?;
        let (_, status) = existing(&app, &user, &name).await?;
        Ok(Json(SessionView::of(&name, status)))
    })
    .await
}
