//! Selects the MCP servers of a request: configured ones by name, and its own definitions where the operator allows
//! them for this kind of caller. Pure.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, StatusCode};

use crate::config::Mcp;
use crate::server::api::error::ApiError;
use crate::server::auth::caller::Caller;
use crate::server::dialect::{MCP_FIELD, RequestedServers};
use crate::turn::McpServers;

/// Header with names of configured servers, in all dialects.
pub(crate) const MCP_HEADER: &str = "x-pilotlight-mcp";

/// Servers of body and header; `None` if neither names any.
pub(crate) fn choose(
    requested: Option<RequestedServers>,
    headers: &HeaderMap,
    caller: &Caller,
    mcp: &Mcp,
) -> Result<Option<McpServers>, ApiError> {
    let of_header = named(headers)?;
    let of_key = caller.limits().mcp.as_ref();
    if requested.is_none() && of_header.is_none() {
        // Servers of a former request may have been named with another key.
        return Ok(of_key.map(|_| McpServers::default()));
    }
    let mut requested = requested.unwrap_or_default();
    let sender = caller.sender();
    if requested.has_definitions() && (of_key.is_some() || !sender.may_define(mcp.callers)) {
        return Err(not_allowed());
    }
    let of_body = std::mem::take(&mut requested.names).into_iter().map(|name| (MCP_FIELD, name));
    let of_header = of_header.unwrap_or_default().into_iter().map(|name| (MCP_HEADER, name));
    let mut names = BTreeSet::new();
    for (source, name) in of_body.chain(of_header) {
        if of_key.is_some_and(|allowed| !allowed.contains(&name)) {
            let message = format!("{source}: names a server that this key may not use");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "mcp_server_not_allowed", message));
        }
        if !mcp.servers.contains_key(&name) {
            // The message reveals neither the name, which may be anything, nor the configured ones.
            let message = format!("{source}: names a server that is not configured ([mcp.servers])");
            return Err(ApiError::invalid("unknown_mcp_server", message));
        }
        names.insert(name);
    }
    let definitions = requested.definitions(mcp)?;
    if let Some(name) = names.iter().find(|name| definitions.contains_key(*name)) {
        return Err(ApiError::field(MCP_FIELD, format_args!("{name} is named and defined as well")));
    }
    Ok(Some(McpServers::sent(names, definitions, sender)))
}

fn not_allowed() -> ApiError {
    let message = format!(
        "{MCP_FIELD}: definitions of MCP servers are not taken from callers of this kind; name servers that the \
         operator has configured ({MCP_FIELD} as a list of names, or the header {MCP_HEADER}), or ask the operator to \
         allow definitions (mcp.callers)"
    );
    ApiError::new(StatusCode::FORBIDDEN, "mcp_not_allowed", message)
}

/// Names in the header, which may repeat; an empty value selects none.
fn named(headers: &HeaderMap) -> Result<Option<Vec<String>>, ApiError> {
    let mut names = None;
    for value in headers.get_all(MCP_HEADER) {
        let Ok(text) = value.to_str() else {
            return Err(ApiError::invalid("invalid_header", format!("{MCP_HEADER} must be names in ASCII")));
        };
        let listed = text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
        names.get_or_insert_with(Vec::new).extend(listed);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::model::ids::UserId;
    use crate::server::auth::keys::{Entry, KeyLimits, Role};

    fn mcp(callers: &str) -> Mcp {
        toml::from_str(&format!(
            "callers = \"{callers}\"\n[servers.a]\ncommand = \"x\"\n[servers.b]\ncommand = \"y\""
        ))
        .unwrap()
    }

    fn caller(role: Option<Role>) -> Caller {
        match role {
            Some(role) => {
                let key = Entry::new("id".into(), [0; 32], role, None, KeyLimits::default());
                Caller::of_key(Arc::new(key), None)
            }
            None => Caller::trusted(true, None),
        }
    }

    fn chosen(
        field: Value,
        header: &[&'static str],
        role: Option<Role>,
        callers: &str,
    ) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        for value in header {
            headers.append(MCP_HEADER, value.parse().unwrap());
        }
        let asked = RequestedServers::read(Some(field)).unwrap();
        match choose(asked, &headers, &caller(role), &mcp(callers)) {
            Ok(None) => Ok(None),
            Ok(Some(servers)) => {
                let names: Vec<_> = servers.resolve(&mcp(callers)).keys().cloned().collect();
                Ok(Some(names.join(",")))
            }
            Err(error) => Err(error.code()),
        }
    }

    #[test]
    fn definition_is_taken_from_allowed_callers_only() {
        let user = || Some(Role::User(UserId::new("u").unwrap()));
        for (role, allowed) in
            [(user(), ["all"].as_slice()), (None, &["all"]), (Some(Role::Service), &["service", "all"])]
        {
            for callers in ["none", "service", "all"] {
                let expected = if allowed.contains(&callers) {
                    Ok(Some("c".to_owned()))
                } else {
                    Err("mcp_not_allowed")
                };
                // In every form, valid or not.
                let by_name = json!({ "c": { "command": "x" } });
                let listed = json!([{ "name": "c", "command": "x" }]);
                for field in [by_name, listed] {
                    assert_eq!(chosen(field, &[], role.clone(), callers), expected, "{role:?} {callers}");
                }
                for field in [json!([7]), json!({ "${A}": 7 })] {
                    let refused = chosen(field, &[], role.clone(), callers).unwrap_err();
                    let code = if expected.is_ok() { "invalid_body" } else { "mcp_not_allowed" };
                    assert_eq!(refused, code, "{role:?} {callers}");
                }
            }
        }
    }

    #[test]
    fn names_come_from_body_and_header() {
        let none = || json!(null);
        let table = [
            (none(), &[][..], Ok(None)),
            (json!([]), &[], Ok(Some(""))),
            (json!({}), &[], Ok(Some(""))),
            (none(), &[""], Ok(Some(""))),
            (json!(["a"]), &[], Ok(Some("a"))),
            (none(), &["a, b"], Ok(Some("a,b"))),
            (none(), &["a", "b,a"], Ok(Some("a,b"))),
            (json!(["a"]), &["b"], Ok(Some("a,b"))),
            (json!(["a", "c"]), &[], Err("unknown_mcp_server")),
            (none(), &["A"], Err("unknown_mcp_server")),
            (none(), &["a b"], Err("unknown_mcp_server")),
        ];
        for (field, header, expected) in table {
            let shown = format!("{field} {header:?}");
            assert_eq!(
                chosen(field, header, None, "none"),
                expected.map(|it| it.map(str::to_owned)),
                "{shown}"
            );
        }
        let both = json!(["a", { "name": "a", "command": "x" }]);
        assert_eq!(chosen(both, &[], None, "all"), Err("invalid_body"));
    }
}
