//! The value of `--mcp-config`: MCP servers in files or JSON texts, with the errors of claude.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::args::{Refusal, refuse};
use crate::workspace::Server;

/// The MCP servers of the files or JSON texts.
pub(crate) fn servers(configs: &[String]) -> Result<Vec<Server>, Refusal> {
    let mut found = Vec::new();
    for config in configs {
        let value = match serde_json::from_str::<Value>(config) {
            Ok(value) => value,
            Err(_) => read_config(Path::new(config))?,
        };
        let servers = value.get("mcpServers").and_then(Value::as_object);
        let Some(servers) = servers else {
            return refuse(
                "Error: Invalid MCP configuration:\nmcpServers: Does not adhere to MCP server configuration schema",
            );
        };
        found.extend(servers.iter().map(|(name, config)| Server::new(name.clone(), config.clone())));
    }
    Ok(found)
}

fn read_config(path: &Path) -> Result<Value, Refusal> {
    let full: PathBuf = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let Ok(text) = std::fs::read_to_string(path) else {
        return refuse(format!(
            "Error: Invalid MCP configuration:\nMCP config file not found: {}",
            full.display()
        ));
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(value),
        Err(_) => refuse(format!(
            "Error: Invalid MCP configuration:\nMCP config is not a valid JSON: {}",
            full.display()
        )),
    }
}
