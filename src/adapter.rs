//! Protocol of the command-line agent.
//!
//! The functions and types listed here are the only code with knowledge of one CLI: its command line, its input and output
//! lines, its files. They have no state, start no process and read no clock; all are pure, except for those that read the
//! transcript. Everything outside handles turns, messages and terminal lines, and never a name of one CLI's protocol.
//!
//! A second CLI is a sibling of `claude` with the same functions. `CliConfig` then names the CLI, and each function of the
//! list becomes a `match` on it; callers that have no `CliConfig` at hand get that value as an argument.

use std::fmt::Debug;

pub(crate) use attach::{AttachRequest, AttachRules, FlagUse, FromChild, FromClient, RawFlags};
pub(crate) use claude::Gate;
#[cfg(feature = "server")]
pub(crate) use claude::parse_attach;
#[cfg(feature = "server")]
pub(crate) use claude::{AnswerReader, answers_problem, mcp_server_of};
pub(crate) use claude::{
    CALLER_SERVER, CONTINUATION, FIXED_VARIABLES, announced_model, as_called, call_response,
    cancelled_request, checkpoint, classify, command, compaction_note, compaction_request, config_dir,
    context_request, context_usage, control_response, credentials_file, cut, echo, encode_credentials,
    encode_first_turn, encode_turn, entries_after, handshake, home_cleanup, host_request, import, interrupt,
    is_block_delta, is_judged, is_streamed, last_usage, launch_refusal, mcp_servers, message_edge, messages,
    mirrors_conversation, permission_response, ping, reconnect_server, replace_servers, restore,
    server_statuses, snapshot, steering_message, steering_record, stored_credentials, task, terminal,
    text_delta, tmp_cleanup, tool_calls, tool_edge, tools_called, tools_ended, tools_response,
    transcript_end, transcript_gap, transcript_path, unconnected, unsupported_response,
    variable_beside_oauth, was_withdrawn, with_message_id, withdraw_message,
};
#[cfg(feature = "broker")]
pub(crate) use claude::{
    ModelList, TOKEN_URL, api_call, brokered, error_body, list_price, oauth_credentials, refresh_request,
    refreshed, usage_reader,
};
pub(crate) use launch::{
    CommandLine, HomeCleanup, LaunchMode, LaunchPlan, LaunchRefusal, LaunchSettings, TmpCleanup,
};
pub(crate) use line::{
    ControlResponse, HostRequest, LineKind, McpMessage, MessageEdge, Notice, Task, Terminal, ToolEdge,
};

#[cfg(feature = "server")]
pub(crate) mod answer;
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only the server attaches clients"))]
mod attach;
#[cfg(feature = "broker")]
pub(crate) mod broker;
mod claude;
mod launch;
mod line;

/// A piece of a conversation that a journal keeps. Pieces are in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept<'a> {
    /// A line of a transcript.
    Entry(&'a [u8]),
    /// A [`LineKind::Mirror`].
    Mirrored(&'a [u8]),
    /// The message of a turn, as it was sent.
    Prompt(&'a [u8]),
    /// A line of a turn that the transcript keeps ([`checkpoint`]).
    Line(&'a [u8]),
    /// A turn ended; with this checkpoint, if there is one.
    Checkpoint(Option<&'a str>),
}

/// Transcript of an imported or restored conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    /// Content of the file.
    pub(crate) transcript: Vec<u8>,
    /// [`checkpoint`] of its last line.
    pub(crate) last: String,
}

/// A conversation up to one of its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Its transcript.
    pub(crate) import: Import,
    /// Messages of the user in it, at least 1.
    pub(crate) turns: u64,
    /// The [`transcript_gap`] that it has, as the original does.
    pub(crate) known_gap: Option<String>,
}

/// What a line says about a compaction that the host asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CompactionNote {
    /// The conversation is compacted.
    Done {
        /// Tokens of the conversation before.
        tokens_before: Option<u64>,
        /// Tokens of what it was replaced by.
        tokens_after: Option<u64>,
    },
    /// The conversation is too short.
    NothingToDo,
    /// It failed, for this reason.
    Failed(String),
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
