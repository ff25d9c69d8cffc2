//! What pilotlight must know of a command-line agent, behind one trait.
//!
//! An [`Adapter`] is the only place that knows one CLI's protocol: its command line, how it says that it is ready, how
//! a turn is written, what a line of its output means. It holds no state, starts nothing and reads no clock: the
//! driver of the child owns those. Everything outside speaks of turns, events and terminal lines, never of one CLI's
//! event names.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use answer::AnswerReader;

use crate::config::CliConfig;
use crate::model::{
    Decision, Failure, History, OauthCredentials, PermissionRequest, Prompt, PromptRefused, Usage,
};

pub mod answer;
pub mod claude;

/// The directories that a child sees. They come from one function (`workspace`) because the CLI files its
/// transcripts by them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// The working directory.
    pub work: PathBuf,
    /// `HOME`; the CLI keeps its own files below it.
    pub home: PathBuf,
    /// `TMPDIR`.
    pub tmp: PathBuf,
}

/// How the conversation is to be taken up by a new child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Begin a conversation with the given id.
    New,
    /// Go on with the conversation of the given id.
    Resume,
}

/// Settings that hold for the life of a child. A change of any of them needs a restart between turns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchSettings {
    /// Replaces the CLI's own system prompt. Empty is the same as none.
    pub system_prompt: Option<String>,
    /// The session's MCP servers by name, in the CLI's own form. May hold secrets.
    pub mcp_servers: serde_json::Map<String, serde_json::Value>,
    /// A model to fall back to when the first is overloaded.
    pub fallback_model: Option<String>,
}

/// The CLI's files in HOME. A tool can write them, and the next child would obey some of them: programs to start,
/// permissions, the address of the API. So only what a conversation needs outlives a child.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnFiles {
    /// Entries of HOME whose names begin so are removed before each start.
    pub removed: &'static str,
    /// The directory in HOME that is cleared before each start,
    pub directory: &'static str,
    /// but for these entries.
    pub kept: Vec<&'static str>,
}

/// Everything an adapter needs to write a command line.
#[derive(Debug)]
pub struct LaunchPlan<'a> {
    /// The configured flags and switches.
    pub cli: &'a CliConfig,
    /// Where the child will live.
    pub dirs: &'a Dirs,
    /// The CLI's id of the conversation.
    pub session_id: &'a str,
    /// Begin or go on.
    pub opening: Opening,
    /// The model, if one was asked for.
    pub model: Option<&'a str>,
    /// Settings for the life of the child.
    pub settings: &'a LaunchSettings,
    /// How long an MCP server may take to connect.
    pub mcp_timeout: Duration,
    /// Whether tool permissions are asked over the protocol (policies `allow` and `ask`).
    pub asks_permission: bool,
}

/// Arguments and environment of a child. No secret may be in the arguments: every user of the machine reads them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// After the program's name.
    pub args: Vec<OsString>,
    /// Added to the scrubbed environment; HOME, TMPDIR and the configured variables are set by the caller.
    pub env: Vec<(OsString, OsString)>,
    /// Variables that a configuration key decides. They win over the configured ones, so that a variable of one user
    /// never opens what the key keeps shut.
    pub decided_env: Vec<(OsString, OsString)>,
}

/// What a line of output is. Found by a cheap look at its beginning; the line itself is passed on as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// Part of the running turn, to be handed to its reader. `substantial` is false for what precedes any work on the
    /// prompt (an announcement): a child that died having said no more may be asked again.
    Event {
        /// Whether the turn has really begun.
        substantial: bool,
        /// Whether a permanent record of this line in the transcript proves that the turn was kept
        /// ([`Adapter::checkpoint`]).
        checkpoint: bool,
    },
    /// Part of a turn as above, its first line. [`Adapter::announced_model`] reads it.
    Announcement,
    /// The last line of a turn. [`Adapter::terminal`] reads it.
    Terminal,
    /// The answer to one of our control requests. [`Adapter::control_answer`] reads it.
    ControlAnswer,
    /// The CLI asks its host something. [`Adapter::host_request`] reads it.
    HostRequest,
    /// The CLI withdraws what it had asked. [`Adapter::withdrawn`] reads it.
    Withdrawn,
    /// Part of the running turn as above, about work in the background. [`Adapter::task`] reads it.
    Task,
    /// The CLI repeats a message that it takes up. [`Adapter::echo`] reads it.
    Echo,
    /// The CLI says that it is working. Not passed on.
    Working,
    /// The CLI says that it waits for input. Not passed on.
    Waiting,
    /// Not a line of the protocol.
    Malformed,
}

/// The last line of a turn, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Terminal {
    /// The CLI ran this turn of its own accord; it answers nobody.
    pub unsolicited: bool,
    /// The conversation's id from now on (a command in the text may have changed it).
    pub session_id: Option<String>,
    /// The final text.
    pub text: String,
    /// Why the turn failed, if it did.
    pub failure: Option<Failure>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// Tokens of this turn.
    pub usage: Usage,
    /// Cost of all turns of this process so far, in US dollars; with some versions also of processes before it.
    pub cumulative_cost_usd: f64,
    /// Cost since the last such line, where the CLI says it.
    pub cost_usd: Option<f64>,
    /// No later turn of this process can succeed: it must be started anew.
    pub process_exhausted: bool,
}

/// An answer to a control request of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlAnswer {
    /// The id that we gave the request.
    pub request_id: String,
    /// The error text, if the CLI refused.
    pub error: Option<String>,
}

/// Something the CLI asks of its host, and waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum HostRequest {
    /// May it use a tool?
    Permission(PermissionRequest),
    /// Something this host does not offer. It is answered with an error, for an unanswered request hangs the turn.
    Unsupported {
        /// The CLI's id of the request.
        request_id: String,
        /// What it asked, for the error text.
        what: String,
    },
}

/// Work that a child goes on with after the turn which began it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// It has begun, under this id.
    Began(String),
    /// It is over.
    Ended(String),
}

/// A conversation that was held elsewhere, as the CLI's own transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The whole file.
    pub transcript: Vec<u8>,
    /// The [`Adapter::checkpoint`] of its last line.
    pub last: String,
}

/// OAuth credentials as the CLI stores them; any field may be missing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoredCredentials {
    /// The bearer token.
    pub access_token: Option<String>,
    /// Renews the bearer token.
    pub refresh_token: Option<String>,
    /// Expiry of the bearer token, in milliseconds since 1970.
    pub expires_at: Option<i64>,
}

impl Debug for StoredCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredCredentials(redacted)")
    }
}

/// Why a child left before it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no conversation of that id to resume.
    NoConversation,
    /// A conversation of that id exists already.
    IdInUse,
}

/// One CLI's protocol. Every method is a pure function, but for the transcript's, which read files.
pub trait Adapter: Debug + Send + Sync + 'static {
    /// The CLI's name, for messages.
    fn name(&self) -> &'static str;

    /// Whether what this version does by itself was judged. `version` is what it says of itself.
    fn is_judged(&self, version: &str) -> bool;

    /// How to start it.
    fn command(&self, plan: &LaunchPlan<'_>) -> CommandLine;

    /// The line that asks whether the child is ready without costing anything; answered by a control answer. Also
    /// carries the system prompt, which must not be in the arguments. Every child gets this line first, a resumed one
    /// too.
    fn handshake(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8>;

    /// The line that gives the child its MCP servers; written after the handshake and answered by a control answer once
    /// each of them is connected or has failed. Until then the CLI answers nothing else. Not in a file and not in the
    /// arguments: a child could change the one and everybody reads the other.
    fn mcp_servers(&self, request_id: &str, settings: &LaunchSettings) -> Vec<u8>;

    /// The line that interrupts the running turn.
    fn interrupt(&self, request_id: &str) -> Vec<u8>;

    /// The line that a living child always answers at once, also in mid-turn.
    fn ping(&self, request_id: &str) -> Vec<u8>;

    /// The line that is one user message; ends with LF.
    ///
    /// # Errors
    /// If the prompt may not be sent (see [`PromptRefused`]).
    fn encode_turn(&self, prompt: &Prompt, cli: &CliConfig) -> Result<Vec<u8>, PromptRefused>;

    /// The line of a message with an id, which the CLI repeats in a [`LineKind::Echo`] once it takes the message up. It is
    /// never put into a turn that runs.
    fn marked(&self, line: &[u8], id: &str) -> Vec<u8>;

    /// The line that answers a request for permission. `input` is what was asked for.
    fn permission_answer(&self, request: &PermissionRequest, decision: &Decision) -> Vec<u8>;

    /// The line that refuses any other request.
    fn unsupported_answer(&self, request_id: &str, what: &str) -> Vec<u8>;

    /// What kind of line this is (without its LF). Only its beginning is read: a line of a known kind may still turn
    /// out to be unreadable when it is read in full.
    fn classify(&self, line: &[u8]) -> LineKind;

    /// Reads a [`LineKind::Terminal`]; `None` if it is none after all: not JSON, for one. Missing or odd fields are no
    /// reason.
    fn terminal(&self, line: &[u8]) -> Option<Terminal>;

    /// The model that a [`LineKind::Announcement`] names, as it can be asked for.
    fn announced_model(&self, line: &[u8]) -> Option<String>;

    /// Reads a [`LineKind::ControlAnswer`].
    fn control_answer(&self, line: &[u8]) -> Option<ControlAnswer>;

    /// Reads a [`LineKind::HostRequest`]; `None` if not even its id can be read, so that it cannot be answered.
    fn host_request(&self, line: &[u8]) -> Option<HostRequest>;

    /// The request id of a [`LineKind::Withdrawn`].
    fn withdrawn(&self, line: &[u8]) -> Option<String>;

    /// The id of the message that a [`LineKind::Echo`] repeats.
    fn echo(&self, line: &[u8]) -> Option<String>;

    /// Reads a [`LineKind::Task`]; `None` if it tells neither a beginning nor an end.
    fn task(&self, line: &[u8]) -> Option<Task>;

    /// The id by which [`Adapter::transcript_holds`] finds this line again on disk. The transcript is written in order:
    /// the last such line of a turn proves all of it. `None` if a closer look shows that this line is not kept.
    fn checkpoint(&self, line: &[u8]) -> Option<String>;

    /// The piece of the answer's text that this event brings, if it is a delta of the answer itself (not of a
    /// subagent).
    fn text_delta(&self, line: &[u8]) -> Option<String>;

    /// Reads the answer out of a turn's lines: as its deltas come, or block by block as a whole.
    fn answer_reader(&self, by_deltas: bool) -> Box<dyn AnswerReader>;

    /// Why a child left before it was ready, told by its last lines and its standard error.
    fn refusal(&self, terminal: Option<&Terminal>, stderr: &str) -> Option<Refusal>;

    /// The directory that the CLI keeps its own files in, transcripts and credentials among them.
    fn config_dir(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf;

    /// What of the CLI's files in HOME outlives a child; `None` if the configuration keeps them elsewhere.
    fn own_files(&self, cli: &CliConfig) -> Option<OwnFiles>;

    /// Where the CLI keeps the conversation's transcript. The working directory must exist, for the CLI goes by what it
    /// really is once links are resolved.
    fn transcript(&self, dirs: &Dirs, cli: &CliConfig, session_id: &str) -> PathBuf;

    /// The first entry that the transcript lacks on the way from the line of the given [`Adapter::checkpoint`] back to
    /// its beginning, as a text to know the same gap again by; `None` if all are there. Reads at most a bounded tail, and
    /// blocks meanwhile.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn transcript_gap(&self, transcript: &File, checkpoint: &str) -> std::io::Result<Option<String>>;

    /// Whether the transcript holds the line, and all that it goes back to.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn transcript_holds(&self, transcript: &File, checkpoint: &str) -> std::io::Result<bool> {
        Ok(self.transcript_gap(transcript, checkpoint)?.is_none())
    }

    /// The transcript of a conversation that was held elsewhere, for [`Opening::Resume`] under this id; `None` if the
    /// first prompt carries all of it. For texts of some megabytes this belongs on a thread for blocking work.
    fn import(&self, history: &History, session_id: &str, dirs: &Dirs, now: SystemTime) -> Option<Import>;

    /// The line of the prompt that follows a history: with all of it, or, if it was `imported`, with what a transcript
    /// cannot hold. `None` if that is the line of the prompt alone.
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

    /// The file from which the CLI reads a user's OAuth credentials.
    fn credentials_file(&self, dirs: &Dirs, cli: &CliConfig) -> PathBuf;

    /// The content of the credentials file.
    fn encode_credentials(&self, credentials: &OauthCredentials) -> Vec<u8>;

    /// Reads the content of the credentials file; `None` if it is unreadable.
    fn stored_credentials(&self, content: &[u8]) -> Option<StoredCredentials>;

    /// What of a variable of the operator's a child gets whose session has credentials of its own; `None` if the CLI
    /// would use it in their place.
    fn beside_own_credentials(&self, name: &OsStr, value: OsString) -> Option<OsString>;

    /// Variables that decide where the CLI keeps its files: they are the same for all users.
    fn fixed_variables(&self) -> &'static [&'static str];
}
