//! Encoding of a turn into the line that the CLI reads, within all limits.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::TurnError;
use crate::model::{History, Prompt, Role, is_model_name};
use crate::session::import::{first_line, within};
use crate::session::{env::Env, store::SettingsRecord};
use crate::turn::{Conversation, Earlier, Hold, TurnOptions};

/// A longer history is encoded on a thread for blocking work: a megabyte takes some milliseconds.
const ENCODE_INLINE_BYTES: usize = 256 << 10;

/// Checks and encodes a turn.
pub(super) async fn encode(
    env: &Arc<Env>,
    prompt: Prompt,
    options: TurnOptions,
    hold: Option<Hold>,
) -> Result<EncodedTurn, TurnError> {
    let is_long = options.history.as_ref().is_some_and(|history| history.bytes() > ENCODE_INLINE_BYTES);
    if !is_long {
        return EncodedTurn::encode(env, prompt, options, hold);
    }
    let env = env.clone();
    let encoded = tokio::task::spawn_blocking(move || EncodedTurn::encode(&env, prompt, options, hold));
    encoded.await.map_err(|_| TurnError::Internal("a turn could not be written"))?
}

/// A turn as it was asked for, serialised and checked.
#[derive(Clone)]
pub(super) struct EncodedTurn {
    pub(super) line: Bytes,
    /// For a conversation without context.
    pub(super) earlier: Option<Earlier>,
    pub(super) hold: Option<Hold>,
    pub(super) settings: SettingsRecord,
}

impl EncodedTurn {
    fn encode(
        env: &Env,
        prompt: Prompt,
        options: TurnOptions,
        hold: Option<Hold>,
    ) -> Result<Self, TurnError> {
        let config = &env.config;
        let limit = config.session.prompt_limit;
        let limit_of_history = config.session.history_limit;
        if let Some(bytes) = options.history.as_ref().map(History::bytes).filter(|it| *it > limit_of_history)
        {
            return Err(TurnError::HistoryTooLarge { bytes, limit: limit_of_history });
        }
        let limit_of_system = config.session.system_prompt_limit;
        if let Some(bytes) =
            options.system_prompt.as_ref().map(String::len).filter(|it| *it > limit_of_system)
        {
            return Err(TurnError::SystemPromptTooLarge { bytes, limit: limit_of_system });
        }
        let line = within(env.adapter.encode_turn(&prompt, &config.cli)?, limit)?;
        for (option, name) in [("model", &options.model), ("fallback_model", &options.fallback_model)] {
            // The empty name takes a former fallback back.
            let is_name = |name: &str| is_model_name(name) || (option == "fallback_model" && name.is_empty());
            if name.as_deref().is_some_and(|name| !is_name(name)) {
                return Err(TurnError::InvalidModel { option });
            }
        }
        let servers = options.mcp_servers.as_ref();
        if let Some(problem) = servers.and_then(|servers| servers.problem(&config.mcp)) {
            return Err(TurnError::InvalidMcpServers(problem));
        }
        let settings = SettingsRecord {
            model: options.model,
            system_prompt: options.system_prompt,
            fallback_model: options.fallback_model,
            mcp_servers: options.mcp_servers,
            // The session's actor knows.
            own_credentials: false,
        };
        let history = options.history.filter(|history| !history.is_empty());
        let earlier = history.map(|history| {
            let conversation = Conversation { history, prompt };
            if conversation.history.messages().iter().any(|message| message.role == Role::Assistant) {
                Earlier::Conversation(Arc::new(conversation))
            } else {
                Earlier::Unanswered(first_line(env, &conversation, false))
            }
        });
        Ok(Self { line, earlier, hold, settings })
    }
}
