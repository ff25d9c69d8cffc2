//! Definitions of MCP servers: forms, refusals, expansion.

use super::*;

fn mcp() -> Mcp {
    toml::from_str("allow_hosts = [\"h\", \"x\", \"127.0.0.1:9\"]").unwrap()
}

fn definitions(field: Value) -> Result<Value, String> {
    let shown = |error| format!("{error:?}");
    let request = RequestedServers::read(Some(field)).map_err(shown)?.unwrap();
    request.definitions(&mcp()).map(Value::Object).map_err(shown)
}

#[test]
fn commands_and_urls_get_the_clis_form() {
    let given = json!({
        "files": { "command": "npx", "args": ["-y", "files"], "env": { "A": "b" }, "unknown": 1 },
        "far": { "url": "https://h/sse", "transport": "sse", "auth_type": "jwt", "auth_token": "t" },
        "near": { "url": "http://H", "transport": "streamableHttp", "auth_type": null },
    });
    let expected = json!({
        "files": { "type": "stdio", "command": "npx", "args": ["-y", "files"], "env": { "A": "b" } },
        "far": { "type": "sse", "url": "https://h/sse", "headers": { "Authorization": "Bearer t" } },
        "near": { "type": "http", "url": "http://h/" },
    });
    assert_eq!(definitions(given), Ok(expected));
    assert_eq!(definitions(json!({})), Ok(json!({})));
    let of_the_api = json!([
        { "type": "url", "url": "https://h/mcp", "name": "far", "authorization_token": "t" },
    ]);
    let expected = json!({
        "far": { "type": "http", "url": "https://h/mcp", "headers": { "Authorization": "Bearer t" } },
    });
    assert_eq!(definitions(of_the_api), Ok(expected));
}

#[test]
fn list_of_names_defines_nothing() {
    let request = RequestedServers::read(Some(json!(["a", "b"]))).unwrap().unwrap();
    assert!(request.names == ["a", "b"] && !request.has_definitions());
    assert_eq!(RequestedServers::read(Some(Value::Null)).unwrap(), None);
    assert_eq!(RequestedServers::read(None).unwrap(), None);
    assert!(RequestedServers::read(Some(json!("a"))).is_err());
}

#[test]
fn long_definition_is_refused() {
    let with = |length: usize| json!({ "a": { "command": "y", "args": ["x".repeat(length)] } });
    assert!(definitions(with(MAX_DEFINITION / 2)).is_ok());
    let error = definitions(with(MAX_DEFINITION)).unwrap_err();
    assert!(error.contains("mcp_server_too_large"), "{error}");
}

#[test]
fn invalid_definitions_are_named() {
    let cases = [
        (json!({ "a": {} }), "mcp_servers.a: has neither"),
        (json!({ "a": { "url": "http://x", "command": "y" } }), "mcp_servers.a: has a command and a url"),
        (json!({ "a": { "url": "file:///etc" } }), "mcp_servers.a.url"),
        (json!({ "a": { "url": "http://u:p@x" } }), "mcp_servers.a.url"),
        (json!({ "a": { "url": "http://x", "auth_type": "bearer" } }), "mcp_servers.a.auth_token"),
        (json!({ "a": { "url": "http://x", "auth_token": "a\r\nb: c" } }), "mcp_servers.a.auth_token"),
        (json!({ "a": { "command": "" } }), "mcp_servers.a.command"),
        (json!({ "a": { "command": "a\0b" } }), "mcp_servers.a"),
        (json!({ "a": { "args": [1] } }), "mcp_servers.a.args[0]"),
        (json!({ "a": ["x"] }), "mcp_servers.a"),
        (json!({ "a": { "url": "http://x", "transport": "carrier pigeon" } }), "streamableHttp"),
        (json!({ "a b": { "command": "y" } }), "mcp_servers.a b"),
        (json!({ "__proto__": { "command": "y" } }), "name must be"),
        (json!([{ "command": "y" }]), "mcp_servers[0]: needs a `name`"),
        (json!([{ "name": "a", "command": "y" }, { "name": "a", "command": "z" }]), "mcp_servers[1]"),
        (json!([7]), "mcp_servers[0]"),
        (json!({ "a": { "url": "http://x", "tool_configuration": { "enabled": false } } }), "tool_conf"),
        (json!({ "a": { "url": "http://y" } }), "mcp_host_not_allowed"),
        (json!({ "a": { "url": "http://127.0.0.1" } }), "mcp_host_not_allowed"),
    ];
    for (given, named) in cases {
        let error = definitions(given.clone()).unwrap_err();
        assert!(error.contains(named), "{given} gave {error}");
    }
}

#[test]
fn expansion_is_refused_wherever_it_hides() {
    for hiding in [
        json!({ "${A}": { "command": "y" } }),
        json!({ "a": { "command": "${A}" } }),
        json!({ "a": { "command": "y", "args": ["${A}"] } }),
        json!({ "a": { "command": "y", "env": { "${A}": "b" } } }),
        json!({ "a": { "command": "y", "env": { "B": "${A}" } } }),
        json!({ "a": { "url": "http://x/${A}" } }),
        json!({ "a": { "url": "http://x", "auth_token": "${A}" } }),
        json!({ "a": { "url": "http://x", "headers": { "B": "${A}" } } }),
        json!([{ "name": "${A}", "command": "y" }]),
        json!([{ "type": "url", "name": "a", "url": "http://x", "authorization_token": "${A}" }]),
    ] {
        let error = definitions(hiding.clone()).unwrap_err();
        assert!(error.contains("nothing is expanded"), "{hiding} gave {error}");
    }
}
