//! What can go wrong, split by who can do something about it: [`StartError`] by the operator, [`TurnError`] by the
//! caller of a turn. Messages are for people and hold no prompt, no secret and no user id; [`TurnError::code`] is for
//! programs.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::ConfigError;
use crate::model::PromptRefused;
use crate::model::ids::InvalidName;
pub use crate::support::cause::Cause;

/// pilotlight could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another instance works in the data directory.
    #[error("the data directory {} is in use by another instance; give this one its own (data_dir)", .0.display())]
    DataDirLocked(PathBuf),
    /// The data directory was written by another release.
    #[error(
        "the data directory {} has format {found}, this release knows format {known}: start the release that wrote it, \
         or give this one its own (data_dir)", .path.display()
    )]
    DataDirFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format that is known here.
        known: u32,
    },
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}: {source}", .path.display())]
    DataDir {
        /// The directory or the file in it.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// This node cannot join the cluster.
    #[error("cannot join the cluster: {0}")]
    Cluster(#[source] Cause),
    /// The shim, the program that every child is started through, is not there.
    #[error(transparent)]
    Shim(Cause),
    /// The configuration names the simulated CLI, which this program was built without.
    #[error(
        "`cli.program = \"sim\"` needs the feature `sim` of the crate `pilotlight`, which this program was built without"
    )]
    SimNotBuilt,
    /// A rung of isolation that the configuration requires does not hold on this host.
    #[error("configuration key `isolation.require`: \"{rung}\" is {state}")]
    Isolation {
        /// The rung.
        rung: &'static str,
        /// What is missing, and how to get it.
        state: String,
    },
    /// There is no tokio runtime with input, output and time enabled.
    #[error("pilotlight must be started inside a tokio runtime")]
    NoRuntime,
    /// An actor did not start.
    #[error("cannot start the supervisor: {message}")]
    Supervisor {
        /// Reason.
        message: String,
        /// Cause, if it is an error of its own.
        source: Option<Cause>,
    },
}

/// A turn was refused or ended without an answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The user id or the conversation's name cannot be used.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// The prompt cannot be sent.
    #[error(transparent)]
    InvalidPrompt(#[from] PromptRefused),
    /// What was asked for as a model cannot be the name of one.
    #[error("{option} must be a model's name such as \"sonnet\" or a full id")]
    InvalidModel {
        /// The option: `model` or `fallback_model`.
        option: &'static str,
    },
    /// An MCP server that cannot be given to a child.
    #[error("MCP servers: {0}")]
    InvalidMcpServers(&'static str),
    /// The system prompt is too long.
    #[error(
        "the system prompt has {bytes} bytes; at most {limit} are accepted (session.system_prompt_limit)"
    )]
    SystemPromptTooLarge {
        /// Its length.
        bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// Two of the caller's tools have the same name, or the schema of the answer is no object.
    #[error("{0}")]
    InvalidTools(&'static str),
    /// The caller's tools, or the schema of the answer, are too large.
    #[error("the {what} has {bytes} bytes; at most {limit} are accepted (session.tools_limit)")]
    ToolsTooLarge {
        /// `list of tools` or `schema of the answer`.
        what: &'static str,
        /// Its length as JSON.
        bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The prompt is too long.
    #[error("the prompt has {bytes} bytes; at most {limit} are accepted (session.prompt_limit)")]
    PromptTooLarge {
        /// Its length on the wire.
        bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The history is too large.
    #[error(
        "the earlier messages have {bytes} bytes; at most {limit} are accepted (session.history_limit): leave the \
         oldest out"
    )]
    HistoryTooLarge {
        /// Its size.
        bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// The session's queue of turns is full.
    #[error("{limit} turns of this session wait or run already (session.turn_queue)")]
    QueueFull {
        /// How many may.
        limit: usize,
    },
    /// The user has as many named sessions as one may have.
    #[error(
        "this user has {limit} named sessions already (limits.sessions_per_user): go on in one of them, or delete one \
         first (DELETE /v1/sessions/NAME?purge=true)"
    )]
    TooManySessions {
        /// How many may be.
        limit: usize,
    },
    /// The session has no conversation of the id that was asked for.
    #[error("No conversation found with this session ID")]
    NoConversation,
    /// The user is being deleted.
    #[error("this user is being deleted with all data; a turn that comes afterwards begins a new session")]
    UserDeleted,
    /// The session is being deleted.
    #[error("this session is being deleted; a turn that comes afterwards begins a new one")]
    SessionDeleted,
    /// The conversation cannot be replaced while a turn runs or waits.
    #[error(
        "a turn of this session runs or waits: try again when it has ended, or ask for its interruption \
         (interrupt=true)"
    )]
    SessionBusy,
    /// The turn was to follow another one directly, and a message came in between, or a new conversation began.
    #[error("another message of this session came first")]
    Overtaken,
    /// A session of this name exists.
    #[error("this user has a session of this name already")]
    SessionExists,
    /// The conversation has no message with this id.
    #[error("the conversation has no message with this id (GET /v1/sessions/NAME/messages lists them)")]
    MessageNotFound,
    /// The conversation is too short to be compacted.
    #[error("there is nothing to compact in this conversation")]
    NothingToCompact,
    /// The conversation could not be compacted, and is as it was.
    #[error(
        "the conversation was not compacted and is as it was; POST /v1/sessions/NAME/reset begins a new one in the same \
         workspace. The CLI says: {reason}"
    )]
    CompactFailed {
        /// The CLI's text.
        reason: String,
    },
    /// The user has spent what one may in a day.
    #[error(
        "this user has spent the {limit_usd} US dollars that one may spend in a day (limits.usd_per_user_day); turns are \
         accepted again after midnight UTC"
    )]
    SpendLimit {
        /// What one may spend, in US dollars.
        limit_usd: f64,
        /// When the day ends.
        retry_after: Duration,
    },
    /// The host as a whole has no room for another child, or none was free in time.
    #[error("overloaded: {reason}")]
    Overloaded {
        /// What is scarce.
        reason: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// Each user's children run as a user id of their own, and none is left for another user.
    #[error(
        "no user id is left for another user: the operator must make the range larger (isolation.uids), users that have \
         an id are served"
    )]
    NoUserId {
        /// When one may have become free that no user has; `None`: all have users.
        retry_after: Option<Duration>,
    },
    /// No new turns are taken because this instance is stopping.
    #[error("this instance is stopping")]
    Draining,
    /// Another node of the cluster has the user now.
    #[error("another node of the cluster has the user now")]
    Moved,
    /// The turn was answered, but its copy for other nodes of the cluster was not written in time. The conversation has it as
    /// long as this node lives.
    #[error(
        "the turn was answered and could not be stored for other nodes within {} s (cluster.commit_timeout): it is lost if \
         this node is", .limit.as_secs_f32()
    )]
    NotReplicated {
        /// What was waited for.
        limit: Duration,
    },
    /// The user's files were deleted on this node of the cluster, and objects of it may still be in the store. A repetition
    /// continues.
    #[error(
        "the user's files were deleted here and may still be in the object store, which does not answer (cluster.store): \
         delete the user again"
    )]
    NotDeleted,
    /// The child could not be started, or was not ready in time.
    #[error("the CLI did not start: {0}")]
    NotStarted(#[source] StartFailure),
    /// The child failed so often that the session pauses before the next try.
    #[error("the CLI failed repeatedly ({last}); the next try is in {} s", .retry_after.as_secs_f32().ceil())]
    CircuitOpen {
        /// The last failure.
        #[source]
        last: StartFailure,
        /// When a turn will be tried again.
        retry_after: Duration,
    },
    /// The child died, or had to be killed, before the turn ended. The conversation goes on with the next turn.
    #[error("the CLI ended in the middle of the turn: {0}")]
    SessionLost(#[source] Loss),
    /// The child and what it had started used more memory than one session may, and were ended. The conversation goes
    /// on with the next turn.
    #[error(
        "the CLI and its tools used more than {limit} bytes of memory and were ended \
         (limits.memory_per_session); the next message goes on, with less at a time"
    )]
    MemoryLimit {
        /// What they may use.
        limit: u64,
    },
    /// The files of the session exceed a limit. A running child was ended; turns are refused until files are deleted.
    #[error(
        "the session's files exceed {limit} {what}: delete its workspace (DELETE /v1/workspace?confirm=true) or the \
         session with its conversation (DELETE /v1/sessions/NAME?purge=true)"
    )]
    WorkspaceLimit {
        /// The limit.
        limit: u64,
        /// What is counted, and the key of the limit.
        what: &'static str,
        /// The turn was running and its child was ended; otherwise the turn was refused.
        in_turn: bool,
    },
    /// This node had no contact to its cluster until its deadline, so that another node may have its sessions. Their
    /// children were ended, and no other is started before the contact is back.
    #[error(
        "this node has lost its contact to the cluster; another one serves its sessions, which go on with the next message"
    )]
    NodeFenced {
        /// The turn was running and may have done something; otherwise nothing was done for it.
        in_turn: bool,
    },
    /// The CLI wrote a line that is longer than accepted, so that part of the answer is missing.
    #[error("the CLI wrote a line of more than {limit} bytes (session.line_limit)")]
    LineTooLong {
        /// What is accepted.
        limit: usize,
    },
    /// The turn took longer than `session.turn_timeout`.
    #[error("the turn took longer than {} s (session.turn_timeout)", .limit.as_secs_f32())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The reader dropped the turn, or a caller interrupted it before it began.
    #[error("the turn was cancelled")]
    Cancelled,
    /// Session files could not be read or written.
    #[error("cannot keep the session on disk: {0}")]
    Storage(#[source] Cause),
    /// A defect of pilotlight; the next turn starts the session again.
    #[error("internal failure: {0}")]
    Internal(&'static str),
}

/// Why there is no child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// The system refused to start it.
    #[error("{message}")]
    Spawn {
        /// The metric label: `not_found`, `eacces`, …
        reason: &'static str,
        /// What to do.
        message: String,
        /// Cause, if the system gave one.
        source: Option<Cause>,
    },
    /// It ended before it was ready.
    #[error("it ended at once ({exit}){}", tail(.stderr))]
    ExitedEarly {
        /// How.
        exit: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// It did not answer in time.
    #[error("it was not ready within {} s (session.spawn_timeout)", .limit.as_secs_f32())]
    NeverReady {
        /// The limit.
        limit: Duration,
    },
    /// It answered something else than expected.
    #[error("it does not speak the expected protocol: {0}")]
    Handshake(String),
}

/// How a turn's child was lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}{}", tail(.stderr))]
#[non_exhaustive]
pub struct Loss {
    /// In words: `signal 9`, `exit code 1`, `hung`, `line too long`, …
    pub cause: String,
    /// The end of its standard error; tokens in it are blacked out.
    pub stderr: String,
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl StartFailure {
    /// The metric label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Spawn { reason, .. } => reason,
            Self::ExitedEarly { .. } => "exited_early",
            Self::NeverReady { .. } => "start_timeout",
            Self::Handshake(_) => "handshake",
        }
    }
}

impl TurnError {
    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "invalid_user",
            Self::InvalidPrompt(_) => "invalid_prompt",
            Self::InvalidModel { .. } => "invalid_model",
            Self::InvalidMcpServers(_) => "invalid_mcp_servers",
            Self::PromptTooLarge { .. } => "prompt_too_large",
            Self::SystemPromptTooLarge { .. } => "system_prompt_too_large",
            Self::HistoryTooLarge { .. } => "history_too_large",
            Self::InvalidTools(_) => "invalid_tools",
            Self::ToolsTooLarge { .. } => "tools_too_large",
            Self::QueueFull { .. } => "queue_full",
            Self::TooManySessions { .. } => "too_many_sessions",
            Self::NoConversation => "no_conversation",
            Self::UserDeleted => "user_deleted",
            Self::SessionDeleted => "session_deleted",
            Self::SessionBusy => "session_busy",
            Self::Overtaken => "overtaken",
            Self::SessionExists => "session_exists",
            Self::MessageNotFound => "message_not_found",
            Self::NothingToCompact => "nothing_to_compact",
            Self::CompactFailed { .. } => "compact_failed",
            Self::SpendLimit { .. } => "spend_limit",
            Self::Overloaded { .. } => "overloaded",
            Self::NoUserId { .. } => "no_user_id",
            Self::Draining => "draining",
            Self::Moved => "not_owner",
            Self::NotReplicated { .. } => "not_replicated",
            Self::NotDeleted => "not_deleted",
            Self::NotStarted(_) => "cli_not_started",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::SessionLost(_) => "session_lost",
            Self::MemoryLimit { .. } => "memory_limit",
            Self::WorkspaceLimit { .. } => "workspace_limit",
            Self::NodeFenced { .. } => "node_fenced",
            Self::LineTooLong { .. } => "line_too_long",
            Self::TimedOut { .. } => "timeout",
            Self::Cancelled => "cancelled",
            Self::Storage(_) => "storage",
            Self::Internal(_) => "internal",
        }
    }

    /// When the same turn may be tried again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::CircuitOpen { retry_after, .. }
            | Self::SpendLimit { retry_after, .. } => Some(*retry_after),
            Self::NoUserId { retry_after } => *retry_after,
            // One turn is likely to end by then.
            Self::QueueFull { .. }
            | Self::SessionBusy
            | Self::Draining
            | Self::Moved
            | Self::NotDeleted
            | Self::NodeFenced { in_turn: false }
            | Self::UserDeleted
            | Self::SessionDeleted => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the child may have seen the prompt, so that sending it again could do the work twice.
    #[must_use]
    pub fn reached_child(&self) -> bool {
        matches!(
            self,
            Self::SessionLost(_)
                | Self::NotReplicated { .. }
                | Self::CompactFailed { .. }
                | Self::MemoryLimit { .. }
                | Self::WorkspaceLimit { in_turn: true, .. }
                | Self::NodeFenced { in_turn: true }
                | Self::LineTooLong { .. }
                | Self::TimedOut { .. }
                | Self::Cancelled
                | Self::Internal(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn causes_stay_reachable_through_clones() {
        let storage = |kind| TurnError::Storage(io::Error::from(kind).into());
        let error = storage(io::ErrorKind::StorageFull).clone();
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::StorageFull));
        assert_eq!(error.to_string(), "cannot keep the session on disk: no storage space");
        assert_eq!(error, storage(io::ErrorKind::StorageFull));
        assert_ne!(error, storage(io::ErrorKind::PermissionDenied));
    }
}
