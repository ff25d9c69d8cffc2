//! Configuration of the working directory, and MCP servers.
//!
//! As in claude, no permission is needed: `.mcp.json` starts programs, and `.claude/settings.json` sets variables, runs
//! hooks and a key helper, unless flags disable them. The simulation starts servers but does not connect to them, so they
//! stay `pending`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::args::Args;

/// A server of the Model Context Protocol.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// The configuration.
    config: Value,
    /// Set by a control request instead of a file or the command line.
    is_given: bool,
    child: Option<Child>,
}

/// Configuration of the working directory and running servers.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    pub(crate) servers: Vec<Server>,
    /// Environment variables from settings.
    pub(crate) env: BTreeMap<String, String>,
    key_helper: Option<String>,
}

impl Server {
    pub(crate) fn new(name: String, config: Value) -> Self {
        Self { name, config, is_given: false, child: None }
    }

    /// Sends SIGINT.
    fn leave(&self) {
        let pid = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT).ok();
        }
    }

    /// Whether it is in the process that started this one.
    pub(crate) fn is_in_host(&self) -> bool {
        self.config.get("type").and_then(Value::as_str) == Some("sdk")
    }

    /// The status as claude names it.
    pub(crate) fn status(&self) -> &'static str {
        if self.child.is_some() || self.is_in_host() { "pending" } else { "failed" }
    }

    /// Starts the server in this process's group and session.
    fn start(&mut self, env: &BTreeMap<String, String>) {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let Some(program) = self.config.get("command").and_then(text) else { return };
        let arguments = self.config.get("args").and_then(Value::as_array);
        let variables = self.config.get("env").and_then(Value::as_object);
        let mut command = Command::new(program);
        command.args(arguments.into_iter().flatten().filter_map(text)).envs(env);
        command.envs(
            variables.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), text(value)?))),
        );
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = piped.spawn().ok();
    }
}

impl Workspace {
    /// Loads the configuration and starts servers. A hook delays the start.
    pub(crate) fn load(args: &mut Args) -> Self {
        let mut all = Self { servers: std::mem::take(&mut args.mcp_servers), ..Self::default() };
        if args.uses_project_settings() {
            if !args.strict_mcp_config {
                let file = read(".mcp.json");
                let servers = file.get("mcpServers").and_then(Value::as_object);
                let found = servers.into_iter().flatten();
                all.servers.extend(found.map(|(name, config)| Server::new(name.clone(), config.clone())));
            }
            all.apply_settings(&read(".claude/settings.json"));
        }
        let env = all.env.clone();
        all.servers.iter_mut().for_each(|server| server.start(&env));
        all
    }

    fn apply_settings(&mut self, settings: &Value) {
        for (name, value) in settings.get("env").and_then(Value::as_object).into_iter().flatten() {
            self.env.extend(value.as_str().map(|value| (name.clone(), value.to_owned())));
        }
        self.key_helper = settings.get("apiKeyHelper").and_then(Value::as_str).map(str::to_owned);
        let list = |value: &Value, name: &str| {
            value.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let hooks = settings.get("hooks").unwrap_or(&Value::Null);
        for hook in list(hooks, "SessionStart").iter().flat_map(|matched| list(matched, "hooks")) {
            self.shell(hook.get("command").and_then(Value::as_str).unwrap_or_default());
        }
    }

    /// Replaces the servers of control requests; returns the names of the removed ones. Servers of files stay.
    pub(crate) fn set_servers(&mut self, servers: &serde_json::Map<String, Value>) -> Vec<String> {
        let (given, others) =
            std::mem::take(&mut self.servers).into_iter().partition(|server| server.is_given);
        self.servers = others;
        let removed = Vec::from_iter(given.iter().map(|server: &Server| server.name.clone()));
        given.iter().for_each(Server::leave);
        let is_of_host = |config: &Value| config.get("type").is_some_and(|kind| kind == "sdk");
        for (name, config) in servers.iter().filter(|(_, config)| !is_of_host(config)) {
            let mut server = Server { is_given: true, ..Server::new(name.clone(), config.clone()) };
            server.start(&self.env);
            self.servers.push(server);
        }
        removed
    }

    /// Runs the key helper, before the first API request.
    pub(crate) fn before_first_request(&mut self) {
        if let Some(helper) = self.key_helper.take() {
            self.shell(&helper);
        }
    }

    fn shell(&self, command: &str) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).envs(&self.env);
        // A failure is not reported, as in claude.
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }

    /// Value of an environment variable, settings included.
    pub(crate) fn variable(&self, name: &str) -> String {
        self.env.get(name).cloned().or_else(|| std::env::var(name).ok()).unwrap_or_default()
    }

    /// Stops the servers before an orderly exit.
    pub(crate) fn leave(&self) {
        self.servers.iter().for_each(Server::leave);
    }
}

/// A JSON file of the working directory; null without one.
fn read(name: &str) -> Value {
    let bytes = std::fs::read(Path::new(name)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
