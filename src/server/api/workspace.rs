//! `/v1/workspace`: lists and deletes the files of a caller's session.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use crate::model::ids::DEFAULT_CONVERSATION;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{checked, existing, purge_session};
use crate::server::app::App;
use crate::server::files::snapshot;
use crate::system::blocking;

const LISTED: usize = 1000;
/// Maximum length of a list. All files are counted within the limits of a snapshot.
const MOST_LISTED: usize = 10_000;

/// Files of a working directory, with relative paths; dotfiles and installed packages are omitted.
#[derive(Serialize)]
pub(crate) struct Workspace {
    session: String,
    files: Vec<File>,
    files_summary: Summary,
    limit: usize,
    /// Whether the list or the snapshot is incomplete.
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
    // The semaphore is never closed.
    let _room = app.gathering.acquire().await;
    let snapshot = blocking(move || snapshot::of(&work)).await?;
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

/// The conversation whose workspace is listed.
pub(super) fn session(query: &SessionQuery) -> Result<&str, ApiError> {
    let name = query.fields.text("session")?.unwrap_or(DEFAULT_CONVERSATION);
    checked(name).map(|()| name)
}
