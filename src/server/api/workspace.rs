//! `/v1/workspace`: what lies in the working directory of a caller's own session, and its deletion.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::TurnError;
use crate::model::ids::DEFAULT_CONVERSATION;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{checked, existing, purge_session};
use crate::server::app::App;
use crate::server::files::snapshot;

/// Files in a list, unless more are asked for.
const LISTED: usize = 1000;
/// Files in the longest list. All of them are counted as far as a workspace is looked at.
const MOST_LISTED: usize = 10_000;

/// A working directory. Paths are within it; dotfiles and installed packages are left out.
#[derive(Serialize)]
pub(crate) struct Workspace {
    session: String,
    files: Vec<File>,
    files_summary: Summary,
    limit: usize,
    /// There are more files than are told, or than were looked at.
    truncated: bool,
}

#[derive(Serialize)]
struct File {
    path: String,
    size: u64,
}

#[derive(Serialize)]
struct Summary {
    total: usize,
    total_size: u64,
}

pub(crate) async fn look(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<Workspace>, ApiError> {
    let (user, name) = (query.owner()?, session(&query)?);
    let limit = query.fields.limit(LISTED, MOST_LISTED)?;
    let (session, _) = existing(&app, &user, name).await?;
    let work = session.work().await?;
    // Closed never.
    let _room = app.gathering().acquire().await;
    let looked = tokio::task::spawn_blocking(move || snapshot::look(&work.open()?)).await;
    let looked = looked.map_err(|_| TurnError::Internal("a workspace could not be looked at"))?;
    let snapshot = looked.map_err(|error| TurnError::Storage(error.to_string()))?;
    let total = snapshot.files.len();
    let total_size = snapshot.files.values().map(|stamp| stamp.size).fold(0, u64::saturating_add);
    let files = snapshot.files.into_iter().take(limit);
    let files =
        files.map(|(path, stamp)| File { path: path.to_string_lossy().into_owned(), size: stamp.size });
    Ok(Json(Workspace {
        session: name.to_owned(),
        files: files.collect(),
        files_summary: Summary { total, total_size },
        limit,
        truncated: snapshot.partial || total > limit,
    }))
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (user, name) = (query.owner()?, session(&query)?);
    if !query.fields.flag("confirm")? {
        let message = "this deletes the conversation and its files; say so with ?confirm=true";
        return Err(ApiError::invalid("confirm_required", message));
    }
    let (session, _) = existing(&app, &user, name).await?;
    purge_session(&app, &user, name, &session).await?;
    Ok(Json(json!({ "session": name, "deleted": true })))
}

/// The conversation whose workspace is meant.
fn session(query: &SessionQuery) -> Result<&str, ApiError> {
    let name = query.fields.text("session")?.unwrap_or(DEFAULT_CONVERSATION);
    checked(name).map(|()| name)
}
