//! The MCP servers of a session, also while its child runs: list, connect again, add, remove.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::body::with_body;
use crate::model::{McpApplied, McpError, McpServerStatus};
use crate::server::api::error::ApiError;
use crate::server::api::query::SessionQuery;
use crate::server::api::sessions::{SessionName, existing};
use crate::server::app::App;
use crate::server::dialect::{RequestedServers, check_length};
use crate::server::turns::mcp::choose;
use crate::system::Session;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/sessions/{id}/mcp", get(list))
        .route("/v1/sessions/{id}/mcp/{name}", put(add).delete(remove))
        .route("/v1/sessions/{id}/mcp/{name}/reconnect", post(reconnect))
}

/// Name of a server in the path.
type Names = Result<Path<Vec<(String, String)>>, PathRejection>;

fn server_name(names: Names) -> Result<String, ApiError> {
    let named = names.ok().and_then(|Path(names)| names.into_iter().nth(1));
    named.map(|(_, name)| name).ok_or_else(|| refused(McpError::NotFound))
}

async fn list(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (session, _) = existing(&app, &query.subject()?, &name).await?;
    let servers = session.mcp_servers().await?;
    let is_asked = servers.iter().any(|server| server.status.is_some());
    let allowed = query.caller.limits().mcp.as_ref();
    let servers = servers.iter().filter(|server| allowed.is_none_or(|names| names.contains(&server.name)));
    let servers: Vec<Value> = servers.map(view).collect();
    Ok(Json(json!({ "id": name, "source": if is_asked { "cli" } else { "settings" }, "servers": servers })))
}

fn view(server: &McpServerStatus) -> Value {
    json!({ "name": server.name, "status": server.status, "error": server.error, "tools": server.tools })
}

/// Adds a configured server by its name, or a definition, by the rules of a turn.
async fn add(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    names: Names,
    query: SessionQuery,
    request: Request,
) -> Result<Response, ApiError> {
    app.refuse_when_draining()?;
    let user = query.owner()?;
    let parse = |body: &[u8]| {
        let server = server_name(names)?;
        requested(&server, body).map(|requested| (server, requested))
    };
    with_body(&app, &query.caller, request, parse, async |(server, requested)| {
        let mcp = &app.pilot.config().mcp;
        let servers = choose(Some(requested), &HeaderMap::new(), &query.caller, mcp)?.unwrap_or_default();
        let (session, _) = existing(&app, &user, &name).await?;
        let applied = session.add_mcp_servers(servers).await.map_err(refused)?;
        Ok(changed(&name, &server, applied))
    })
    .await
}

fn requested(name: &str, body: &[u8]) -> Result<RequestedServers, ApiError> {
    check_length(body.len())?;
    let definition: Map<String, Value> = match body {
        [] => Map::new(),
        body => serde_json::from_slice(body)
            .map_err(|error| ApiError::invalid("invalid_body", error.to_string()))?,
    };
    let field = if definition.is_empty() { json!([name]) } else { json!({ name: definition }) };
    Ok(RequestedServers::read(Some(field))?.unwrap_or_default())
}

async fn remove(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    names: Names,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (session, server) = chosen(&app, &name, names, &query).await?;
    let applied = session.remove_mcp_server(&server).await.map_err(refused)?;
    Ok(changed(&name, &server, applied))
}

async fn reconnect(
    State(app): State<Arc<App>>,
    SessionName(name): SessionName,
    names: Names,
    query: SessionQuery,
) -> Result<Json<Value>, ApiError> {
    let (session, server) = chosen(&app, &name, names, &query).await?;
    session.reconnect_mcp_server(&server).await.map_err(refused)?;
    Ok(Json(json!({ "id": name, "name": server, "connected": true })))
}

/// The session, and the server of it that the caller may use.
async fn chosen(
    app: &App,
    name: &str,
    names: Names,
    query: &SessionQuery,
) -> Result<(Session, String), ApiError> {
    let server = server_name(names)?;
    may_use(query, &server)?;
    let (session, _) = existing(app, &query.owner()?, name).await?;
    Ok((session, server))
}

fn may_use(query: &SessionQuery, server: &str) -> Result<(), ApiError> {
    let allowed = query.caller.limits().mcp.as_ref();
    if allowed.is_none_or(|names| names.iter().any(|name| name == server)) {
        return Ok(());
    }
    let message = "the server is none that this key may use";
    Err(ApiError::new(StatusCode::FORBIDDEN, "mcp_server_not_allowed", message))
}

fn changed(session: &str, server: &str, applied: McpApplied) -> Json<Value> {
    let applied = match applied {
        McpApplied::Now => "now",
        McpApplied::NextStart => "next_start",
    };
    Json(json!({ "id": session, "name": server, "applied": applied }))
}

fn refused(error: McpError) -> ApiError {
    let (status, code) = match error {
        McpError::NotFound => (StatusCode::NOT_FOUND, "mcp_server_not_found"),
        McpError::NotRunning => (StatusCode::CONFLICT, "session_not_running"),
        McpError::Busy => (StatusCode::CONFLICT, "session_busy"),
        McpError::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_mcp_servers"),
        McpError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_mcp_server"),
        McpError::NotConnected => (StatusCode::BAD_GATEWAY, "mcp_not_connected"),
        McpError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
    };
    ApiError::new(status, code, error.to_string())
}
