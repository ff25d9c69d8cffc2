//! Protocol of a command-line agent, behind one trait.
//!
//! An [`Adapter`] is the only code that knows one CLI: its command line, its input and output lines, its files. It has no
//! state, starts no process and reads no clock. Everything outside handles turns, messages and terminal lines, and never
//! a name of one CLI's protocol.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

#[cfg(feature = "server")]
pub(crate) use answer::AnswerReader;
pub(crate) use launch::{CommandLine, HomeCleanup, LaunchMode, LaunchPlan, LaunchRefusal, LaunchSettings};
pub(crate) use line::{ControlResponse, HostRequest, LineKind, Task, Terminal};

use crate::config::CliConfig;
use crate::model::{Decision, Dirs, History, OauthCredentials, PermissionRequest, Prompt, PromptRefused};

#[cfg(feature = "server")]
pub(crate) mod answer;
#[cfg(feature = "broker")]
pub(crate) mod broker;
pub(crate) mod claude;
mod launch;
mod line;

/// Transcript of an imported conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    /// Content of the file.
    pub(crate) transcript: Vec<u8>,
    /// [`Adapter::checkpoint`] of its last line.
    pub(crate) last: String,
}

/// OAuth credentials as the CLI stores them; any field may be missing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredCredentials {
    /// The bearer token.
    pub(crate) access_token: Option<String>,
    /// Renews the bearer token.
    pub(crate) refresh_token: Option<String>,
    /// Expiry of the bearer token, in milliseconds since 1970.
    pub(crate) expires_at: Option<i64>,
}

impl Debug for StoredCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredCredentials(redacted)")
    }
}

/// Protocol of one CLI. All methods are pure, except for those that read the transcript.
pub(crate) trait Adapter: Debug + Send + Sync + 'static {
    /// Whether this version was reviewed for what it does by itself. `version` is the output of `--version`.
    fn is_judged(&self, version: &str) -> bool;

    // --- Launch

    /// The command line.
    fn command(&self, plan: &LaunchPlan<'_>) -> CommandLine;

    /// Files in HOME to remove before each start; `None` if the configuration keeps the CLI's files elsewhere.
    fn home_cleanup(&self, cli: &CliConfig) -> Option<HomeCleanup>;

    /// Variables that must be the same for all users: they locate the CLI's files.
    fn fixed_variables(&self) -> &'static [&'static str];

    /// Why a child exited before it was ready, from its last line and its standard error.
    fn launch_refusal(&self, terminal: Option<&Terminal>, stderr: &str) -> Option<LaunchRefusal>;

    // --- Input lines, each with its LF

    /// First line of every child: a control request whose response proves readiness, without cost. Contains the system
    /// prompt, which must not be in the arguments.
    fn handshake(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8>;

    /// Control request with the MCP servers, sent after the handshake. The response comes when each server is connected
    /// or has failed; the CLI answers nothing else before. A file would be writable for the child, and arguments are
    /// public.
    fn mcp_servers(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8>;

    /// Control request that interrupts the running turn.
    fn interrupt(&self, request_id: &str) -> Vec<u8>;

    /// Control request that a living child answers at once, also during a turn.
    fn ping(&self, request_id: &str) -> Vec<u8>;

    /// One user message.
    ///
    /// # Errors
    /// If the prompt may not be sent (see [`PromptRefused`]).
    fn encode_turn(&self, prompt: &Prompt, cli: &CliConfig) -> Result<Vec<u8>, PromptRefused>;

    /// User message with an id, which the CLI repeats in a [`LineKind::Echo`] when it takes the message up. The CLI
    /// never adds such a message to a running turn.
    fn with_message_id(&self, line: &[u8], id: &str) -> Vec<u8>;

    /// Response to a permission request.
    fn permission_response(&self, request: &PermissionRequest, decision: &Decision) -> Vec<u8>;

    /// Error response to an unsupported request.
    fn unsupported_response(&self, request_id: &str, what: &str) -> Vec<u8>;

    // --- Output lines, without their LF

    /// Kind of a line. Reads the beginning only: the line may still turn out to be unreadable.
    fn classify(&self, line: &[u8]) -> LineKind;

    /// Reads a [`LineKind::Terminal`]; `None` if it is not JSON. Missing or odd fields get defaults.
    fn terminal(&self, line: &[u8]) -> Option<Terminal>;

    /// Model name in a [`LineKind::Announcement`], as a launch accepts it.
    fn announced_model(&self, line: &[u8]) -> Option<String>;

    /// Reads a [`LineKind::ControlResponse`].
    fn control_response(&self, line: &[u8]) -> Option<ControlResponse>;

    /// Reads a [`LineKind::HostRequest`]; `None` without a readable id, which a response needs.
    fn host_request(&self, line: &[u8]) -> Option<HostRequest>;

    /// Request id in a [`LineKind::Cancelled`].
    fn cancelled_request(&self, line: &[u8]) -> Option<String>;

    /// Message id in a [`LineKind::Echo`].
    fn echo(&self, line: &[u8]) -> Option<String>;

    /// Reads a [`LineKind::Task`]; `None` if no task begins or ends.
    fn task(&self, line: &[u8]) -> Option<Task>;

    /// Id of this line in the transcript; `None` if the transcript does not keep it. The transcript is written in order:
    /// the last such line of a turn proves all earlier ones.
    fn checkpoint(&self, line: &[u8]) -> Option<String>;

    /// Text delta of the answer itself, not of a subagent.
    fn text_delta(&self, line: &[u8]) -> Option<String>;

    /// Reader of a turn's answer: by deltas, or by complete blocks.
    #[cfg(feature = "server")]
    fn answer_reader(&self, by_deltas: bool) -> Box<dyn AnswerReader>;

    // --- Transcript

    /// Directory of the CLI's own files, transcripts and credentials among them.
    fn config_dir(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf;

    /// Path of a transcript. The working directory must exist: the CLI resolves its symbolic links.
    fn transcript(&self, dirs: &Dirs, cli: &CliConfig, session_id: &str) -> PathBuf;

    /// First missing entry on the way from a [`Adapter::checkpoint`] back to the first entry, as a text that identifies
    /// the gap; `None` if there is no gap. Reads a bounded tail. Blocking.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn transcript_gap(&self, transcript: &File, checkpoint: &str) -> std::io::Result<Option<String>>;

    /// Transcript of an imported history, for [`LaunchMode::Resume`] under this id; `None` if the first prompt carries
    /// all of it. Takes long for megabytes of text: use a thread for blocking work.
    fn import(&self, history: &History, session_id: &str, dirs: &Dirs, now: SystemTime) -> Option<Import>;

    /// User message that follows a history: with all of it, or, if `imported`, with what a transcript cannot hold.
    /// `None` if the message is the prompt alone.
    ///
    /// # Errors
    /// As [`Adapter::encode_turn`].
    fn encode_first_turn(
        &self,
        history: &History,
        imported: bool,
        prompt: &Prompt,
        cli: &CliConfig,
    ) -> Result<Option<Vec<u8>>, PromptRefused>;

    // --- Credentials

    /// Protocol between the CLI and its model's API.
    #[cfg(feature = "broker")]
    fn broker(&self) -> &'static dyn broker::BrokerProtocol;

    /// File from which the CLI reads a user's OAuth credentials.
    fn credentials_file(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf;

    /// Content of the credentials file.
    fn encode_credentials(&self, credentials: &OauthCredentials) -> Vec<u8>;

    /// Reads the content of the credentials file; `None` if it is unreadable.
    fn stored_credentials(&self, content: &[u8]) -> Option<StoredCredentials>;

    /// Value that a session with OAuth credentials gets of an operator's variable; `None` if the CLI would prefer the
    /// variable to the credentials.
    fn variable_beside_oauth(&self, name: &OsStr, value: OsString) -> Option<OsString>;
}
