//! The adapter for `claude`, 1.0 and later (stream-json over stdin and stdout).
//!
//! Command line: `launch`, `tools`, `home`, `judged`. Input lines: `control`, `prompt`. Output lines: `classify`, `fields`, `tail`, `read`,
//! `delta`, `terminal`, `tool_runs`, `answer`. Both: `caller_tools`, `attach`. Files: `transcript`, `import`, `credentials`. The API: `broker`. No other module names a message, a flag
//! or a file of this CLI.

#[cfg(feature = "server")]
pub(crate) use answer::AnswerReader;
pub(crate) use attach::Gate;
#[cfg(feature = "server")]
pub(crate) use attach::parse as parse_attach;
#[cfg(feature = "broker")]
pub(crate) use broker::{
    ModelList, TOKEN_URL, api_call, brokered, error_body, list_price, refresh_request, refreshed,
    usage_reader,
};
pub(crate) use caller_tools::{
    CALLER_SERVER, CONTINUATION, as_called, call_response, message_edge, tool_calls, tools_response,
};
pub(crate) use classify::{classify, is_block_delta, is_streamed, mirrors_conversation};
pub(crate) use compaction::{compaction_note, compaction_request};
pub(crate) use context::{context_request, context_usage};
pub(crate) use control::{handshake, interrupt, mcp_servers, ping, unsupported_response};
#[cfg(feature = "broker")]
pub(crate) use credentials::oauth_credentials;
pub(crate) use credentials::{
    credentials_file, encode_credentials, stored_credentials, variable_beside_oauth,
};
pub(crate) use home::{home_cleanup, tmp_cleanup};
pub(crate) use import::{encode_first_turn, import};
pub(crate) use judged::is_judged;
pub(crate) use launch::{command, launch_refusal};
pub(crate) use prompt::{encode_turn, with_message_id};
#[cfg(feature = "server")]
pub(crate) use questions::answers_problem;
pub(crate) use questions::permission_response;
pub(crate) use read::{
    announced_model, cancelled_request, checkpoint, control_response, echo, host_request, task, text_delta,
};
pub(crate) use servers::{reconnect_server, replace_servers, server_statuses, unconnected};
pub(crate) use steering::{steering_message, steering_record, tool_edge, was_withdrawn, withdraw_message};
pub(crate) use terminal::terminal;
pub(crate) use tool_runs::{tools_called, tools_ended};
#[cfg(feature = "server")]
pub(crate) use tools::mcp_server_of;
pub(crate) use transcript::{
    FIXED_VARIABLES, config_dir, cut, entries_after, last_usage, messages, restore, snapshot, transcript_end,
    transcript_gap, transcript_path,
};

mod amounts;
#[cfg(feature = "server")]
mod answer;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, unused_imports, reason = "only the server attaches clients")
)]
mod attach;
#[cfg(feature = "broker")]
mod broker;
mod caller_tools;
mod classify;
mod compaction;
mod context;
mod control;
mod credentials;
mod delta;
mod fields;
mod home;
mod import;
mod judged;
mod launch;
mod prompt;
mod questions;
mod read;
#[cfg(test)]
mod recordings;
mod servers;
mod steering;
mod tail;
mod terminal;
mod tool_runs;
mod tools;
mod transcript;
