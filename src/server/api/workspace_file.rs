//! `/v1/workspace/files/PATH`: one file of a session's working directory, read, written and deleted.
//!
//! A child may be writing there meanwhile, and may have put links, pipes or devices in the way: no link is followed, and
//! only regular files with one name are read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::router::BodyRead;
use super::workspace::session;
use crate::error::TurnError;
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::existing;
use crate::server::app::App;
use crate::server::percent;
use crate::support::blocking::blocking_long;
use crate::workspace::beneath::ReadError;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/workspace/files/{*path}", get(read))
        .route("/v1/workspace/files/{*path}", put(write))
        .route("/v1/workspace/files/{*path}", delete(remove))
}

const PREFIX: &str = "/v1/workspace/files/";
/// Longest path, in bytes.
const MAX_PATH: usize = 1024;
/// Maximum directories on the way to a file.
const MAX_DEPTH: usize = 32;
/// Read at once of a file that is sent, and in memory for each caller.
const CHUNK: usize = 64 << 10;

/// The path of the file that a request names.
///
/// # Errors
/// 400 for a path that leaves the directory, or has a hidden part: the CLI keeps settings in such files.
fn path(uri: &Uri) -> Result<PathBuf, ApiError> {
    let refused = |problem: &str| ApiError::invalid("invalid_path", format!("the path {problem}"));
    let sent = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let bytes = percent::decode(sent.as_bytes()).ok_or_else(|| refused("is not percent-encoded"))?;
    let text = String::from_utf8(bytes).map_err(|_| refused("must be UTF-8"))?;
    if text.len() > MAX_PATH || text.split('/').count() > MAX_DEPTH {
        return Err(refused(&format!("must have at most {MAX_PATH} bytes and {MAX_DEPTH} parts")));
    }
    if text.chars().any(char::is_control) {
        return Err(refused("must not have control characters"));
    }
    if text.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return Err(refused("must not have empty parts, nor parts that begin with a dot"));
    }
    Ok(PathBuf::from(text))
}

fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "file_not_found", "there is no such file")
}

fn not_a_file() -> ApiError {
    let message = "something else stands there: a directory, a link, or a file that cannot be used";
    ApiError::conflict("not_a_file", message, None)
}

/// What stands in the way of a request, as an answer; other errors are the server's.
fn answer_to(error: io::Error) -> ApiError {
    let is_loop = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    match error.kind() {
        io::ErrorKind::NotFound => not_found(),
        _ if is_loop => not_a_file(),
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::InvalidData => not_a_file(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", "there is no room for the file")
        }
        _ => TurnError::Storage(error.into()).into(),
    }
}

async fn read(State(app): State<Arc<App>>, query: SessionQuery, uri: Uri) -> Result<Response, ApiError> {
    let (user, name, path) = (query.owner()?, session(&query)?, path(&uri)?);
    let (session, _) = existing(&app, &user, name).await?;
    let work = session.work().await?;
    let opened = move || {
        let file = work.open().map_err(ReadError::from).and_then(|work| work.file(&path));
        Ok(file.map_err(|error| answer_to(error.into())))
    };
    let file = long(opened).await??;
    let size = file.metadata().map_err(answer_to)?.len();
    // A file that grows meanwhile ends where it ended; one that shrinks breaks the connection off.
    let content = ReaderStream::with_capacity(tokio::fs::File::from_std(file).take(size), CHUNK);
    let mut response = Response::new(Body::from_stream(content));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    // Anything may stand in the file: a browser must neither show nor run it as a page of this server.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn long<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    blocking_long(work).await.map_err(|error| TurnError::Storage(error.into()).into())
}

/// Writes a file, in place of one of the same name. A session that does not exist begins.
async fn write(
    State(app): State<Arc<App>>,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    app.refuse_when_draining()?;
    let (user, name, path) = (query.owner()?, session(&query)?.to_owned(), path(request.uri())?);
    app.count_new_user(&query.caller, &user).await?;
    let received = app.bodies.receive(&query.caller, request.into_body()).await?;
    let session = app.pilot.conversation(user.as_bytes(), &name);
    let size = received.bytes.len();
    let file = path.clone();
    session.check_room_for(size as u64).await?;
    let work = session.work().await?;
    long(move || {
        let written = || {
            let work = work.open()?;
            let parent = file.parent().unwrap_or(Path::new(""));
            match work.dir(parent) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => drop(work.make_dir(parent)?),
                found => drop(found?),
            }
            work.put(&file, &received.bytes)
        };
        Ok(written().map_err(answer_to))
    })
    .await??;
    let written = json!({ "session": name, "path": path.to_string_lossy(), "size": size });
    let mut response = (StatusCode::OK, Json(written)).into_response();
    response.extensions_mut().insert(BodyRead);
    Ok(response)
}

async fn remove(State(app): State<Arc<App>>, query: SessionQuery, uri: Uri) -> Result<Json<Value>, ApiError> {
    let (user, name, path) = (query.owner()?, session(&query)?.to_owned(), path(&uri)?);
    let (session, _) = existing(&app, &user, &name).await?;
    let work = session.work().await?;
    let file = path.clone();
    long(move || Ok(work.open().and_then(|work| work.unlink(&file)).map_err(answer_to))).await??;
    Ok(Json(json!({ "session": name, "path": path.to_string_lossy(), "deleted": true })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_and_are_not_hidden() {
        let read = |sent: &str| path(&format!("{PREFIX}{sent}").parse().unwrap()).ok();
        assert_eq!(read("a/b%20c.txt"), Some("a/b c.txt".into()));
        assert_eq!(read("%C3%A4"), Some("ä".into()));
        let (long, deep) = ("a".repeat(MAX_PATH + 1), "a/".repeat(MAX_DEPTH) + "a");
        for wrong in [
            "",
            "..",
            "a/../b",
            "%2e%2e/b",
            "a//b",
            "/etc/passwd",
            ".git/config",
            "a/.x",
            "a%00b",
            "a%0Ab",
            "%ff",
            "%zz",
            &long,
            &deep,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
