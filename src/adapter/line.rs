//! Types of output lines.

use crate::model::{Failure, PermissionRequest, Usage};

/// Kind of an output line, found from its first bytes. The line itself is forwarded unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineKind {
    /// Message of the running turn, for its reader.
    Message {
        /// Whether the model works on the prompt. `false` for messages before that: a turn that ends with them may be
        /// retried with another child.
        substantial: bool,
        /// Whether the transcript keeps this message ([`super::checkpoint`]).
        checkpoint: bool,
    },
    /// First message of a turn, for its reader. [`super::announced_model`] reads it.
    Announcement,
    /// Last line of a turn. [`super::terminal`] reads it.
    Terminal,
    /// Response to a control request of the host. [`super::control_response`] reads it.
    ControlResponse,
    /// Control request of the CLI. [`super::host_request`] reads it.
    HostRequest,
    /// Cancels a control request of the CLI. [`super::cancelled_request`] reads it.
    Cancelled,
    /// Message of the running turn about a background task, for its reader. [`super::task`] reads it.
    Task,
    /// Repeats a user message when the CLI begins it. [`super::echo`] reads it.
    Echo,
    /// The CLI is busy. Not forwarded.
    Working,
    /// The CLI waits for input. Not forwarded.
    Waiting,
    /// Repeats what the CLI has written to a transcript. Not forwarded.
    Mirror,
    /// A note of the CLI about itself.
    Notice(Notice),
    /// Not a line of the protocol.
    Malformed,
}

/// What the CLI says about itself; each is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// It could not write all of its transcript.
    WritesLost,
    /// It is about to end: it takes no turn any more.
    ShuttingDown,
    /// It ended the running turn for a message that follows.
    TurnPreempted,
    /// A permission came too late for the tool that asked.
    LateAllow,
    /// A control request is being worked on.
    RequestProgress,
}

/// Content of the last line of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Terminal {
    /// The CLI began this turn by itself: no user message asked for it.
    pub(crate) unsolicited: bool,
    /// Conversation id from now on: a command in the text may change it.
    pub(crate) session_id: Option<String>,
    /// Final text.
    pub(crate) text: String,
    /// Why the turn failed.
    pub(crate) failure: Option<Failure>,
    /// Why the model stopped.
    pub(crate) stop_reason: Option<String>,
    /// Tokens of this turn.
    pub(crate) usage: Usage,
    /// Cost in US dollars of all turns of this process; some versions include earlier processes.
    pub(crate) cumulative_cost_usd: f64,
    /// Cost in US dollars since the last such line, if the CLI reports it.
    pub(crate) cost_usd: Option<f64>,
    /// Tokens or a cost were implausible, and count as 0.
    pub(crate) implausible: bool,
    /// No later turn of this process can succeed; it needs a restart.
    pub(crate) process_exhausted: bool,
}

/// Response to a control request of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlResponse {
    /// Id of the request.
    pub(crate) request_id: String,
    /// Error text, if the CLI refused.
    pub(crate) error: Option<String>,
}

/// Control request of the CLI, which waits for the response.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum HostRequest {
    /// Asks for permission to use a tool, or asks the user something.
    Permission(PermissionRequest),
    /// Asks for something of the caller's tools.
    Tools {
        /// Id of the request.
        request_id: String,
        /// Id of the message in it; null for a notification.
        message_id: serde_json::Value,
        /// What it asks for.
        asked: McpMessage,
    },
    /// Asks for a feature that this host lacks. The response is an error: without a response the turn hangs.
    Unsupported {
        /// Id of the request.
        request_id: String,
        /// Name of the feature, for the error text.
        what: String,
    },
}

/// What the CLI asks the server of the caller's tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum McpMessage {
    /// To introduce itself, in this version of the protocol.
    Initialize {
        /// As the CLI names it.
        version: String,
    },
    /// For the list of tools.
    List,
    /// For the result of the model's call of this id.
    Call {
        /// The id; empty if the CLI names none.
        id: String,
    },
    /// For a sign of life.
    Ping,
    /// For nothing.
    Notification,
    /// For something that there is not.
    Unknown,
}

/// Begin or end of one message of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageEdge {
    /// The model begins to answer.
    Begin,
    /// It has written these tokens.
    End(Usage),
}

/// What a line of the conversation says about tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ToolEdge {
    /// The model calls one.
    Call,
    /// One has ended.
    Result,
    /// The model says something else.
    Text,
}

/// Background task, which may outlast its turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// The task of this id began.
    Began(String),
    /// The task of this id ended.
    Ended(String),
}
