//! Types of a launch: what a child is started with, and why it may refuse.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::RawFlags;
use crate::config::{CliConfig, PermissionPolicy};
use crate::model::{CallerTool, Dirs};

/// Whether a child begins a conversation or resumes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchMode {
    /// Begins a conversation under the given id.
    New,
    /// Resumes the conversation of the given id.
    Resume,
}

/// Settings that hold for the life of a child. A change of any of them needs a restart between turns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LaunchSettings {
    /// Replaces the CLI's system prompt; empty is the same as none.
    pub(crate) system_prompt: Option<String>,
    /// MCP servers by name, in the CLI's format. May contain secrets.
    pub(crate) mcp_servers: serde_json::Map<String, serde_json::Value>,
    /// Model that serves while the first is overloaded.
    pub(crate) fallback_model: Option<String>,
    /// Policy for tools that need a permission, if stricter than the configured one.
    pub(crate) policy: Option<PermissionPolicy>,
    /// The CLI's own tools that exist; `None`: all that the configuration leaves.
    pub(crate) tools: Option<BTreeSet<String>>,
    /// Tools that the caller runs itself.
    pub(crate) caller_tools: Arc<[CallerTool]>,
    /// JSON Schema of the answers.
    pub(crate) output_schema: Option<serde_json::Value>,
    /// Additions of a client that speaks to the child itself.
    pub(crate) raw: RawFlags,
}

/// Cleanup of HOME before each start. Tools can write the CLI's files there, and the next child would obey some of them:
/// programs to start, permissions, the address of the API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HomeCleanup {
    /// Entries of HOME with this prefix are removed.
    pub(crate) removed_prefix: &'static str,
    /// Directory in HOME that is cleared.
    pub(crate) cleared_directory: &'static str,
    /// Entries of that directory that stay.
    pub(crate) kept: Vec<&'static str>,
}

/// Cleanup of TMPDIR before each start and at rest. What tools keep there stays.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TmpCleanup {
    /// Entry of TMPDIR that is removed.
    pub(crate) removed: &'static str,
    /// Prefix of the CLI's own directories in TMPDIR.
    pub(crate) own_prefix: &'static str,
    /// Entries of these with this prefix are removed.
    pub(crate) removed_prefix: &'static str,
    /// Directory of each conversation, two levels deeper, that is removed.
    pub(crate) removed_of_conversation: Option<&'static str>,
}

/// Input of a command line.
#[derive(Debug)]
pub(crate) struct LaunchPlan<'a> {
    /// Configured flags and switches.
    pub(crate) cli: &'a CliConfig,
    /// Directories of the child.
    pub(crate) dirs: &'a Dirs,
    /// Conversation id of the CLI.
    pub(crate) session_id: &'a str,
    /// New or resumed conversation.
    pub(crate) mode: LaunchMode,
    /// Requested model.
    pub(crate) model: Option<&'a str>,
    /// Settings for the life of the child.
    pub(crate) settings: &'a LaunchSettings,
    /// Maximum time for an MCP server to connect.
    pub(crate) mcp_timeout: Duration,
    /// Maximum time that the CLI waits for the result of a tool.
    pub(crate) tool_timeout: Duration,
    /// Whether the CLI repeats on its output what it writes to its transcript.
    pub(crate) mirrors: bool,
    /// Whether the CLI requests tool permissions over the protocol (policies `allow` and `ask`).
    pub(crate) asks_permission: bool,
}

/// Arguments and environment of a child. Arguments contain no secrets: every user of the machine can read them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// Arguments without the program name.
    pub(crate) args: Vec<OsString>,
    /// Additions to the clean environment. The caller sets HOME, TMPDIR and the configured variables.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Variables that follow from a configuration key. They override configured ones: no user variable can undo the key.
    pub(crate) enforced_env: Vec<(OsString, OsString)>,
}

/// Why a child exited before it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchRefusal {
    /// No conversation of this id exists.
    NoConversation,
    /// A conversation of this id exists already.
    IdInUse,
    /// This version cannot repeat its transcript ([`LaunchPlan::mirrors`]).
    NoMirror,
}
