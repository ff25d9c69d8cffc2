//! The compaction of a conversation at the host's request: the message that asks for it, and what the CLI says about it.
//! Pure.
//!
//! Versions 2.1.197 and 2.1.332 run `/compact` as a turn. Its `result` is a success without text, also after a failure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::prompt::encode_turn;
use crate::adapter::CompactionNote;
use crate::config::SlashCommands;
use crate::model::{Prompt, PromptRefused};

/// The message that asks for a compaction.
///
/// # Errors
/// None: the text is no user's.
pub(crate) fn compaction_request() -> Result<Vec<u8>, PromptRefused> {
    encode_turn(&Prompt::Text("/compact".to_owned()), SlashCommands::Pass)
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    subtype: Option<Cow<'a, str>>,
    compact_metadata: Option<Metadata>,
    compact_error: Option<String>,
    message: Option<Message>,
}

#[derive(Deserialize)]
struct Metadata {
    pre_tokens: Option<u64>,
    post_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    content: Option<Value>,
}

/// What a line of the turn says about the compaction.
pub(crate) fn compaction_note(line: &[u8]) -> Option<CompactionNote> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    match (line.r#type.as_ref(), line.subtype.as_deref()) {
        ("system", Some("compact_boundary")) => {
            let found = line.compact_metadata;
            let (before, after) = found.map_or((None, None), |found| (found.pre_tokens, found.post_tokens));
            Some(CompactionNote::Done { tokens_before: before, tokens_after: after })
        }
        ("system", Some("status")) => line.compact_error.map(CompactionNote::Failed),
        ("assistant", _) => {
            let message = line.message.filter(|it| it.model.as_deref() == Some("<synthetic>"))?;
            let text = message.content?.get(0)?.get("text")?.as_str()?.to_owned();
            // Versions word it in their own ways.
            let is_empty =
                text.contains("No messages to compact") || text.contains("Not enough messages to compact");
            Some(if is_empty { CompactionNote::NothingToDo } else { CompactionNote::Failed(text) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Lines of 2.1.197 and 2.1.332.
    #[test]
    fn notes_are_read() {
        let note = |line: Value| compaction_note(line.to_string().as_bytes());
        let failed = |text: &str| Some(CompactionNote::Failed(text.to_owned()));
        let said = |model: &str, text: &str| json!({"type": "assistant", "message": {"model": model, "content": [{"type": "text", "text": text}]}});
        let boundary = json!({"type": "system", "subtype": "compact_boundary",
            "compact_metadata": {"trigger": "manual", "pre_tokens": 17, "post_tokens": 570}});
        let done = CompactionNote::Done { tokens_before: Some(17), tokens_after: Some(570) };
        assert_eq!(note(boundary), Some(done));
        let bare = json!({"type": "system", "subtype": "compact_boundary"});
        assert_eq!(note(bare), Some(CompactionNote::Done { tokens_before: None, tokens_after: None }));
        let status = json!({"type": "system", "subtype": "status", "status": null, "compact_result": "failed",
            "compact_error": "Error during compaction: API Error: 529"});
        assert_eq!(note(status), failed("Error during compaction: API Error: 529"));
        let success = json!({"type": "system", "subtype": "status", "compact_result": "success"});
        assert_eq!(note(success), None);
        assert_eq!(
            note(said("<synthetic>", "Error: No messages to compact")),
            Some(CompactionNote::NothingToDo)
        );
        let inert = "/compact isn't available in this environment.";
        assert_eq!(note(said("<synthetic>", inert)), failed(inert));
        assert_eq!(note(said("claude-x", "text")), None);
        assert_eq!(compaction_note(b"garbage"), None);
    }

    #[test]
    fn request_is_the_command() {
        let line: Value = serde_json::from_slice(&compaction_request().unwrap()).unwrap();
        assert_eq!(line["message"]["content"], "/compact");
    }
}
