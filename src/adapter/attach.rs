//! Types of an attached client: it speaks the CLI's own protocol to a child of its session.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::config::{PermissionPolicy, SlashCommands};
use crate::model::PermissionRequest;

/// What a client may use, beyond what the command line of its child enforces.
#[derive(Debug, Clone)]
pub(crate) struct AttachRules {
    /// Policy for tools that need a permission.
    pub(crate) policy: PermissionPolicy,
    /// Models that may be named; `None`: all.
    pub(crate) models: Option<BTreeSet<String>>,
    /// What becomes of text that is a command of the CLI.
    pub(crate) commands: SlashCommands,
    /// Maximum length of a user message.
    pub(crate) prompt_limit: usize,
}

/// Use of a flag of a client's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlagUse {
    /// Taken as it is.
    Used,
    /// Taken as far as the server's policies allow.
    Policy,
    /// Refused.
    Refused,
}

/// Additions to the command line of a child that a client speaks to itself. By default there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RawFlags {
    /// Further arguments. They contain no text of a user.
    pub(crate) args: Vec<String>,
    /// Tools that do not exist, beside the configured ones.
    pub(crate) disallowed: Vec<String>,
    /// The client reads the answer in pieces.
    pub(crate) partial: bool,
    /// The client reads its messages again.
    pub(crate) replay: bool,
}

/// A client's command line, read and judged.
#[derive(Debug)]
pub(crate) struct AttachRequest {
    /// Additions to the child's command line.
    pub(crate) flags: RawFlags,
    /// The model.
    pub(crate) model: Option<String>,
    /// Model that serves while the first is overloaded.
    pub(crate) fallback_model: Option<String>,
    /// The CLI's own tools that exist; `None`: all.
    pub(crate) tools: Option<BTreeSet<String>>,
    /// The conversation that the client means, by the CLI's id.
    pub(crate) conversation: Option<String>,
    /// What was left out, in a sentence each.
    pub(crate) notes: Vec<String>,
    /// Fields for the handshake.
    pub(crate) opening: serde_json::Map<String, serde_json::Value>,
    /// The client answers permission requests.
    pub(crate) asks: bool,
    /// Names of the MCP servers in the client's own process.
    pub(crate) own_servers: Vec<String>,
    /// Definitions of other MCP servers by name, in the CLI's own form. Not judged.
    pub(crate) servers: serde_json::Map<String, serde_json::Value>,
    /// Directories that the child may use beside its working directory. Not judged.
    pub(crate) directories: Vec<String>,
}

/// What becomes of a line of the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromClient {
    /// The child gets these lines.
    Pass {
        /// With their line ends.
        lines: Vec<Bytes>,
        /// The last is a user message.
        is_message: bool,
    },
    /// The client gets this line, and the child nothing.
    Reply(Bytes),
    /// Nothing.
    Drop,
    /// The child would end at it.
    Broken(&'static str),
}

/// What becomes of a line of the child.
#[derive(Debug, PartialEq)]
pub(crate) enum FromChild {
    /// The client gets it.
    Pass,
    /// It is not for the client.
    Drop,
    /// The server answers it.
    Permission(PermissionRequest),
}
