//! The configuration: one tree, with a default for everything, read from TOML and the environment.
//!
//! Unknown keys and values without sense are errors that name the key and what is allowed. Nothing here reads a clock
//! or starts anything.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

mod listen;
mod load;
mod mcp;
mod validate;
mod value;

pub use listen::listen_address;
pub use load::ConfigError;
#[cfg(feature = "server")]
pub(crate) use mcp::is_server_name;
pub(crate) use mcp::{EXPANSION, has_expansion};
pub use mcp::{Mcp, McpCallers, McpHost, McpServerConfig, McpTransport};
pub(crate) use validate::OWN_VARIABLES;
pub use value::MemoryBudget;

/// Everything that can be set. Durations are written as seconds or as text (`"5m"`, `"300s"`, `"250ms"`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where sessions and workspaces are kept. One running instance per directory.
    pub data_dir: PathBuf,
    /// How long running turns may go on after a stop was asked for. Default 8 s: it fits into the 10 s that most
    /// platforms give.
    #[serde(with = "value::duration")]
    pub drain_timeout: Duration,
    /// The public listener.
    pub http: Http,
    /// Who may call.
    pub auth: Auth,
    /// The operator's listener.
    pub admin: Admin,
    /// The program to run.
    pub cli: CliConfig,
    /// Limits of one session.
    pub session: SessionConfig,
    /// What happens after a crash.
    pub restart: RestartConfig,
    /// Who decides whether a tool may run.
    pub permissions: Permissions,
    /// What stands between the children of different users.
    pub isolation: Isolation,
    /// MCP servers of the sessions.
    pub mcp: Mcp,
    /// Limits of the whole instance.
    pub limits: Limits,
    /// Figures for the operator.
    pub metrics: MetricsConfig,
}

/// The public listener.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Http {
    /// Address and port, `localhost:PORT` or a port alone (of this machine); port 0 takes a free one. Loopback only, unless
    /// there are keys ([`Auth`]).
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
    /// Longest accepted request body, in bytes. Default 16 MiB: the longest prompt with its escapes.
    pub body_limit: usize,
    /// Silence in a stream after which a comment is sent, so that proxies keep it open. Default 15 s.
    #[serde(with = "value::duration")]
    pub heartbeat: Duration,
    /// A caller that takes nothing of a waiting answer for so long is hung up on. Default 60 s.
    #[serde(with = "value::duration")]
    pub write_timeout: Duration,
    /// Conversations kept for each user whose client names none and sends the whole history each time; the one that was
    /// used least recently is deleted to make room. Default 16.
    pub conversations_per_user: usize,
    /// What happens to a turn whose caller goes away. Default: it is interrupted.
    pub on_disconnect: OnDisconnect,
    /// Bytes of events kept per turn for a caller who comes back (`on_disconnect = "detach"`). Default 256 KiB.
    pub replay_bytes: usize,
    /// Fields of a request that have no effect here are refused with 400 instead of named in a header. Default false.
    pub strict: bool,
    /// What `GET /v1/models` lists. Any other model may be asked for as well: the CLI decides. Default: its aliases
    /// `opus`, `sonnet`, `haiku`.
    pub models: Vec<String>,
    /// The user of requests that name none, for clients that cannot set headers. Only without keys and on loopback: there
    /// everybody may be anybody. Default none: such a request is 400.
    pub default_user: Option<String>,
    /// Web pages of other origins that may call, each exactly as a browser says it (`https://chat.example.org`). Only with
    /// keys. Default none.
    pub cors_origins: Vec<String>,
    /// How long a caller may take to send the headers of a request; also how long an idle connection is kept open for
    /// the next one. Default 30 s: longer than the pools of the usual clients keep theirs.
    #[serde(with = "value::duration")]
    pub header_timeout: Duration,
    /// How long a caller may take to send a body. Default 30 s, which takes the longest one over 5 Mbit/s.
    #[serde(with = "value::duration")]
    pub body_timeout: Duration,
    /// Connections at once; a stream holds one for its whole turn. Beyond it the one that has been idle longest makes way
    /// for a new one, which is answered 503 while all are in use. Fewer if the limit on open files leaves room for fewer.
    /// Default 1024.
    pub max_connections: usize,
    /// Requests of one caller in a minute, all at once if it likes: of a key, or without keys of a user. 0 is no limit.
    /// Default 6000: more than any person and most backends need; it stops a loop gone wild.
    pub requests_per_minute: u32,
    /// Turns of one user, in all its conversations, that run or wait at once. Default 64: enough for a handful of busy
    /// conversations, too few to take the machine.
    pub turns_per_user: u32,
}

/// What happens to a turn whose caller goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDisconnect {
    /// It is interrupted; the child stays.
    #[default]
    Interrupt,
    /// It goes on; the caller may come back for its events.
    Detach,
}

/// Who may call.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Auth {
    /// The file of keys (`pilotlight keys`); then a key is needed for everything but the state of the service. Without it
    /// everybody who reaches a listener is trusted.
    pub keys_file: Option<PathBuf>,
    /// Serve without keys also where others can reach a listener. Default false.
    pub allow_unauthenticated: bool,
}

/// The operator's listener: metrics.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Admin {
    /// As [`Http::listen`].
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
}

/// The program to run, and how.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CliConfig {
    /// `claude` (found in PATH), `sim` (the built-in simulation) or a path.
    pub program: String,
    /// Added to the command line, after the flags that pilotlight itself needs.
    pub args: Vec<String>,
    /// Set in the child's environment, which is otherwise empty but for [`CliConfig::env_pass`].
    pub env: BTreeMap<String, String>,
    /// A file (mode 0600) with variables of single users, which lie over [`CliConfig::env`]: a table per user, such as
    /// `["alice"]` and below it `ANTHROPIC_API_KEY = "…"`. Looked at whenever a child is started.
    pub user_env_file: Option<PathBuf>,
    /// Names of variables of our own environment that the child gets too. Keys and tokens are not among the defaults.
    pub env_pass: Vec<String>,
    /// The shim's path, where it is not beside this program.
    pub shim: Option<PathBuf>,
    /// The model of new conversations; the CLI's own default if absent.
    pub model: Option<String>,
    /// Answers come in pieces as they are written. Default true.
    pub partial_messages: bool,
    /// Which settings files the CLI obeys (`--setting-sources`). Default none: a file in the workspace could start
    /// programs and redirect the API traffic together with its key.
    pub setting_sources: String,
    /// Only MCP servers given by pilotlight are started (`--strict-mcp-config`). Default true.
    pub strict_mcp_config: bool,
    /// Tools may go on in the background and start turns of their own when they end. Default false.
    pub background_tasks: bool,
    /// The CLI reads what a prompt mentions (`@path`, `@dir/`, `@server:uri`) and gives it to the model, without a tool
    /// and without a permission: any file that the child can read. Default false. Wins over [`CliConfig::env`].
    pub attachments: bool,
    /// Tools that the CLI does not have, whatever the permissions say (`--disallowedTools`). Default: those with which
    /// it acts without a permission: timers, messages to other sessions, remote triggers, worktrees.
    pub disallowed_tools: Vec<String>,
    /// How often the CLI asks the model's API again that is overloaded, failing or out of reach, before the turn ends with
    /// that error; at most 10, its own default. Each retry waits longer: 0.5 s, 1 s, 2 s and so on, or as long as the API
    /// asks for. Default 2. `CLAUDE_CODE_MAX_RETRIES` in [`CliConfig::env`] wins over it.
    pub api_retries: u32,
    /// What happens when the CLI is of a version that was not judged, so that nobody knows what it does by itself.
    pub unknown_version: UnknownVersion,
    /// What happens to text that begins with `/`.
    pub slash_commands: SlashCommands,
}

/// The tools of the known versions that run without a permission and reach beyond the turn.
const UNASKED_TOOLS: [&str; 10] = [
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

/// What happens when the CLI is of a version that was not judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownVersion {
    /// It is started; the log, `/readyz`, a metric and `pilotlight check` say so.
    #[default]
    Warn,
    /// It is not started.
    Refuse,
}

/// What happens to text that begins with `/`, which the CLI would take for a command of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlashCommands {
    /// It reaches the model as text.
    #[default]
    Text,
    /// The CLI runs it.
    Pass,
    /// The turn is refused.
    Refuse,
}

/// Limits of one session.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SessionConfig {
    /// A child without work for so long is stopped; the next message resumes the conversation. Default 300 s.
    #[serde(with = "value::duration")]
    pub idle_timeout: Duration,
    /// From the start of a child until it is ready. Default 30 s.
    #[serde(with = "value::duration")]
    pub spawn_timeout: Duration,
    /// Silence in a turn after which the child is asked whether it lives. Default 10 s, so that a hung child is found
    /// within 25 s.
    #[serde(with = "value::duration")]
    pub stall_timeout: Duration,
    /// How long that question may stay unanswered; asked twice, a third time if the child uses the processor.
    /// Default 5 s.
    #[serde(with = "value::duration")]
    pub ping_timeout: Duration,
    /// The longest turn. Default 30 min.
    #[serde(with = "value::duration")]
    pub turn_timeout: Duration,
    /// A permission nobody answers is denied after this. Default 5 min.
    #[serde(with = "value::duration")]
    pub permission_timeout: Duration,
    /// Turns of one session that may wait behind the running one. Default 8.
    pub turn_queue: usize,
    /// Reads of output that wait for a slow reader before the child is slowed down. Default 256.
    pub event_buffer: usize,
    /// The same in bytes. Default 1 MiB.
    pub event_buffer_bytes: usize,
    /// Longest line of the CLI, in bytes. Default 32 MiB.
    pub line_limit: usize,
    /// Longest prompt on the wire, in bytes. Default 10 MiB.
    pub prompt_limit: usize,
    /// Largest history of earlier messages that a turn may bring with it, in bytes of its content. Default 32 MiB, the
    /// largest request of the model's API.
    pub history_limit: usize,
    /// Longest system prompt, in bytes. Default 1 MiB: it is kept in memory, some copies of it, as long as its session is.
    pub system_prompt_limit: usize,
    /// How much of the end of the child's standard error is kept, in bytes. Default 16 KiB.
    pub stderr_tail: usize,
    /// How long an interrupted turn may take to end before its child is stopped. Default 2 s.
    #[serde(with = "value::duration")]
    pub stop_interrupt: Duration,
    /// How long a child may take to leave after the end of its input. Default 3 s.
    #[serde(with = "value::duration")]
    pub stop_eof: Duration,
    /// How long it may take after SIGTERM, before its tree is killed. Default 3 s.
    #[serde(with = "value::duration")]
    pub stop_term: Duration,
    /// How long a child may leave a written message unread. Default 10 s.
    #[serde(with = "value::duration")]
    pub write_timeout: Duration,
}

/// What happens after a crash.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RestartConfig {
    /// So many failures within [`RestartConfig::window`] are answered with a restart; one more opens the circuit.
    /// Default 5.
    pub intensity: u32,
    /// Default 60 s.
    #[serde(with = "value::duration")]
    pub window: Duration,
    /// Pause before the second restart in a row; the first is immediate. Grows by 2.5 each time. Default 100 ms.
    #[serde(with = "value::duration")]
    pub backoff: Duration,
    /// The longest pause. Default 30 s.
    #[serde(with = "value::duration")]
    pub backoff_max: Duration,
    /// How long the circuit stays open before one turn may try again. Default 60 s.
    #[serde(with = "value::duration")]
    pub circuit_pause: Duration,
    /// A turn whose child died before a word came out is given to the next child, once. Default true.
    pub retry_turn: bool,
}

/// Who decides whether a tool may run.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Permissions {
    /// Default `deny`.
    pub policy: PermissionPolicy,
}

/// Who decides whether a tool may run that is not harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PermissionPolicy {
    /// Nothing may.
    #[default]
    Deny,
    /// Everything may.
    Allow,
    /// The caller is asked; see [`crate::Session::answer_permission`].
    Ask,
}

/// What stands between the children of different users.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Isolation {
    /// Serve several users with tools (`permissions.policy` other than `deny`) although nothing keeps one user's tools
    /// from the files of another. Default false: the HTTP service then serves one user at most, or no tools. A program
    /// that embeds the crate decides itself whom it serves; there the key has no effect.
    pub accept_none: bool,
}

/// Limits of the whole instance.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// Children alive at once. Default 256.
    pub max_children: usize,
    /// Children starting at once. Default: the number of cores, for a start costs half a CPU second.
    pub starts_in_flight: usize,
    /// What all children together may use: bytes or a percentage of the container's or host's memory. Default `"80%"`.
    pub memory_budget: MemoryBudget,
    /// What the child of one session and all that it started may use together: bytes or a percentage of the container's
    /// or host's memory. A tree that passes it is ended with [`crate::TurnError::MemoryLimit`]. Default: a quarter of
    /// [`Limits::memory_budget`], at least 768 MiB.
    pub memory_per_session: Option<MemoryBudget>,
    /// Sessions in memory (with or without a child). Default 10 000.
    pub max_sessions: usize,
    /// Named sessions of one user, with or without a child, those on disk included; the default conversation does not
    /// count, nor do those that the service begins for clients without a name for them
    /// ([`Http::conversations_per_user`]). Default 256.
    pub sessions_per_user: usize,
    /// Starts that may wait for their turn. Default 1024.
    pub queue: usize,
    /// How long one may wait. Default 30 s.
    #[serde(with = "value::duration")]
    pub queue_deadline: Duration,
    /// Files that a child may have open (`RLIMIT_NOFILE`, inherited by its tools); else what this program was given. Below
    /// 32 the CLI breaks.
    pub child_open_files: Option<u64>,
    /// Processes that the child's user may have (`RLIMIT_NPROC`): counts all sessions of one user id together.
    pub child_processes: Option<u64>,
    /// Size of any file that a child writes, in bytes (`RLIMIT_FSIZE`).
    pub child_file_size: Option<u64>,
    /// Added to the kernel's choice of whom to kill when memory is out, so that a child goes before this program.
    /// Default 500.
    pub child_oom_score: i32,
}

/// Figures for the operator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Before every name. Default `pilotlight_`.
    pub prefix: String,
    /// How often memory is measured. Default 5 s.
    #[serde(with = "value::duration")]
    pub sample_interval: Duration,
}

impl Config {
    /// The defaults, with sessions kept in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// Reads a TOML file. The environment is not looked at.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read, has unknown keys or values without sense.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        load::load(Some(path.as_ref()), std::iter::empty())
    }

    /// Reads a TOML file, if given, and lays `PILOTLIGHT_…` variables over it: `PILOTLIGHT_DATA_DIR`,
    /// `PILOTLIGHT_SESSION__IDLE_TIMEOUT=1s`, `PILOTLIGHT_CLI__ENV__NAME=value`.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        load::load(path, environment)
    }

    /// Checks that every value makes sense. [`crate::Pilotlight::start`] does this first.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first key that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate::validate(self)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: value::default_data_dir(),
            drain_timeout: Duration::from_secs(8),
            http: Http::default(),
            auth: Auth::default(),
            admin: Admin::default(),
            cli: CliConfig::default(),
            session: SessionConfig::default(),
            restart: RestartConfig::default(),
            permissions: Permissions::default(),
            isolation: Isolation::default(),
            mcp: Mcp::default(),
            limits: Limits::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8480)),
            body_limit: 16 << 20,
            heartbeat: Duration::from_secs(15),
            write_timeout: Duration::from_secs(60),
            conversations_per_user: 16,
            on_disconnect: OnDisconnect::default(),
            replay_bytes: 256 << 10,
            strict: false,
            models: ["opus", "sonnet", "haiku"].map(str::to_owned).to_vec(),
            default_user: None,
            cors_origins: Vec::new(),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            max_connections: 1024,
            requests_per_minute: 6000,
            turns_per_user: 64,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8481)) }
    }
}

impl Default for CliConfig {
    fn default() -> Self {
        let pass = [
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
        Self {
            program: "claude".to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            user_env_file: None,
            env_pass: pass.map(str::to_owned).to_vec(),
            shim: None,
            model: None,
            partial_messages: true,
            setting_sources: String::new(),
            strict_mcp_config: true,
            background_tasks: false,
            attachments: false,
            disallowed_tools: UNASKED_TOOLS.map(str::to_owned).to_vec(),
            api_retries: 2,
            unknown_version: UnknownVersion::default(),
            slash_commands: SlashCommands::default(),
        }
    }
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

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(300),
            spawn_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(5),
            turn_timeout: Duration::from_secs(30 * 60),
            permission_timeout: Duration::from_secs(5 * 60),
            turn_queue: 8,
            event_buffer: 256,
            event_buffer_bytes: 1 << 20,
            line_limit: 32 << 20,
            prompt_limit: 10 << 20,
            history_limit: 32 << 20,
            system_prompt_limit: 1 << 20,
            stderr_tail: 16 << 10,
            stop_interrupt: Duration::from_secs(2),
            stop_eof: Duration::from_secs(3),
            stop_term: Duration::from_secs(3),
            write_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for RestartConfig {
    fn default() -> Self {
        Self {
            intensity: 5,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
            circuit_pause: Duration::from_secs(60),
            retry_turn: true,
        }
    }
}

impl Limits {
    /// The limit of one session on a machine with `available` bytes in all.
    pub(crate) fn memory_of_session(&self, available: u64) -> u64 {
        /// A CLI at work with a few tools.
        const LEAST: u64 = 768 << 20;
        self.memory_per_session
            .map_or_else(|| (self.memory_budget.of(available) / 4).max(LEAST), |limit| limit.of(available))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_children: 256,
            starts_in_flight: std::thread::available_parallelism().map_or(2, Into::into),
            memory_budget: MemoryBudget::Percent(80),
            memory_per_session: None,
            max_sessions: 10_000,
            sessions_per_user: 256,
            queue: 1024,
            queue_deadline: Duration::from_secs(30),
            child_open_files: None,
            child_processes: None,
            child_file_size: None,
            child_oom_score: 500,
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { prefix: "pilotlight_".to_owned(), sample_interval: Duration::from_secs(5) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_memory_of_session_defaults_to_a_quarter() {
        let limits = Limits { memory_budget: MemoryBudget::Percent(80), ..Limits::default() };
        assert_eq!(limits.memory_of_session(20 << 30), 4 << 30);
        assert_eq!(limits.memory_of_session(1 << 30), 768 << 20);
        let given = |limit| Limits { memory_per_session: Some(limit), ..limits.clone() };
        assert_eq!(given(MemoryBudget::Percent(10)).memory_of_session(10 << 30), 1 << 30);
        assert_eq!(given(MemoryBudget::Bytes(5)).memory_of_session(10 << 30), 5);
    }
}
