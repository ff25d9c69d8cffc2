//! The tables, one per dialect.

use super::Fate::{Ignored, Refused, Unheeded, Used};
use super::{Fate, Field};
use crate::server::dialect::Dialect;

pub(super) fn of(dialect: Dialect) -> &'static [Field] {
    match dialect {
        Dialect::Legacy => LEGACY,
        Dialect::Anthropic => ANTHROPIC,
        Dialect::OpenAi => OPENAI,
        Dialect::Responses => RESPONSES,
    }
}

const fn field(
    name: &'static str,
    fate: Fate,
    harmless: &'static [&'static str],
    why: &'static str,
) -> Field {
    Field { name, fate, harmless, why }
}

const NO_SAMPLING: &str = "the CLI has no such setting";
const OWN_TOOLS: &str = "the CLI runs its own tools";
const OWN_REQUESTS: &str = "the CLI makes its own requests to the model's API";
const NO_FORCED_CALL: &str = "of an older form of tools: use `tool_choice`";
const ASKED_CALL: &str = "the model is asked to, and once more if it does not";
const FORMAT: &str = "the answer is one JSON document that matches the schema";

// Rows of several tables.
const MODEL: Field = field("model", Used, &[], "passed on to the CLI");
const MESSAGES: Field = field(
    "messages",
    Used,
    &[],
    "the last one goes to the child, earlier ones to a conversation without context",
);
const MCP_SERVERS: Field = field(
    "mcp_servers",
    Used,
    &[],
    "names of configured servers; definitions where `mcp.callers` allows them",
);
const TEMPERATURE: Field = field("temperature", Ignored, &[], NO_SAMPLING);
const TOP_P: Field = field("top_p", Ignored, &[], NO_SAMPLING);
const TOOLS: Field = field("tools", Used, &[], "offered to the model; a call ends the answer");

static LEGACY: &[Field] = &[
    MESSAGES,
    field("oauth_credentials", Used, &[], "written where the CLI reads them"),
    field("session_id", Used, &[], "names the conversation"),
    MODEL,
    field("fallback_model", Used, &[], "passed on to the CLI"),
    MCP_SERVERS,
    field("stream", Used, &[], "on `/v1/messages`; the other paths always stream"),
    field("include_files", Used, &[], "adds the files that the turn wrote"),
    field("thinking", Ignored, &["false"], "the CLI decides"),
];

static ANTHROPIC: &[Field] = &[
    MODEL,
    MESSAGES,
    field("system", Used, &[], "the session's system prompt, with `role: system` among the messages"),
    field("stream", Used, &[], "events instead of a document"),
    field("metadata", Used, &[], "see its fields"),
    field("metadata.user_id", Used, &[], "the user, where the key names none"),
    MCP_SERVERS,
    field("max_tokens", Unheeded, &[], "the CLI has no limit per request"),
    TEMPERATURE,
    TOP_P,
    field("top_k", Ignored, &[], NO_SAMPLING),
    field("stop_sequences", Ignored, &["[]"], NO_SAMPLING),
    field("thinking", Ignored, &[], "the CLI decides"),
    TOOLS,
    field("tool_choice", Used, &[], "see its fields"),
    field("tool_choice.type", Used, &[], ASKED_CALL),
    field("tool_choice.name", Used, &[], ASKED_CALL),
    field("tool_choice.disable_parallel_tool_use", Ignored, &["false"], OWN_REQUESTS),
    field("output_format", Used, &[], FORMAT),
    field("output_config", Ignored, &["{}"], "see its fields"),
    field("output_config.format", Used, &[], FORMAT),
    field("output_config.effort", Ignored, &[], NO_SAMPLING),
    field("output_config.task_budget", Ignored, &[], NO_SAMPLING),
    field("cache_control", Ignored, &[], "the CLI decides what is cached"),
    field("container", Ignored, &[], OWN_TOOLS),
    field("context_management", Ignored, &[], "the CLI keeps the context itself"),
    field("inference_geo", Refused, &["\"global\""], "where the model runs cannot be chosen here"),
    field("service_tier", Ignored, &["\"auto\""], NO_SAMPLING),
    field("speed", Ignored, &["\"standard\""], NO_SAMPLING),
    field("diagnostics", Ignored, &[], OWN_REQUESTS),
    field("fallback_credit_token", Ignored, &[], OWN_REQUESTS),
    field("fallbacks", Ignored, &["[]"], NO_SAMPLING),
    field(
        "compaction",
        Refused,
        &[],
        "the CLI compacts a conversation itself: the answer would be no summary",
    ),
    field(
        "thread",
        Refused,
        &[],
        "a conversation is named by `x-pilotlight-session`, not by the id of an answer; SDKs continue with whole histories",
    ),
    field(
        "billing_policy",
        Refused,
        &["{\"type\":\"billing_policy\"}", "{\"type\":\"billing_policy\",\"bill_to\":\"self\"}"],
        "the server's credentials decide who pays",
    ),
];

static OPENAI: &[Field] = &[
    MODEL,
    MESSAGES,
    field("stream", Used, &[], "chunks instead of a document"),
    field("stream_options", Used, &[], "see its fields"),
    field("stream_options.include_usage", Used, &[], "one more chunk with the tokens"),
    field("stream_options.include_obfuscation", Ignored, &["false"], "chunks are not padded"),
    field("user", Used, &[], "the user, where the key names none"),
    field("n", Used, &[], "must be 1"),
    field("max_tokens", Ignored, &[], "the CLI has no limit per request"),
    field("max_completion_tokens", Ignored, &[], "the CLI has no limit per request"),
    TEMPERATURE,
    TOP_P,
    field("stop", Ignored, &["[]"], NO_SAMPLING),
    field("seed", Ignored, &[], NO_SAMPLING),
    field("presence_penalty", Ignored, &[], NO_SAMPLING),
    field("frequency_penalty", Ignored, &[], NO_SAMPLING),
    field("logit_bias", Ignored, &["{}"], NO_SAMPLING),
    field("logprobs", Ignored, &["false"], NO_SAMPLING),
    field("top_logprobs", Ignored, &["0"], NO_SAMPLING),
    field("reasoning_effort", Ignored, &[], NO_SAMPLING),
    field("verbosity", Ignored, &[], NO_SAMPLING),
    field("prediction", Ignored, &[], NO_SAMPLING),
    TOOLS,
    field("tool_choice", Used, &[], ASKED_CALL),
    field("parallel_tool_calls", Ignored, &["true"], OWN_REQUESTS),
    field("functions", Ignored, &["[]"], OWN_TOOLS),
    field("function_call", Refused, &["\"auto\"", "\"none\""], NO_FORCED_CALL),
    field("web_search_options", Ignored, &[], OWN_TOOLS),
    field("response_format", Used, &[], FORMAT),
    field("modalities", Refused, &["[]", "[\"text\"]"], "answers are text"),
    field("audio", Refused, &[], "answers are text"),
    field("store", Ignored, &["false"], "nothing is stored beside the session"),
    field("metadata", Ignored, &["{}"], "nothing is stored beside the session"),
    field("service_tier", Ignored, &["\"auto\"", "\"default\""], NO_SAMPLING),
    field("prompt_cache_key", Ignored, &[], "the CLI decides what is cached"),
    field("prompt_cache_retention", Ignored, &[], "the CLI decides what is cached"),
    field("safety_identifier", Ignored, &[], "the model's API hears the CLI's own"),
    field("moderation", Refused, &[], "nothing is moderated here"),
    field("prompt_cache_options", Ignored, &[], "the CLI decides what is cached"),
];

static RESPONSES: &[Field] = &[
    MODEL,
    field(
        "input",
        Used,
        &[],
        "the last message goes to the child, earlier items to a conversation without context",
    ),
    field(
        "instructions",
        Used,
        &[],
        "the session's system prompt, with system and developer messages of the input",
    ),
    field("previous_response_id", Used, &[], "continues a stored response"),
    field("conversation", Used, &[], "names the conversation, as `x-pilotlight-session` does"),
    field("store", Used, &[], "`false` stores nothing that can be read or continued"),
    field("metadata", Used, &[], "comes back with the response"),
    field("stream", Used, &[], "events instead of a document"),
    field("stream_options", Used, &[], "see its fields"),
    field("stream_options.include_obfuscation", Ignored, &["false"], "events are not padded"),
    field("user", Used, &[], "the user, where the key names none"),
    field("background", Used, &[], "answered later: polled, followed and cancelled by its id"),
    field("max_output_tokens", Ignored, &[], "the CLI has no limit per request"),
    field("max_tool_calls", Ignored, &[], OWN_TOOLS),
    TEMPERATURE,
    TOP_P,
    field("top_logprobs", Ignored, &["0"], NO_SAMPLING),
    field("reasoning", Ignored, &["{}"], "the CLI decides"),
    field("text", Used, &[], "see its fields"),
    field("text.format", Used, &[], FORMAT),
    field("text.verbosity", Ignored, &[], NO_SAMPLING),
    TOOLS,
    field("tool_choice", Used, &[], ASKED_CALL),
    field("parallel_tool_calls", Ignored, &["true"], OWN_REQUESTS),
    field("include", Ignored, &["[]"], "the answer has all that there is"),
    field("truncation", Ignored, &["\"disabled\""], "the CLI keeps the context itself"),
    field("context_management", Ignored, &["[]"], "the CLI keeps the context itself"),
    field("prompt", Refused, &[], "no prompt templates are stored here"),
    field("service_tier", Ignored, &["\"auto\"", "\"default\""], NO_SAMPLING),
    field("prompt_cache_key", Ignored, &[], "the CLI decides what is cached"),
    field("prompt_cache_retention", Ignored, &[], "the CLI decides what is cached"),
    field("prompt_cache_options", Ignored, &[], "the CLI decides what is cached"),
    field("safety_identifier", Ignored, &[], "the model's API hears the CLI's own"),
    field("moderation", Refused, &[], "nothing is moderated here"),
    field("access_programs", Ignored, &[], OWN_REQUESTS),
    field("image", Ignored, &[], OWN_REQUESTS),
];
