//! The verbs of the audit log: what a request does, by its method and route. Pure.

use axum::http::{Method, Uri};

use crate::model::ids::DEFAULT_CONVERSATION;
use crate::server::api::query::Query;
use crate::server::percent;

/// The verb of a request; `None` for those that show nothing of a user and change nothing.
pub(super) fn verb(method: &Method, route: &str) -> Option<&'static str> {
    let verb = match (method.as_str(), route) {
        (
            "POST",
            "/v1/messages"
            | "/v1/messages/keepalive"
            | "/v1/messages/pooled"
            | "/v1/chat/completions"
            | "/v1/responses",
        ) => "turn",
        ("GET", "/v1/responses/{id}" | "/v1/responses/{id}/input_items") => "response.read",
        ("DELETE", "/v1/responses/{id}") => "response.delete",
        ("POST", "/v1/responses/{id}/cancel") => "response.cancel",
        ("GET", "/v1/turns/{id}" | "/v1/turns/{id}/events") => "turn.read",
        ("DELETE", "/v1/turns/{id}") => "turn.delete",
        ("POST", "/v1/turns/{id}/cancel") => "turn.cancel",
        ("GET", "/v1/events/stream" | "/v1/happenings") => "events.follow",
        ("GET", "/v1/sessions") => "sessions.list",
        ("GET", "/v1/sessions/{id}") => "session.read",
        ("DELETE", "/v1/sessions/{id}") => "session.delete",
        ("POST", "/v1/sessions/{id}/warm") => "session.warm",
        ("POST", "/v1/sessions/{id}/interrupt") => "session.interrupt",
        ("POST", "/v1/sessions/{id}/steer") => "session.steer",
        ("GET", "/v1/sessions/{id}/events" | "/v1/sessions/{id}/live") => "session.follow",
        ("GET", "/v1/sessions/{id}/activity") => "session.activity",
        ("GET", "/v1/sessions/{id}/messages") => "session.messages",
        ("GET", "/v1/sessions/{id}/context") => "session.context",
        ("POST", "/v1/sessions/{id}/compact") => "session.compact",
        ("POST", "/v1/sessions/{id}/reset") => "session.reset",
        ("POST", "/v1/sessions/{id}/fork") => "session.fork",
        ("POST", "/v1/sessions/{id}/rewind") => "session.rewind",
        ("GET", "/v1/sessions/{id}/permissions") => "permissions.list",
        ("POST", "/v1/sessions/{id}/permissions/{request_id}") => "permission.answer",
        ("GET", "/v1/sessions/{id}/mcp") => "mcp.list",
        ("PUT", "/v1/sessions/{id}/mcp/{name}") => "mcp.add",
        ("DELETE", "/v1/sessions/{id}/mcp/{name}") => "mcp.remove",
        ("POST", "/v1/sessions/{id}/mcp/{name}/reconnect") => "mcp.reconnect",
        ("GET", "/v1/workspace") => "workspace.list",
        ("DELETE", "/v1/workspace") => "workspace.delete",
        ("GET" | "HEAD", "/v1/workspace/files/{*path}") => "file.read",
        ("PUT", "/v1/workspace/files/{*path}") => "file.write",
        ("DELETE", "/v1/workspace/files/{*path}") => "file.delete",
        ("GET", "/v1/usage") => "usage.read",
        ("GET", "/v1/overview") => "overview.read",
        ("GET", "/v1/cluster") => "cluster.read",
        ("POST", "/v1/cluster/drain") => "cluster.drain",
        ("POST", "/v1/cluster/resume") => "cluster.resume",
        ("POST", "/v1/cluster/rebalance") => "cluster.rebalance",
        ("DELETE", "/v1/cluster/nodes/{name}") => "cluster.forget",
        ("GET", "/v1/pool/stats") => "sessions.list",
        ("DELETE", "/v1/users" | "/v1/users/{id}") => "user.delete",
        // Clients answer a HEAD as a GET.
        ("HEAD", _) => return verb(&Method::GET, route),
        _ => return None,
    };
    Some(verb)
}

/// The session that a request names in its path or its query. Turns have it in their response.
pub(super) fn session(route: &str, uri: &Uri) -> Option<String> {
    if route.starts_with("/v1/sessions/{id}") {
        let name = percent::decode(uri.path().split('/').nth(3)?.as_bytes())?;
        return String::from_utf8(name).ok();
    }
    if !route.starts_with("/v1/workspace") {
        return None;
    }
    // A query that cannot be read is refused, and names none.
    let fields = Query::of(uri).ok()?;
    Some(fields.text("session").ok()?.unwrap_or(DEFAULT_CONVERSATION).to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Routes that show nothing of a user and change nothing.
    const SILENT: [&str; 9] = [
        "/",
        "/page/{file}",
        "/openapi.json",
        "/livez",
        "/readyz",
        "/health",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/{id}",
    ];

    #[test]
    fn every_documented_route_has_a_verb() {
        let document: serde_json::Value = serde_json::from_str(include_str!("../api/openapi.json")).unwrap();
        let mut silent = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            let route = path.replace("files/{path}", "files/{*path}");
            for method in operations.as_object().unwrap().keys().filter(|it| *it != "parameters") {
                let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
                if verb(&method, &route).is_none() {
                    silent.insert(path.as_str());
                }
            }
        }
        assert_eq!(silent, BTreeSet::from(SILENT));
        assert_eq!(verb(&Method::DELETE, "/v1/users/{id}"), Some("user.delete"));
        assert_eq!(verb(&Method::GET, "/metrics"), None);
    }

    #[test]
    fn session_is_in_the_path_or_the_query() {
        let named = |route: &str, uri: &str| session(route, &uri.parse().unwrap());
        assert_eq!(named("/v1/sessions/{id}/warm", "/v1/sessions/a%20b/warm").as_deref(), Some("a b"));
        assert_eq!(named("/v1/sessions/{id}", "/v1/sessions/%ff"), None);
        assert_eq!(named("/v1/workspace", "/v1/workspace").as_deref(), Some("default"));
        let file = "/v1/workspace/files/{*path}";
        assert_eq!(named(file, "/v1/workspace/files/x?user=u&session=a+b").as_deref(), Some("a b"));
        assert_eq!(named("/v1/messages", "/v1/messages?session=a"), None);
    }
}
