//! What the files of the working directory, and the servers of the command line, make this program start.
//!
//! As with the real one nobody is asked: `.mcp.json` starts programs, and `.claude/settings.json` sets variables of
//! this process, runs hooks and a helper for the key, unless the flags switch them off. Servers are started and kept,
//! but never spoken with, so that they stay `pending`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::args::Args;

/// A server of the Model Context Protocol.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    /// What it was configured with.
    config: Value,
    /// Over the protocol, and not by a file or the command line.
    is_given: bool,
    child: Option<Child>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) servers: Vec<Server>,
    /// Variables that settings lay over the environment.
    pub(crate) env: BTreeMap<String, String>,
    key_helper: Option<String>,
}

impl Server {
    pub(crate) fn new(name: String, config: Value) -> Self {
        Self { name, config, is_given: false, child: None }
    }

    /// Asks it to end.
    fn leave(&self) {
        let pid = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT).ok();
        }
    }

    /// In the words of the real one.
    pub(crate) fn status(&self) -> &'static str {
        if self.child.is_some() { "pending" } else { "failed" }
    }

    /// Starts it in our own process group and session.
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

impl Surroundings {
    /// Looks at the working directory and starts what is to be started. A hook delays everything else.
    pub(crate) fn enter(args: &mut Args) -> Self {
        let mut all = Self { servers: std::mem::take(&mut args.mcp_servers), ..Self::default() };
        if args.obeys_project() {
            if !args.strict_mcp_config {
                let file = read(".mcp.json");
                let servers = file.get("mcpServers").and_then(Value::as_object);
                let found = servers.into_iter().flatten();
                all.servers.extend(found.map(|(name, config)| Server::new(name.clone(), config.clone())));
            }
            all.obey(&read(".claude/settings.json"));
        }
        let env = all.env.clone();
        all.servers.iter_mut().for_each(|server| server.start(&env));
        all
    }

    fn obey(&mut self, settings: &Value) {
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

    /// Takes these servers in place of all that were given to this process; says which are gone. Those of files stay.
    pub(crate) fn set_servers(&mut self, servers: &serde_json::Map<String, Value>) -> Vec<String> {
        let (given, others) =
            std::mem::take(&mut self.servers).into_iter().partition(|server| server.is_given);
        self.servers = others;
        let removed = Vec::from_iter(given.iter().map(|server: &Server| server.name.clone()));
        given.iter().for_each(Server::leave);
        for (name, config) in servers {
            let mut server = Server { is_given: true, ..Server::new(name.clone(), config.clone()) };
            server.start(&self.env);
            self.servers.push(server);
        }
        removed
    }

    /// Before the first request to the API the helper is asked for a key.
    pub(crate) fn before_first_request(&mut self) {
        if let Some(helper) = self.key_helper.take() {
            self.shell(&helper);
        }
    }

    fn shell(&self, command: &str) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]).envs(&self.env);
        // That it fails is told nowhere.
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
    }

    /// What a variable is to this process.
    pub(crate) fn variable(&self, name: &str) -> String {
        self.env.get(name).cloned().or_else(|| std::env::var(name).ok()).unwrap_or_default()
    }

    /// Before an orderly end.
    pub(crate) fn leave(&self) {
        self.servers.iter().for_each(Server::leave);
    }
}

/// A JSON file of the working directory; null if there is none.
fn read(name: &str) -> Value {
    let bytes = std::fs::read(Path::new(name)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
