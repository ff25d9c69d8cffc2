//! Labels: one enum per label, whose variants are its values.

use pilotlight_shim::report::KillMethod;

use crate::config::Rung;
use crate::error::{StartFailure, TurnError};
use crate::model::SessionState;

/// Label: its name, and its values in the order of the variants.
pub(crate) trait Label: Copy {
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
            /// Value of the label.
            #[allow(dead_code, reason = "some labels appear in metrics only")]
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }

            /// Variant of a value.
            #[allow(dead_code, reason = "few labels are looked up by value")]
            pub(crate) fn named(value: &str) -> Option<Self> {
                match value { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    )+};
}

labels! {
    /// Reason why a child did not start.
    SpawnReason, "reason": None = "none", NotFound = "not_found", UnjudgedVersion = "unjudged_version", Eacces = "eacces", Enoexec = "enoexec",
        Eagain = "eagain", Enomem = "enomem", Emfile = "emfile", Isolation = "isolation", Fenced = "fenced", StartTimeout = "start_timeout",
        Handshake = "handshake", ExitedEarly = "exited_early", Other = "other";
    /// Phase of a start.
    SpawnPhase, "phase": Exec = "exec", Ready = "ready";
    /// Reason for the end of a child.
    ExitReason, "reason": Clean = "clean", Crash = "crash", Signal = "signal", Oom = "oom", Hang = "hang",
        Protocol = "protocol", MemoryLimit = "memory_limit", WorkspaceLimit = "workspace_limit", Fenced = "fenced", Evicted = "evicted", Drain = "drain", StatusUnknown = "status_unknown";
    /// Cause of a restart.
    RestartCause, "cause": Crash = "crash", Hang = "hang", Protocol = "protocol", NotStarted = "not_started";
    /// Reason for an eviction.
    EvictionReason, "reason": Idle = "idle", Memory = "memory", Capacity = "capacity", Admin = "admin";
    /// Reason for a deletion by the retention rules.
    RetentionReason, "reason": Idle = "idle", Sessions = "sessions", Bytes = "bytes";
    /// Part of the file system of the data directory.
    DiskSpace, "space": Used = "used", Free = "free";
    /// Phase of a spare.
    SpareState, "state": Warming = "warming", Ready = "ready";
    /// What a session that begins got of the spares.
    ToolWaitEnd, "end": Answered = "answered", Message = "message", Interrupted = "interrupted", Expired = "expired", Stopped = "stopped";
    SpareClaim, "result": Claimed = "claimed", Missed = "missed", Unfit = "unfit";
    /// Reason for the end of a spare that served no session.
    SpareEnd, "reason": Room = "room", Memory = "memory", Surplus = "surplus", Age = "age", Outdated = "outdated",
        Unclaimed = "unclaimed", NotStarted = "not_started", Died = "died", Hung = "hung", Drain = "drain";
    /// Extent of a loss of context.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    ContextLost, "kind": Conversation = "conversation", LatestTurns = "latest_turns";
    /// What a conversation was restored from: the rest of the transcript with the journal, or the journal alone.
    RecoverySource, "source": Merged = "merged", Journal = "journal";
    /// Why a journal did not keep a turn at once, or begins again.
    JournalError, "reason": Write = "write", Sync = "sync", Full = "full", Memory = "memory", Broken = "broken";
    /// What the CLI says about itself.
    CliNotice, "kind": WritesLost = "session_writes_lost", ShuttingDown = "worker_shutting_down",
        TurnPreempted = "turn_preempted", LateAllow = "late_allow_not_run", RequestProgress = "control_request_progress";
    /// Outcome of a turn.
    TurnOutcome, "outcome": Ok = "ok", Error = "error", Timeout = "timeout", Cancelled = "cancelled",
        SessionLost = "session_lost", MemoryLimit = "memory_limit", WorkspaceLimit = "workspace_limit", Rejected = "rejected";
    /// State of the child when a turn was accepted.
    FirstOutput, "start": Warm = "warm", Cold = "cold";
    /// Exhausted resource.
    AdmissionRejected, "reason": QueueFull = "queue_full", Deadline = "deadline", Memory = "memory", Fds = "fds",
        Processes = "processes",
        Draining = "draining", PerUser = "per_user";
    /// Detector of a hang.
    HangDetector, "detector": Ping = "ping", Stopped = "stopped", StdinStall = "stdin_stall",
        NoProgress = "no_progress";
    /// Step of the stop sequence.
    StopStep, "step": Interrupt = "interrupt", StdinClose = "stdin_close", Term = "term", TreeKill = "tree_kill";
    /// Manner in which a child stopped.
    StopHow, "how": Orderly = "orderly", Killed = "killed";
    /// Kind of a protocol violation.
    ProtocolError, "kind": BadJson = "bad_json", LineTooLong = "line_too_long", UnknownId = "unknown_id",
        PartialEof = "partial_eof", ImplausibleUsage = "implausible_usage";
    /// Stream of a child.
    Stream, "stream": Stdin = "stdin", Stdout = "stdout", Stderr = "stderr";
    /// Kind of an actor.
    ActorKind, "actor": Supervisor = "supervisor", Session = "session", Idle = "idle", Sampler = "sampler";
    /// Source of a measurement.
    SampleSource, "source": Process = "process", Host = "host";
    /// Kind of memory. File pages are shared by all children and counted once per host.
    MemoryKind, "kind": Anon = "anon", Shmem = "shmem", Swap = "swap", SharedFile = "shared_file";
    /// Kind of a process.
    ProcessKind, "kind": Cli = "cli", Shim = "shim", Descendant = "descendant";
    /// Kind of a token.
    TokenKind, "kind": Input = "input", Output = "output", CacheRead = "cache_read",
        CacheCreation = "cache_creation";
    /// Model family. Model names are chosen by callers and too many for a label.
    ModelClass, "model": Opus = "opus", Sonnet = "sonnet", Haiku = "haiku", Default = "default", Other = "other";
    /// Status of a response of the model's API. `429` and `529` are limits of the account and of the API; `none` is a request
    /// without a response.
    UpstreamStatus, "status": Served = "2xx", Redirected = "3xx", Refused = "4xx", Limited = "429",
        Failed = "5xx", Overloaded = "529", Missing = "none";
    /// Reason why the broker refused a request of a child.
    BrokerRefusal, "reason": Token = "token", Path = "path", Malformed = "malformed", TooLarge = "too_large",
        Slow = "slow", SpendLimit = "spend_limit", Model = "model", Overloaded = "overloaded", Credentials = "credentials",
        Unreachable = "unreachable", Redirect = "redirect", Egress = "egress", Address = "address";
    /// Outcome of a connection through the egress proxy.
    EgressOutcome, "outcome": Connected = "connected", NotAllowed = "not_allowed", Address = "address",
        Failed = "failed";
    /// Direction of a byte through the egress proxy, as seen by the child.
    EgressDirection, "direction": Sent = "sent", Received = "received";
    /// Outcome of the renewal of OAuth tokens.
    RefreshOutcome, "outcome": Renewed = "renewed", Rejected = "rejected", Failed = "failed";
    /// Result of a claim of a user in the cluster.
    ClaimResult, "result": Won = "won", Owned = "owned", Failed = "failed";
    /// Result of a commit: changes of a user on their way to the store.
    CommitResult, "result": Done = "done", Fenced = "fenced", Late = "late", Failed = "failed";
    /// Result of a request that was sent to another node.
    ForwardResult, "result": Answered = "answered", Unreached = "unreached", Lost = "lost";
    /// Resource whose pressure the kernel reports.
    Resource, "resource": Cpu = "cpu", Memory = "memory", Io = "io";
}

#[cfg(feature = "server")]
labels! {
    /// Route of a request.
    Route, "route": Messages = "messages", Keepalive = "keepalive", Chat = "chat", Responses = "responses",
        StoredResponses = "stored_responses", CountTokens = "count_tokens",
        Models = "models", Sessions = "sessions", Workspace = "workspace", Stats = "stats", Health = "health",
        Metrics = "metrics", Page = "page", Unknown = "unknown";
    /// Reason why a client could not attach.
    AttachRefusal, "reason": Peer = "peer", Connections = "connections", Malformed = "malformed", Caller = "caller",
        Limit = "limit", Flags = "flags", Session = "session", Server = "server";
    /// Class of a response status.
    StatusClass, "status": Served = "2xx", Refused = "4xx", Failed = "5xx";
    /// Dialect of a request for a turn.
    Dialect, "dialect": Anthropic = "anthropic", OpenAi = "openai", Original = "original",
        Responses = "responses";
    /// Reason for a refusal of a caller.
    AuthFailure, "reason": MissingKey = "missing_key", InvalidKey = "invalid_key", AmbiguousKey = "ambiguous_key",
        AdminOnly = "admin_only", BrowserRefused = "browser_refused", HostRefused = "host_refused",
        NotAllowed = "not_allowed";
    /// Limit that refused a request.
    HttpLimit, "limit": Requests = "requests", NewUsers = "new_users", Turns = "turns",
        Connections = "connections";
    /// Outcome of an attempt to deliver a webhook.
    WebhookAttempt, "outcome": Delivered = "delivered", Refused = "refused", Unreachable = "unreachable",
        Timeout = "timeout";
    /// Reason why a webhook was not delivered.
    WebhookDrop, "reason": QueueFull = "queue_full", Attempts = "attempts", Gone = "gone", Missed = "missed",
        Shutdown = "shutdown";
    /// Why a line of the audit log was lost.
    AuditLoss, "reason": QueueFull = "queue_full", Write = "write";
    /// What became of a request to reload the configuration.
    Reload, "outcome": Applied = "applied", Invalid = "invalid";
    /// Kind of a request.
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

impl Label for KillMethod {
    const KEY: &'static str = "rung";
    const VALUES: &'static [&'static str] =
        &[Self::Namespace.as_str(), Self::Cgroup.as_str(), Self::Walk.as_str(), Self::Marker.as_str()];
    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Rung {
    const KEY: &'static str = "rung";
    const VALUES: &'static [&'static str] = &[
        Self::Landlock.as_str(),
        Self::Seccomp.as_str(),
        Self::Namespaces.as_str(),
        Self::Uid.as_str(),
        Self::Cgroup.as_str(),
    ];
    fn index(self) -> usize {
        self as usize
    }
}

impl ModelClass {
    /// Family of a requested model. No name stands for the default of the CLI.
    pub(crate) fn of(model: Option<&str>) -> Self {
        let Some(name) = model else { return Self::Default };
        let families = [Self::Opus, Self::Sonnet, Self::Haiku, Self::Default];
        families.into_iter().find(|family| name.contains(family.as_str())).unwrap_or(Self::Other)
    }
}

impl From<&TurnError> for TurnOutcome {
    fn from(error: &TurnError) -> Self {
        match error {
            TurnError::TimedOut { .. } => Self::Timeout,
            TurnError::Cancelled => Self::Cancelled,
            TurnError::SessionLost(_) | TurnError::NodeFenced { in_turn: true } => Self::SessionLost,
            TurnError::MemoryLimit { .. } => Self::MemoryLimit,
            TurnError::WorkspaceLimit { .. } => Self::WorkspaceLimit,
            TurnError::LineTooLong { .. }
            | TurnError::NotStarted(_)
            | TurnError::CircuitOpen { .. }
            | TurnError::CompactFailed { .. }
            | TurnError::NotReplicated { .. }
            | TurnError::Storage(_)
            | TurnError::Internal(_) => Self::Error,
            TurnError::InvalidName(_)
            | TurnError::InvalidPrompt(_)
            | TurnError::InvalidModel { .. }
            | TurnError::InvalidMcpServers(_)
            | TurnError::PromptTooLarge { .. }
            | TurnError::SystemPromptTooLarge { .. }
            | TurnError::HistoryTooLarge { .. }
            | TurnError::InvalidTools(_)
            | TurnError::ToolsTooLarge { .. }
            | TurnError::QueueFull { .. }
            | TurnError::TooManySessions { .. }
            | TurnError::SpendLimit { .. }
            | TurnError::SessionBusy
            | TurnError::Overtaken
            | TurnError::SessionExists
            | TurnError::MessageNotFound
            | TurnError::NothingToCompact
            | TurnError::NoConversation
            | TurnError::UserDeleted
            | TurnError::SessionDeleted
            | TurnError::Overloaded { .. }
            | TurnError::NoUserId { .. }
            | TurnError::Moved
            | TurnError::NotDeleted
            | TurnError::NodeFenced { in_turn: false }
            | TurnError::Draining => Self::Rejected,
        }
    }
}

impl From<&StartFailure> for SpawnReason {
    fn from(failure: &StartFailure) -> Self {
        Self::named(failure.reason()).unwrap_or(Self::Other)
    }
}
