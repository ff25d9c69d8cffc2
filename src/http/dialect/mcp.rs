//! MCP servers: from the form in which callers send them to the one that the CLI reads.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::http::error::ApiError;
use crate::turn::McpServers;

/// Servers per session: each is a process or a connection of the child.
const MAX_SERVERS: usize = 64;

/// A server as a caller describes it: a command or a URL.
#[derive(Deserialize)]
pub(super) struct McpServer {
    command: Option<String>,
    args: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    url: Option<String>,
    transport: Option<Transport>,
    auth_type: Option<AuthType>,
    auth_token: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
enum Transport {
    #[serde(rename = "sse")]
    Sse,
    #[serde(rename = "streamableHttp")]
    StreamableHttp,
}

/// All of them are a bearer token on the wire.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum AuthType {
    Jwt,
    Oauth,
    Bearer,
}

/// The CLI's form of all servers.
pub(super) fn translate(
    servers: impl ExactSizeIterator<Item = (String, McpServer)>,
) -> Result<McpServers, ApiError> {
    if servers.len() > MAX_SERVERS {
        return Err(ApiError::field(
            "mcp_servers",
            format_args!("at most {MAX_SERVERS} servers are accepted"),
        ));
    }
    let translated = servers.map(|(name, server)| {
        let wrong = |(field, problem): (&str, &str)| {
            ApiError::field(format_args!("mcp_servers.{name}{field}"), problem)
        };
        let value = one(server).map_err(wrong)?;
        Ok((name, value))
    });
    translated.collect::<Result<Map<_, _>, _>>().map(McpServers)
}

fn one(server: McpServer) -> Result<Value, (&'static str, &'static str)> {
    match (server.command, server.url) {
        (Some(command), None) => {
            if command.is_empty() {
                return Err((".command", "must not be empty"));
            }
            if server.auth_token.is_some() || server.auth_type.is_some() {
                return Err((".auth_token", "is for servers with a url; give a command its secrets in env"));
            }
            let (args, env) = (server.args.unwrap_or_default(), server.env.unwrap_or_default());
            Ok(json!({ "type": "stdio", "command": command, "args": args, "env": env }))
        }
        (None, Some(url)) => {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err((".url", "must begin with http:// or https://"));
            }
            let kind = match server.transport {
                None | Some(Transport::Sse) => "sse",
                Some(Transport::StreamableHttp) => "http",
            };
            let mut translated = json!({ "type": kind, "url": url });
            match (server.auth_type, server.auth_token) {
                (None | Some(AuthType::Jwt | AuthType::Oauth | AuthType::Bearer), Some(token)) => {
                    if token.is_empty() || !token.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                        return Err((".auth_token", "must be printable ASCII and not empty"));
                    }
                    translated["headers"] = json!({ "Authorization": format!("Bearer {token}") });
                }
                (Some(_), None) => return Err((".auth_token", "is missing, but auth_type is given")),
                (None, None) => {}
            }
            Ok(translated)
        }
        (Some(_), Some(_)) => Err(("", "has a command and a url; give one of them")),
        (None, None) => Err(("", "has neither a command nor a url")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(servers: Value) -> Result<Value, String> {
        let servers: BTreeMap<String, McpServer> =
            serde_json::from_value(servers).map_err(|error| error.to_string())?;
        let servers = translate(servers.into_iter()).map_err(|error| format!("{error:?}"))?;
        Ok(Value::Object(servers.0))
    }

    #[test]
    fn commands_and_urls_become_what_the_cli_reads() {
        let given = json!({
            "files": { "command": "npx", "args": ["-y", "files"], "env": { "A": "b" }, "unknown": 1 },
            "far": { "url": "https://h/sse", "transport": "sse", "auth_type": "jwt", "auth_token": "t" },
            "near": { "url": "http://h", "transport": "streamableHttp", "auth_type": null },
        });
        let expected = json!({
            "files": { "type": "stdio", "command": "npx", "args": ["-y", "files"], "env": { "A": "b" } },
            "far": { "type": "sse", "url": "https://h/sse", "headers": { "Authorization": "Bearer t" } },
            "near": { "type": "http", "url": "http://h" },
        });
        assert_eq!(translated(given), Ok(expected));
        assert_eq!(translated(json!({})), Ok(json!({})));
    }

    #[test]
    fn wrong_ones_are_named() {
        let cases = [
            (json!({ "a": {} }), "mcp_servers.a: has neither"),
            (json!({ "a": { "url": "http://x", "command": "y" } }), "mcp_servers.a: has a command and a url"),
            (json!({ "a": { "url": "file:///etc" } }), "mcp_servers.a.url"),
            (json!({ "a": { "url": "http://x", "auth_type": "bearer" } }), "mcp_servers.a.auth_token"),
            (json!({ "a": { "url": "http://x", "auth_token": "a\r\nb: c" } }), "mcp_servers.a.auth_token"),
            (json!({ "a": { "command": "" } }), "mcp_servers.a.command"),
            (json!({ "a": { "url": "http://x", "transport": "carrier pigeon" } }), "streamableHttp"),
        ];
        for (given, named) in cases {
            let error = translated(given.clone()).unwrap_err();
            assert!(error.contains(named), "{given} gave {error}");
        }
    }
}
