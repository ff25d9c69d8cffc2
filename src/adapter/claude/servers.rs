//! MCP servers of a running child. Pure.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::caller_tools::CALLER_SERVER;
use super::control::{request_with, response};
use super::read::ID_LIMIT;
use crate::model::McpServerStatus;

/// Servers of one child that are reported.
const MOST_SERVERS: usize = 64;

/// Tools of one server that are named.
const MOST_TOOLS: usize = 256;

/// Longest reason that is reported.
const LONGEST_ERROR: usize = 512;

/// Control request that replaces all servers of a child. The CLI drops every server that the request does not name, those
/// of the host itself included. Its response comes when each is connected or has failed.
pub(crate) fn replace_servers(request_id: &str, servers: &Map<String, Value>, has_caller: bool) -> Vec<u8> {
    let mut servers = servers.clone();
    if has_caller {
        servers.insert(CALLER_SERVER.to_owned(), json!({"type": "sdk", "name": CALLER_SERVER}));
    }
    let request = json!({"subtype": "mcp_set_servers", "servers": servers});
    request_with(request_id, &request)
}

/// Control request that connects to a server again.
pub(crate) fn reconnect_server(request_id: &str, name: &str) -> Vec<u8> {
    let request = json!({"subtype": "mcp_reconnect", "serverName": name});
    request_with(request_id, &request)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statuses {
    mcp_servers: Vec<Value>,
}

#[derive(Deserialize)]
struct Replaced {
    #[serde(default)]
    errors: Map<String, Value>,
}

/// The servers in the response to a [`super::ping`], without that of the caller's tools. Definitions are left out.
pub(crate) fn server_statuses(line: &[u8]) -> Option<Vec<McpServerStatus>> {
    let found: Statuses = response(line)?;
    let servers = found.mcp_servers.iter().filter_map(status).filter(|server| server.name != CALLER_SERVER);
    Some(servers.take(MOST_SERVERS).collect())
}

fn status(server: &Value) -> Option<McpServerStatus> {
    let short = |value: &Value| value.as_str().filter(|text| text.len() <= ID_LIMIT).map(str::to_owned);
    let tools = server.get("tools").and_then(Value::as_array).into_iter().flatten();
    let error = server.get("error").and_then(Value::as_str);
    Some(McpServerStatus {
        name: short(server.get("name")?)?,
        status: short(server.get("status")?),
        error: error.map(|error| error.chars().take(LONGEST_ERROR).collect()),
        tools: tools.filter_map(|tool| short(tool.get("name")?)).take(MOST_TOOLS).collect(),
    })
}

/// Names of servers that could not be connected, of the response to [`replace_servers`].
pub(crate) fn unconnected(line: &[u8]) -> Vec<String> {
    response::<Replaced>(line)
        .map(|replaced| replaced.errors.keys().take(MOST_SERVERS).cloned().collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::control::line;
    use super::super::control::tests::parse;
    use super::*;

    fn answer(body: Value) -> Vec<u8> {
        line(
            &json!({"type": "control_response", "response": {"subtype": "success", "request_id": "r", "response": body}}),
        )
    }

    /// As 2.1.197 and 2.1.332 answer.
    #[test]
    fn status_has_no_definition() {
        let body = json!({"mcpServers": [
            {"name": "a", "status": "connected", "serverInfo": {"name": "t", "version": "1"},
                "config": {"type": "stdio", "command": "/secret/path", "args": ["--token=s3cret"]}, "scope": "dynamic",
                "tools": [{"name": "ask", "annotations": {}}, {"odd": 1}]},
            {"name": "b", "status": "failed", "error": "ENOENT", "config": {"type": "http", "headers": {"x": "s3cret"}}},
            {"name": "caller", "status": "connected", "tools": [{"name": "add"}]},
            {"name": 7}, null,
        ]});
        let servers = server_statuses(&answer(body)).unwrap();
        assert!(!format!("{servers:?}").contains("s3cret"));
        let shown: Vec<_> =
            servers.iter().map(|it| (it.name.as_str(), it.status.as_deref().unwrap())).collect();
        assert_eq!(shown, [("a", "connected"), ("b", "failed")]);
        assert_eq!((&servers[0].tools, &servers[0].error), (&vec!["ask".to_owned()], &None));
        assert_eq!(servers[1].error.as_deref(), Some("ENOENT"));
        assert_eq!(server_statuses(&answer(json!({}))), None);
        let many = json!({"mcpServers": vec![json!({"name": "n", "status": "failed", "error": "x".repeat(9999)}); 100]});
        let servers = server_statuses(&answer(many)).unwrap();
        assert_eq!((servers.len(), servers[0].error.as_ref().unwrap().len()), (MOST_SERVERS, LONGEST_ERROR));
    }

    #[test]
    fn server_of_the_callers_tools_is_kept() {
        let servers = json!({"a": {"type": "stdio", "command": "x"}}).as_object().unwrap().clone();
        let named = |has_caller| {
            let request = parse(&replace_servers("r", &servers, has_caller))["request"]["servers"].clone();
            request.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(named(true), ["a", "caller"]);
        assert_eq!(named(false), ["a"]);
        assert_eq!(parse(&reconnect_server("r", "a"))["request"]["serverName"], "a");
    }

    #[test]
    fn servers_that_failed_are_named() {
        let line = answer(json!({"added": ["a", "b"], "removed": [], "errors": {"b": "ENOENT"}}));
        assert_eq!(unconnected(&line), ["b"]);
        assert!(unconnected(&answer(json!({"added": []}))).is_empty());
    }
}
