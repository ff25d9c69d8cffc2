//! Section `cli`: the program to run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

section! {
    /// The CLI to run.
    pub struct CliConfig {
        /// `claude` (looked up in PATH), `sim` (the built-in simulation) or a path.
        pub program: String = "claude".to_owned(),
        /// Additional arguments, after the flags of pilotlight itself.
        pub args: Vec<String> = Vec::new(),
        /// Environment variables of the child. It has no others, except those of [`CliConfig::env_pass`].
        pub env: BTreeMap<String, String> = BTreeMap::new(),
        /// File (mode 0600) with variables of single users, which override [`CliConfig::env`]: a table per user, such as
        /// `["alice"]` with `ANTHROPIC_API_KEY = "…"`. Read at each start of a child.
        pub user_env_file: Option<PathBuf> = None,
        /// Names of variables passed on from the environment of this process. The defaults hold no keys or tokens.
        pub env_pass: Vec<String> = PASSED.map(str::to_owned).to_vec(),
        /// Path of the shim. Default: beside this program.
        pub shim: Option<PathBuf> = None,
        /// Model of new conversations. Default: the CLI's own default.
        pub model: Option<String> = None,
        /// Streams partial messages. Default true.
        pub partial_messages: bool = true,
        /// Settings files that the CLI reads (`--setting-sources`). Default none: a file in the workspace could start programs
        /// and redirect the API traffic with its key.
        pub setting_sources: String = String::new(),
        /// Restricts MCP servers to those that pilotlight configures (`--strict-mcp-config`). Default true.
        pub strict_mcp_config: bool = true,
        /// Allows tools to continue in the background, and to start turns of their own when they end. Default false.
        pub background_tasks: bool = false,
        /// Expands mentions in prompts (`@path`, `@dir/`, `@server:uri`): the CLI then gives the model any file that the child
        /// can read, without a tool and without a permission. Default false. Takes precedence over [`CliConfig::env`].
        pub attachments: bool = false,
        /// Tools removed from the CLI, regardless of permissions (`--disallowedTools`). Default: tools that act without a
        /// permission: timers, messages to other sessions, remote triggers, worktrees.
        pub disallowed_tools: Vec<String> = UNPERMITTED_TOOLS.map(str::to_owned).to_vec(),
        /// Maximum number of retries of the CLI when the model's API is overloaded, failing or unreachable; then the turn ends
        /// with that error. At most 10, the CLI's own default. The delay grows: 0.5 s, 1 s, 2 s and so on, or as the API
        /// requests. Default 2. `CLAUDE_CODE_MAX_RETRIES` in [`CliConfig::env`] takes precedence.
        pub api_retries: u32 = 2,
        /// Treatment of a CLI version that was not reviewed, whose behaviour is therefore unknown.
        pub unknown_version: UnknownVersion = UnknownVersion::default(),
        /// Treatment of text that begins with `/`.
        pub slash_commands: SlashCommands = SlashCommands::default(),
    }
}

/// Variables for the locale and for the way to the model's API.
const PASSED: [&str; 14] = [
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Tools of the known versions that run without a permission and act beyond the turn.
const UNPERMITTED_TOOLS: [&str; 10] = [
    "CronCreate",
    "CronDelete",
    "CronList",
    "ScheduleWakeup",
    "RemoteTrigger",
    "PushNotification",
    "SendMessage",
    "ListAgents",
    "EnterWorktree",
    "ExitWorktree",
];

/// Treatment of a CLI version that was not reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum UnknownVersion {
    /// The version is used; the log, `/readyz`, a metric and `pilotlight check` report it.
    #[default]
    Warn,
    /// The version is refused.
    Refuse,
}

/// Treatment of text that begins with `/`, which the CLI would run as a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SlashCommands {
    /// The text reaches the model as text.
    #[default]
    Text,
    /// The CLI runs the command.
    Pass,
    /// The turn is refused.
    Refuse,
}

impl fmt::Debug for CliConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of `env` and `args` may be secrets.
        f.debug_struct("CliConfig")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
