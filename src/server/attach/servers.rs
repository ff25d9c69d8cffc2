//! MCP servers and directories that a client brings. They are judged as those of requests over HTTP.

use std::path::{Component, Path};

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use crate::config::Mcp;
use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::server::dialect::RequestedServers;
use crate::server::turns::mcp::choose;

/// Fields of a definition in the form of the SDKs.
const FIELDS: [&str; 6] = ["type", "command", "args", "env", "url", "headers"];
/// Header whose token a definition may hold.
const AUTHORIZATION: &str = "authorization";
const BEARER: &str = "Bearer ";

/// The definitions, if this caller may bring some (`mcp.callers`, `mcp.allow_hosts`).
pub(super) fn accepted(
    servers: Map<String, Value>,
    caller: &Caller,
    mcp: &Mcp,
) -> Result<Map<String, Value>, ApiError> {
    if servers.is_empty() {
        return Ok(servers);
    }
    let accept = || {
        let servers = servers.into_iter().map(|(name, server)| Ok((name, in_our_form(server)?)));
        let servers: Map<_, _> = servers.collect::<Result<_, ApiError>>()?;
        let requested = RequestedServers::read(Some(Value::Object(servers)))?;
        let chosen = choose(requested, &HeaderMap::new(), caller, mcp)?;
        Ok(chosen.map(|servers| servers.resolve(mcp)).unwrap_or_default())
    };
    accept().map_err(|error: ApiError| {
        ApiError::invalid("mcp_not_allowed", format!("--mcp-config: {}", error.message()))
    })
}

/// A definition as requests over HTTP have it: a token in the place of headers. What cannot be kept is refused.
fn in_our_form(mut server: Value) -> Result<Value, ApiError> {
    let refused = |problem: &str| Err(ApiError::invalid("invalid_body", problem));
    let Some(fields) = server.as_object_mut() else { return refused("a server must be an object") };
    if fields.keys().any(|field| !FIELDS.contains(&field.as_str())) {
        return refused("a server has a field that the server does not pass on");
    }
    let headers = match fields.remove("headers") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(headers)) => headers,
        Some(_) => return refused("headers must be an object"),
    };
    for (name, value) in headers {
        let token = value.as_str().and_then(|value| value.strip_prefix(BEARER));
        match token {
            Some(token) if name.eq_ignore_ascii_case(AUTHORIZATION) => {
                fields.insert("auth_token".to_owned(), token.into());
            }
            _ => return refused("of headers, only Authorization with a bearer token is passed on"),
        }
    }
    Ok(server)
}

/// Whether a directory lies in the working directory of the session, which its child may use anyway.
pub(super) fn is_inside(directory: &str, work: &Path) -> bool {
    let path = Path::new(directory);
    let inner = if path.is_absolute() { path.strip_prefix(work).ok() } else { Some(path) };
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    inner.is_some_and(|inner| inner.components().all(is_plain))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mcp(callers: &str) -> Mcp {
        toml::from_str(&format!("callers = \"{callers}\"\nallow_hosts = [\"mcp.example.com\"]")).unwrap()
    }

    fn accept(servers: Value, callers: &str) -> Result<Value, String> {
        let servers = servers.as_object().unwrap().clone();
        let accepted = accepted(servers, &Caller::trusted(true, None), &mcp(callers));
        accepted.map(Value::Object).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn definitions_are_taken_where_callers_may_bring_some() {
        let program = json!({ "x": { "command": "serve", "args": ["a"], "env": { "A": "b" } } });
        let refused = accept(program.clone(), "none").unwrap_err();
        assert!(refused.starts_with("--mcp-config: ") && refused.contains("mcp.callers"), "{refused}");
        assert!(accept(program.clone(), "service").is_err());
        let expected =
            json!({ "x": { "type": "stdio", "command": "serve", "args": ["a"], "env": { "A": "b" } } });
        assert_eq!(accept(program, "all").unwrap(), expected);
        let address = json!({ "type": "http", "url": "https://mcp.example.com/", "headers": { "authorization": "Bearer t" } });
        let expected = json!({ "type": "http", "url": "https://mcp.example.com/", "headers": { "Authorization": "Bearer t" } });
        assert_eq!(accept(json!({ "x": address }), "all").unwrap(), json!({ "x": expected }));
        assert_eq!(accept(json!({}), "none").unwrap(), json!({}));
    }

    #[test]
    fn definitions_that_cannot_be_kept_are_refused() {
        for server in [
            json!({ "type": "http", "url": "https://other.example.com/" }),
            json!({ "type": "http", "url": "https://mcp.example.com/", "headers": { "x-key": "k" } }),
            json!({ "type": "http", "url": "https://mcp.example.com/", "headersHelper": "id" }),
            json!({ "command": "serve", "env": { "A": "${ANTHROPIC_API_KEY}" } }),
            json!({ "type": "ws", "url": "wss://mcp.example.com/" }),
            json!("serve"),
        ] {
            let refused = accept(json!({ "x": server }), "all").unwrap_err();
            assert!(!refused.contains("ANTHROPIC"), "{refused}");
        }
    }

    #[test]
    fn directories_of_others_are_outside() {
        let work = Path::new("/data/sessions/a/work");
        for inside in [".", "src", "src/deep/", "./src", "/data/sessions/a/work", "/data/sessions/a/work/src"]
        {
            assert!(is_inside(inside, work), "{inside}");
        }
        for outside in
            ["/", "..", "src/../..", "/data/sessions/a", "/data/sessions/a/work/../home", "/data/sessions/ab"]
        {
            assert!(!is_inside(outside, work), "{outside}");
        }
    }
}
