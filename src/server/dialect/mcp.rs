//! MCP servers named or defined by requests, in the CLI's own form.
//!
//! [`crate::server::turns::mcp`] decides first whether the caller may send definitions.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use super::message::Object;
use crate::config::{EXPANSION, Mcp, has_expansion, is_server_name};
use crate::server::api::error::ApiError;

/// Field with names or definitions.
pub(crate) const FIELD: &str = "mcp_servers";
/// Maximum servers per session: each is a process or connection of the child.
const MAX_SERVERS: usize = 64;

/// Longest definition as JSON, in bytes: a session keeps those of all its servers in memory and in its record.
const MAX_DEFINITION: usize = 16 << 10;

/// The field `mcp_servers` of a body, not validated yet.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct RequestedServers {
    pub(crate) names: Vec<String>,
    /// Definitions: position in the body, name outside the definition if any, content.
    definitions: Vec<(String, Option<String>, Value)>,
}

#[derive(Deserialize)]
struct Server {
    /// Name within the definition, in lists of the Messages API.
    name: Option<String>,
    r#type: Option<Kind>,
    command: Option<String>,
    args: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    url: Option<String>,
    transport: Option<Transport>,
    auth_type: Option<AuthType>,
    auth_token: Option<String>,
    authorization_token: Option<String>,
    tool_configuration: Option<Value>,
}

/// The Messages API has one type.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Url,
    Stdio,
    Sse,
    Http,
}

#[derive(Deserialize, Clone, Copy)]
enum Transport {
    #[serde(rename = "sse")]
    Sse,
    #[serde(rename = "streamableHttp")]
    StreamableHttp,
}

/// All types are a bearer token on the wire.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum AuthType {
    Jwt,
    Oauth,
    Bearer,
}

impl RequestedServers {
    /// Parses the field: a list of names and definitions, or an object of definitions by name. Empty if absent or null.
    pub(crate) fn read(field: Option<Value>) -> Result<Option<Self>, ApiError> {
        let mut request = Self::default();
        match field {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(all)) => {
                request.definitions.extend(
                    all.into_iter().map(|(name, definition)| {
                        (format!("{FIELD}.{}", shown(&name)), Some(name), definition)
                    }),
                );
            }
            Some(Value::Array(all)) => {
                for (index, one) in all.into_iter().enumerate() {
                    match one {
                        Value::String(name) => request.names.push(name),
                        definition => {
                            request.definitions.push((format!("{FIELD}[{index}]"), None, definition));
                        }
                    }
                }
            }
            Some(_) => {
                let problem = "must be a list of names of configured servers, or definitions by name";
                return Err(ApiError::field(FIELD, problem));
            }
        }
        Ok(Some(request))
    }

    pub(crate) fn has_definitions(&self) -> bool {
        !self.definitions.is_empty()
    }

    /// Definitions in the CLI's own form.
    pub(crate) fn definitions(self, mcp: &Mcp) -> Result<Map<String, Value>, ApiError> {
        if self.definitions.len() > MAX_SERVERS {
            let problem = format_args!("at most {MAX_SERVERS} servers are accepted");
            return Err(ApiError::field(FIELD, problem));
        }
        let mut all = Map::new();
        for (at, name, definition) in self.definitions {
            if name.as_deref().is_some_and(|name| name.contains(EXPANSION)) || has_expansion(&definition) {
                let problem = "must not hold \"${\": nothing is expanded in a definition";
                return Err(ApiError::field(at, problem));
            }
            let Object(server): Object<Server> = serde_path_to_error::deserialize(definition)
                .map_err(|error| super::message::wrong_part(&at, &error))?;
            let Some(name) = name.or_else(|| server.name.clone()) else {
                return Err(ApiError::field(at, "needs a `name`"));
            };
            if !is_server_name(&name) {
                let problem = "a server's name must be 1 to 64 letters, digits, \"-\" and \"_\"";
                return Err(ApiError::field(at, problem));
            }
            let definition = one(server, &at, mcp)?;
            check_length(definition.to_string().len())?;
            if all.insert(name, definition).is_some() {
                return Err(ApiError::field(at, "has the name of another server"));
            }
        }
        Ok(all)
    }
}

/// Refuses a definition of this length in bytes if it is too long.
pub(crate) fn check_length(length: usize) -> Result<(), ApiError> {
    if length <= MAX_DEFINITION {
        return Ok(());
    }
    let message = format!("a definition of an MCP server has at most {MAX_DEFINITION} bytes");
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "mcp_server_too_large", message))
}

/// The definition in the CLI's own form; `at` is its position in the body.
fn one(server: Server, at: &str, mcp: &Mcp) -> Result<Value, ApiError> {
    let wrong = |field: &str, problem: &str| Err(ApiError::field(format_args!("{at}{field}"), problem));
    if server.tool_configuration.is_some_and(|restriction| !restriction.is_null()) {
        return wrong(".tool_configuration", "has no counterpart here; leave it out");
    }
    let token = server.auth_token.or(server.authorization_token);
    match (server.command, server.url) {
        (Some(command), None) => {
            if command.is_empty() {
                return wrong(".command", "must not be empty");
            }
            if server.r#type.is_some_and(|kind| kind != Kind::Stdio) {
                return wrong(".type", "must be stdio for a server with a command");
            }
            if token.is_some() || server.auth_type.is_some() {
                return wrong(".auth_token", "is for servers with a url; give a command its secrets in env");
            }
            let (args, env) = (server.args.unwrap_or_default(), server.env.unwrap_or_default());
            let texts = args.iter().chain(env.keys()).chain(env.values()).chain([&command]);
            if texts.into_iter().any(|text| text.contains('\0')) {
                return wrong("", "must not hold a NUL character");
            }
            Ok(json!({ "type": "stdio", "command": command, "args": args, "env": env }))
        }
        (None, Some(url)) => {
            let Some(url) = Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
            else {
                return wrong(".url", "must be an address that begins with http:// or https://");
            };
            if !url.username().is_empty() || url.password().is_some() {
                return wrong(".url", "must not hold a user name or password; give a token in auth_token");
            }
            if !mcp.allows_host(&url) {
                let problem =
                    "its host and port are not among those that the operator allows (mcp.allow_hosts)";
                let message = format!("{at}.url: {problem}");
                return Err(ApiError::new(StatusCode::FORBIDDEN, "mcp_host_not_allowed", message));
            }
            let kind = match (server.r#type, server.transport) {
                (Some(Kind::Stdio), _) => {
                    return wrong(".type", "must be url, http or sse for a server with a url");
                }
                (Some(Kind::Http), None) | (_, Some(Transport::StreamableHttp)) => "http",
                // The Messages API detects the transport; its servers use the newer one.
                (Some(Kind::Url), None) => "http",
                (Some(Kind::Sse) | None, None) | (_, Some(Transport::Sse)) => "sse",
            };
            // Normalised, so that the CLI reads the same URL.
            let mut translated = json!({ "type": kind, "url": url.as_str() });
            match (server.auth_type, token) {
                (None | Some(AuthType::Jwt | AuthType::Oauth | AuthType::Bearer), Some(token)) => {
                    if token.is_empty() || !token.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                        return wrong(".auth_token", "must be printable ASCII and not empty");
                    }
                    translated["headers"] = json!({ "Authorization": format!("Bearer {token}") });
                }
                (Some(_), None) => return wrong(".auth_token", "is missing, but auth_type is given"),
                (None, None) => {}
            }
            Ok(translated)
        }
        (Some(_), Some(_)) => wrong("", "has a command and a url; give one of them"),
        (None, None) => wrong("", "has neither a command nor a url"),
    }
}

/// A name, safe to repeat in a refusal.
fn shown(name: &str) -> String {
    const LONGEST: usize = 64;
    name.chars().take(LONGEST).map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests;
