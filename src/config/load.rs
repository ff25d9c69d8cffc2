//! From TOML text and environment variables to a [`Config`].

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, SourceFile};
use crate::support::cause::Cause;

const PREFIX: &str = "PILOTLIGHT_";
/// Maximum size of the file: far more than every key with a comment.
const MAX_BYTES: u64 = 1 << 20;
/// Stands between the levels of a key in a variable's name.
const SEPARATOR: &str = "__";
/// Keys of the first level that hold a value, not a table: their variables have no separator.
const TOP_LEVEL: [&str; 2] = ["data_dir", "drain_timeout"];
/// Keys of the first level that are tables. (Variables for children begin with `PILOTLIGHT_SESSION` or
/// `PILOTLIGHT_CHILD` alone.)
const SECTIONS: [&str; 19] = [
    "http",
    "auth",
    "admin",
    "attach",
    "audit",
    "webhooks",
    "cluster",
    "cli",
    "session",
    "restart",
    "permissions",
    "isolation",
    "broker",
    "mcp",
    "workspace",
    "limits",
    "spares",
    "retention",
    "metrics",
];

/// Sections of the server. A configuration file may be shared with a server, so the library alone ignores them.
const SERVER_SECTIONS: [&str; 7] = ["http", "auth", "admin", "attach", "audit", "webhooks", "cluster"];

/// Error in a configuration. The message names the key and the allowed values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: Cause,
    },
    /// The file is no TOML.
    #[error("the configuration {} is not valid TOML: {problem}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// A key is unknown, or its value makes no sense.
    #[error("configuration key `{key}`: {problem}")]
    Key {
        /// The key, with dots between its levels.
        key: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

pub(super) fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut table = path.map_or_else(|| Ok(Table::new()), read)?;
    for (name, value) in environment {
        if let Some(section) = almost_a_key(&name) {
            let problem = format!("levels are separated by two underscores: {PREFIX}{section}{SEPARATOR}…");
            return Err(ConfigError::Key { key: name, problem });
        }
        if let Some(key) = key_of(&name) {
            let value = if is_text(&key) { Value::String(value) } else { parse(&value) };
            set(&mut table, &key, value)?;
        }
    }
    let mut config = config_of(table, if cfg!(feature = "server") { &[] } else { &SERVER_SECTIONS })?;
    config.source = SourceFile(path.map(Path::to_owned));
    Ok(config)
}

fn config_of(mut table: Table, ignored: &[&str]) -> Result<Config, ConfigError> {
    table.retain(|section, _| !ignored.contains(&section));
    let config: Config = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
        let key = error.path().to_string();
        // The values of these may be secrets, and the parser repeats what it does not like.
        let is_secret = key.starts_with("cli.env.") || key.starts_with("cli.args");
        let is_server = key.starts_with("mcp.servers.");
        // The address may hold a secret.
        let is_address = key.starts_with("webhooks.endpoints.") && key.ends_with(".url");
        let problem = match error.into_inner().message().trim() {
            _ if is_secret || is_address => "must be text in quotes".to_owned(),
            problem if is_server && !problem.starts_with("unknown field") => {
                "must be a table with command, args, env or with url, transport (http or sse), headers"
                    .to_owned()
            }
            problem => problem.to_owned(),
        };
        ConfigError::Key { key, problem }
    })?;
    config.validate()?;
    Ok(config)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = text_of(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), source: error.into() })?;
    text.parse::<Table>().map_err(|error| {
        // Not the error as it prints itself: that shows the line, which may hold a secret.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let problem = format!("line {}: {}", before.matches('\n').count() + 1, error.message().trim());
        ConfigError::Syntax { path: path.to_owned(), problem }
    })
}

fn text_of(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {MAX_BYTES} bytes"),
        ));
    }
    Ok(text)
}

/// The levels of the key that a variable names, or `None` if it names none. Other variables with the prefix (markers of
/// children, switches of tests) have no separator and are ignored.
fn key_of(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX)?;
    let lower = rest.to_ascii_lowercase();
    if TOP_LEVEL.contains(&lower.as_str()) {
        return Some(vec![lower]);
    }
    let (section, key) = rest.split_once(SEPARATOR)?;
    let mut levels = vec![section.to_ascii_lowercase()];
    match key.split_once(SEPARATOR) {
        // `mcp.servers` has two levels more: a server's name and its field; its variables and headers have a third.
        // `webhooks.endpoints` has two as well.
        Some((table, entry)) if has_named_tables(&levels, table) => {
            let mut parts = entry.splitn(3, SEPARATOR);
            levels.extend([table.to_ascii_lowercase(), parts.next().unwrap_or_default().to_owned()]);
            levels.extend(parts.next().map(str::to_ascii_lowercase));
            levels.extend(parts.next().map(str::to_owned));
        }
        // The last level of `cli.env` is the name of a variable, whose case matters.
        Some((table, entry)) => levels.extend([table.to_ascii_lowercase(), entry.to_owned()]),
        None => levels.push(key.to_ascii_lowercase()),
    }
    Some(levels)
}

/// Whether the entries of this table are tables with names of the operator.
fn has_named_tables(section: &[String], table: &str) -> bool {
    let named = [("mcp", "servers"), ("webhooks", "endpoints")];
    named.iter().any(|(of, name)| section == [*of] && table.eq_ignore_ascii_case(name))
}

/// The section that a variable names with one underscore where two are needed.
fn almost_a_key(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(PREFIX).filter(|rest| !rest.contains(SEPARATOR))?;
    let (section, key) = rest.split_once('_')?;
    let known = SECTIONS.contains(&section.to_ascii_lowercase().as_str());
    let top_level = TOP_LEVEL.contains(&rest.to_ascii_lowercase().as_str());
    (known && !top_level && !key.is_empty()).then_some(section)
}

fn set(table: &mut Table, key: &[String], value: Value) -> Result<(), ConfigError> {
    let Some((last, parents)) = key.split_last() else { return Ok(()) };
    let mut table = table;
    for parent in parents {
        let entry = table.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| ConfigError::Key {
            key: key.join("."),
            problem: format!("`{parent}` is a value, not a table"),
        })?;
    }
    table.insert(last.clone(), value);
    Ok(())
}

/// Keys whose values are text, whatever it looks like: a variable for the child may be `1`, a model `5`.
fn is_text(key: &[String]) -> bool {
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    matches!(
        key[..],
        ["data_dir"]
            | ["auth", "keys_file"]
            | ["attach", "socket"]
            | ["http", "default_user"]
            | ["isolation", "uids"]
            | ["session", "journal"]
            | ["workspace", "template"]
            | ["broker", "credentials" | "ca_file" | "proxy" | "token_url"]
            | ["cli", "env", _]
            | ["webhooks", "endpoints", _, "url" | "secret_file"]
            | ["mcp", "servers", _, "command" | "url" | "transport"]
            | ["mcp", "servers", _, "env" | "headers", _]
            | [
                "cli",
                "program"
                    | "model"
                    | "setting_sources"
                    | "shim"
                    | "user_env_file"
                    | "slash_commands"
                    | "unknown_version"
            ]
    )
}

/// A variable's text as the TOML value that it is, else as a string: `5`, `true`, `["a"]`, `300s`.
fn parse(text: &str) -> Value {
    #[derive(Deserialize)]
    struct Line {
        value: Value,
    }
    toml::from_str::<Line>(&format!("value = {text}"))
        .map_or_else(|_| Value::String(text.to_owned()), |line| line.value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::*;
    use super::*;

    fn from_env(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        load(None, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn from_toml(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::from_file(file.path())
    }

    #[test]
    fn the_environment_lies_over_the_file() {
        let config = from_env(&[
            ("PILOTLIGHT_DATA_DIR", "/data"),
            ("PILOTLIGHT_SESSION__IDLE_TIMEOUT", "1s"),
            ("PILOTLIGHT_SESSION__TURN_QUEUE", "3"),
            ("PILOTLIGHT_CLI__ENV__Mixed_CASE", "kept=1"),
            ("PILOTLIGHT_CLI__ARGS", "[\"--a\", \"b\"]"),
            ("PILOTLIGHT_TEST_ID", "not ours"),
            ("HOME", "/root"),
        ])
        .unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/data"));
        assert_eq!(config.session.idle_timeout, Duration::from_secs(1));
        assert_eq!(config.session.turn_queue, 3);
        assert_eq!(config.cli.env.get("Mixed_CASE").map(String::as_str), Some("kept=1"));
        assert_eq!(config.cli.args, ["--a", "b"]);
    }

    #[test]
    fn server_sections_are_ignored_without_server() {
        let text = "[http]\nlisten = \"x\"\n[auth]\nany = 1\n[admin]\nany = 1\n[cli]\nprogram = \"sim\"";
        let config = |ignored| config_of(text.parse().unwrap(), ignored);
        assert_eq!(config(&SERVER_SECTIONS).unwrap().cli.program, "sim");
        assert!(config(&[]).is_err(), "they are invalid");
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_listener_may_be_a_port_alone() {
        let config = from_env(&[
            ("PILOTLIGHT_HTTP__LISTEN", "9000"),
            ("PILOTLIGHT_ADMIN__LISTEN", "localhost:9001"),
            ("PILOTLIGHT_HTTP__DEFAULT_USER", "1"),
        ])
        .unwrap();
        assert_eq!(config.http.listen.to_string(), "127.0.0.1:9000");
        assert!(config.admin.listen.ip().is_loopback() && config.admin.listen.port() == 9001);
        assert_eq!(config.http.default_user.as_deref(), Some("1"));
        assert_eq!(from_toml("[http]\nlisten = 9000").unwrap().http.listen.port(), 9000);
    }

    #[test]
    fn durations_are_seconds_or_text() {
        let config =
            from_toml("[session]\nidle_timeout = 0.5\nturn_timeout = \"5m\"\nping_timeout = 2").unwrap();
        assert_eq!(config.session.idle_timeout, Duration::from_millis(500));
        assert_eq!(config.session.turn_timeout, Duration::from_secs(300));
        assert_eq!(config.session.ping_timeout, Duration::from_secs(2));
    }

    #[test]
    fn errors_name_the_key_and_what_is_allowed() {
        let cases = [
            ("[session]\nidle_timeot = 1", "session.idle_timeot", "idle_timeout"),
            ("nonsense = 1", "nonsense", "data_dir"),
            ("[session]\nidle_timeout = \"soon\"", "session.idle_timeout", "\"300s\""),
            ("[session]\nidle_timeout = 0", "session.idle_timeout", "longer than 0"),
            ("[session]\nidle_timeout = -1", "session.idle_timeout", "\"300s\""),
            ("[permissions]\npolicy = \"maybe\"", "permissions.policy", "ask"),
            ("[http]\nlisten = \"here\"", "http.listen", "socket address"),
            ("[http]\nlisten = 70000", "http.listen", "socket address"),
            ("[admin]\nlisten = \"example.org:80\"", "admin.listen", "localhost:PORT"),
            ("[http]\ndefault_user = \"\"", "http.default_user", "1 to 256 bytes"),
            ("[http]\ndefault_user = \"me\"\n[auth]\nkeys_file = \"k\"", "http.default_user", "without keys"),
            ("[http]\ndefault_user = \"me\"\nlisten = \"0.0.0.0:80\"", "http.default_user", "loopback"),
            ("[http]\ncors_origins = [\"https://a.example\"]", "http.cors_origins", "auth.keys_file"),
            ("[http]\ncors_origins = [\"*\"]\n[auth]\nkeys_file = \"k\"", "http.cors_origins", "exact"),
            (
                "[http]\ncors_origins = [\"https://a.example/\"]\n[auth]\nkeys_file = \"k\"",
                "http.cors_origins",
                "exact",
            ),
            ("[http]\ncors_origins = [\"null\"]\n[auth]\nkeys_file = \"k\"", "http.cors_origins", "exact"),
            ("[limits]\nmemory_budget = \"120%\"", "limits.memory_budget", "80%"),
            ("[limits]\nmemory_per_session = 0", "limits.memory_per_session", "80%"),
            ("[limits]\nmax_children = 0", "limits.max_children", "at least 1"),
            ("[limits]\nsessions_per_user = 0", "limits.sessions_per_user", "at least 1"),
            ("[cli]\nprogram = \"\"", "cli.program", "sim"),
            ("[auth]\nkeys_file = \"\"", "auth.keys_file", "path"),
            (
                "[auth]\nkeys_file = \"k\"\nallow_unauthenticated = true",
                "auth.allow_unauthenticated",
                "keys_file",
            ),
            ("[http]\nmax_connections = 0", "http.max_connections", "at least 1"),
            ("[http]\nturns_per_user = 0", "http.turns_per_user", "at least 1"),
            ("data_dir = \"\"", "data_dir", "directory"),
            ("[metrics]\nsample_interval = \"1ns\"", "metrics.sample_interval", "100ms"),
            ("[session]\nping_timeout = \"1ns\"", "session.ping_timeout", "10ms"),
            ("[limits]\nchild_open_files = 3", "limits.child_open_files", "32"),
            ("[cli]\nmodel = \"--x\"", "cli.model", "\"-\""),
            ("[cli]\nargs = [\"--session-id\", \"x\"]", "cli.args", "--session-id"),
            ("[cli]\napi_retries = 11", "cli.api_retries", "at most 10"),
            ("[cli]\nenv_pass = [\"A=B\"]", "cli.env_pass", "name"),
            ("[cli]\nenv = { HOME = \"/x\" }", "cli.env", "HOME"),
            ("[workspace]\ntemplate = \"here\"", "workspace.template", "absolute"),
            ("data_dir = \"/a\"\n[workspace]\ntemplate = \"/a/b\"", "workspace.template", "data_dir"),
            ("[limits]\nworkspace_bytes = 5", "limits.workspace_bytes", "1048576"),
            ("[limits]\nworkspace_files = 0", "limits.workspace_files", "100"),
            ("[limits]\ncpu_per_session = 0.0", "limits.cpu_per_session", "1.5"),
            ("[isolation]\nrungs = [\"moat\"]", "isolation.rungs", "namespaces"),
            (
                "[isolation]\nrungs = [\"seccomp\"]\nrequire = [\"uid\"]",
                "isolation.require",
                "isolation.rungs",
            ),
            ("[isolation]\nuids = \"5\"", "isolation.uids", "1900000000-1900065535"),
            ("[isolation]\nuids = \"0-9\"", "isolation.uids", "1900000000-1900065535"),
            ("[isolation]\nuids = \"9-8\"", "isolation.uids", "1900000000-1900065535"),
            ("[[isolation.mounts]]\npath = \"here\"", "isolation.mounts[0].path", "absolute"),
            ("[[isolation.mounts]]\npath = \"/a/../b\"", "isolation.mounts[0].path", "absolute"),
            ("[[isolation.mounts]]\npath = \"/a\"\nto = \"/proc/1\"", "isolation.mounts[0].to", "/proc"),
            (
                "data_dir = \"/a/b\"\n[[isolation.mounts]]\npath = \"/a\"",
                "isolation.mounts[0].path",
                "data_dir",
            ),
            ("[mcp]\ncallers = \"some\"", "mcp.callers", "service"),
            ("[mcp]\nallow_hosts = [\"https://a.example\"]", "mcp.allow_hosts", "*.example.com"),
            ("[mcp]\nconnect_timeout = 0", "mcp.connect_timeout", "longer than 0"),
            ("[mcp.servers.a]", "mcp.servers.a", "neither a command nor a url"),
            ("[mcp.servers.a]\ncommand = \"x\"\nurl = \"http://h\"", "mcp.servers.a", "one of them"),
            ("[mcp.servers.a]\nurl = \"file:///x\"", "mcp.servers.a.url", "http"),
            ("[mcp.servers.a]\nurl = \"http://h\"\nargs = [\"x\"]", "mcp.servers.a", "with a command"),
            ("[mcp.servers.a]\ncommand = \"x\"\nheaders = { A = \"b\" }", "mcp.servers.a", "with a url"),
            ("[mcp.servers.a]\ncommand = \"x\"\nargs = [\"${A}\"]", "mcp.servers.a", "not expanded"),
            ("[mcp.servers.\"a b\"]\ncommand = \"x\"", "mcp.servers.a b", "letters"),
            ("[mcp.servers.a]\ncomand = \"x\"", "mcp.servers.a", "command"),
        ];
        for (text, key, allowed) in cases {
            let message = from_toml(text).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(allowed), "{text:?} gave {message}");
        }
        assert!(matches!(from_toml("[session"), Err(ConfigError::Syntax { .. })));
        assert!(matches!(Config::from_file("/nowhere/at/all"), Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn text_variable_stays_text_missing_underscore_fails() {
        let config = from_env(&[
            ("PILOTLIGHT_CLI__ENV__FLAG", "1"),
            ("PILOTLIGHT_CLI__ENV__QUOTED", "\"q\""),
            ("PILOTLIGHT_CLI__MODEL", "5"),
            ("PILOTLIGHT_SESSION", "a child's own variable"),
        ])
        .unwrap();
        assert_eq!(config.cli.env.get("FLAG").map(String::as_str), Some("1"));
        assert_eq!(config.cli.env.get("QUOTED").map(String::as_str), Some("\"q\""));
        assert_eq!(config.cli.model.as_deref(), Some("5"));
        let message = from_env(&[("PILOTLIGHT_SESSION_IDLE_TIMEOUT", "1s")]).unwrap_err().to_string();
        assert!(message.contains("PILOTLIGHT_SESSION__"), "{message}");
    }

    #[test]
    fn no_secret_is_printed() {
        let config = from_env(&[("PILOTLIGHT_CLI__ENV__ANTHROPIC_API_KEY", "sk-secret")]).unwrap();
        assert!(!format!("{config:?}").contains("sk-secret"));
        for text in ["[cli.env]\nKEY = s3cret", "[cli.env]\nKEY = \"s3cret", "[cli.env]\nKEY = [\"s3cret\"]"]
        {
            let message = from_toml(text).unwrap_err().to_string();
            assert!(!message.contains("s3cret"), "{message}");
        }
        for text in [
            "env = { A = [\"s3cret\"] }",
            "headers = { A = [\"s3cret\"] }",
            "transport = \"s3cret\"",
            "url = \"s3cret\"",
        ] {
            let message = from_toml(&format!("[mcp.servers.a]\n{text}")).unwrap_err().to_string();
            assert!(message.contains("mcp.servers.a") && !message.contains("s3cret"), "{message}");
        }
        let config = from_env(&[
            ("PILOTLIGHT_MCP__SERVERS__Git-Hub__COMMAND", "s3cret"),
            ("PILOTLIGHT_MCP__SERVERS__Git-Hub__ENV__My__Token", "s3cret"),
            ("PILOTLIGHT_MCP__SERVERS__Git-Hub__ARGS", "[\"s3cret\"]"),
        ])
        .unwrap();
        let server = config.mcp.servers.get("Git-Hub").unwrap();
        assert_eq!(server.env.get("My__Token").map(String::as_str), Some("s3cret"));
        assert_eq!(server.args, ["s3cret"]);
        assert!(!format!("{config:?}").contains("s3cret"));
        let message = from_toml("[cli.env]\nKEY = 5533").unwrap_err().to_string();
        assert!(message.contains("cli.env.KEY") && !message.contains("5533"), "{message}");
    }
}
