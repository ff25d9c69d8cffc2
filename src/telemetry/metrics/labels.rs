//! The values of every label. An enum each, so that no other value can be counted.

use crate::error::TurnError;
use crate::model::SessionState;
use crate::turn::Status;

/// A label: its name, and all the values that it can have, in the order of the variants.
pub(super) trait Label: Copy {
    const KEY: &'static str;
    const VALUES: &'static [&'static str];
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident, $key:literal: $($variant:ident = $value:literal),+;)+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl Label for $name {
            const KEY: &'static str = $key;
            const VALUES: &'static [&'static str] = &[$($value),+];
            fn index(self) -> usize {
                self as usize
            }
        }

        impl $name {
            /// The label's value.
            #[allow(dead_code, reason = "not every label is logged as well")]
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }

            /// The variant of this value.
            #[allow(dead_code, reason = "not every label comes by its name")]
            pub(crate) fn named(value: &str) -> Option<Self> {
                match value { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    )+};
}

labels! {
    /// Why a child could not be started.
    SpawnReason, "reason": None = "none", NotFound = "not_found", UnjudgedVersion = "unjudged_version", Eacces = "eacces", Enoexec = "enoexec",
        Eagain = "eagain", Enomem = "enomem", Emfile = "emfile", StartTimeout = "start_timeout",
        Handshake = "handshake", ExitedEarly = "exited_early", Other = "other";
    /// What took its time in a start.
    SpawnPhase, "phase": Exec = "exec", Ready = "ready";
    /// Why a child is gone.
    ExitReason, "reason": Clean = "clean", Crash = "crash", Signal = "signal", Oom = "oom", Hang = "hang",
        Protocol = "protocol", MemoryLimit = "memory_limit", Evicted = "evicted", Drain = "drain", StatusUnknown = "status_unknown";
    /// Why a child is started again.
    RestartCause, "cause": Crash = "crash", Hang = "hang", Protocol = "protocol", NotStarted = "not_started";
    /// Why a session gave up its child.
    EvictionReason, "reason": Idle = "idle", Memory = "memory", Capacity = "capacity", Admin = "admin";
    /// What a conversation came back without.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    ContextLost, "kind": Conversation = "conversation", LatestTurns = "latest_turns";
    /// How a turn ended.
    TurnOutcome, "outcome": Ok = "ok", Error = "error", Timeout = "timeout", Cancelled = "cancelled",
        SessionLost = "session_lost", MemoryLimit = "memory_limit", Rejected = "rejected";
    /// Whether the child was there already.
    FirstOutput, "start": Warm = "warm", Cold = "cold";
    /// What there was no room for.
    AdmissionRejected, "reason": QueueFull = "queue_full", Deadline = "deadline", Memory = "memory", Fds = "fds",
        Processes = "processes",
        Draining = "draining", PerUser = "per_user";
    /// How a hang was found.
    HangDetector, "detector": Ping = "ping", Stopped = "stopped", StdinStall = "stdin_stall",
        NoProgress = "no_progress";
    /// A step of the stop sequence.
    StopStep, "step": Interrupt = "interrupt", StdinClose = "stdin_close", Term = "term", TreeKill = "tree_kill";
    /// Whether a child left when it was asked to.
    StopHow, "how": Orderly = "orderly", Killed = "killed";
    /// The means by which a tree is ended, strongest first.
    Rung, "rung": Cgroup = "cgroup", Walk = "walk", Marker = "marker";
    /// How the protocol was broken.
    ProtocolError, "kind": BadJson = "bad_json", LineTooLong = "line_too_long", UnknownId = "unknown_id",
        PartialEof = "partial_eof";
    /// A child's stream.
    Stream, "stream": Stdin = "stdin", Stdout = "stdout", Stderr = "stderr";
    /// A kind of actor.
    ActorKind, "actor": Supervisor = "supervisor", Session = "session", Idle = "idle", Sampler = "sampler";
    /// What could not be measured.
    SampleSource, "source": Process = "process", Host = "host";
    /// A kind of memory. Pages of files are shared by all children and counted once per host.
    MemoryKind, "kind": Anon = "anon", Shmem = "shmem", Swap = "swap", SharedFile = "shared_file";
    /// A kind of process.
    ProcessKind, "kind": Cli = "cli", Shim = "shim", Descendant = "descendant";
    /// A kind of token.
    TokenKind, "kind": Input = "input", Output = "output", CacheRead = "cache_read",
        CacheCreation = "cache_creation";
    /// A family of models. Their names are many and callers choose them: they can be no label.
    ModelClass, "model": Opus = "opus", Sonnet = "sonnet", Haiku = "haiku", Default = "default", Other = "other";
    /// What the kernel tells the pressure on.
    Resource, "resource": Cpu = "cpu", Memory = "memory", Io = "io";
}

#[cfg(feature = "server")]
labels! {
    /// What a request asks for.
    Route, "route": Messages = "messages", Keepalive = "keepalive", Chat = "chat", CountTokens = "count_tokens",
        Models = "models", Sessions = "sessions", Workspace = "workspace", Stats = "stats", Health = "health",
        Metrics = "metrics", Page = "page", Unknown = "unknown";
    /// A class of answers.
    StatusClass, "status": Served = "2xx", Refused = "4xx", Failed = "5xx";
    /// The dialect of a request for a turn.
    Dialect, "dialect": Anthropic = "anthropic", OpenAi = "openai", Original = "original";
    /// Why a caller was not let in.
    AuthFailure, "reason": MissingKey = "missing_key", InvalidKey = "invalid_key", AmbiguousKey = "ambiguous_key",
        AdminOnly = "admin_only", BrowserRefused = "browser_refused", HostRefused = "host_refused",
        NotAllowed = "not_allowed";
    /// What a caller has had enough of.
    HttpLimit, "limit": Requests = "requests", Turns = "turns", Connections = "connections";
    /// A kind of request.
    HttpKind, "kind": Turn = "turn", Other = "other";
}

impl Label for SessionState {
    const KEY: &'static str = "state";
    const VALUES: &'static [&'static str] =
        &["dormant", "starting", "idle", "busy", "stopping", "backoff", "failed"];
    fn index(self) -> usize {
        self as usize
    }
}

impl ModelClass {
    /// The family of a model that was asked for by this name; none was: the CLI's own default.
    pub(crate) fn of(model: Option<&str>) -> Self {
        let Some(name) = model else { return Self::Default };
        let families = [Self::Opus, Self::Sonnet, Self::Haiku, Self::Default];
        families.into_iter().find(|family| name.contains(family.as_str())).unwrap_or(Self::Other)
    }
}

impl TurnOutcome {
    /// The word for a turn's status.
    pub(crate) fn of(status: &Status) -> Self {
        match status {
            Status::Completed => Self::Ok,
            Status::Failed(failure) if failure.interrupted => Self::Cancelled,
            Status::Failed(_) => Self::Error,
            Status::Aborted(error) => match error {
                TurnError::TimedOut { .. } => Self::Timeout,
                TurnError::Cancelled => Self::Cancelled,
                TurnError::SessionLost(_) => Self::SessionLost,
                TurnError::MemoryLimit { .. } => Self::MemoryLimit,
                TurnError::LineTooLong { .. }
                | TurnError::NotStarted(_)
                | TurnError::CircuitOpen { .. }
                | TurnError::Storage(_)
                | TurnError::Internal(_) => Self::Error,
                TurnError::InvalidName(_)
                | TurnError::InvalidPrompt(_)
                | TurnError::InvalidModel { .. }
                | TurnError::InvalidMcpServers(_)
                | TurnError::PromptTooLarge { .. }
                | TurnError::SystemPromptTooLarge { .. }
                | TurnError::HistoryTooLarge { .. }
                | TurnError::QueueFull { .. }
                | TurnError::TooManySessions { .. }
                | TurnError::Overloaded { .. }
                | TurnError::Draining => Self::Rejected,
            },
        }
    }
}
