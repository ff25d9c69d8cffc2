//! Transcript files: their paths and their content.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::command::text_of;

/// Maximum length of a project folder's name; a hash replaces the rest.
const MAX_FOLDER_NAME: usize = 200;

/// Start of the note after an interrupted answer.
pub(crate) const INTERRUPTED: &str = "[Request interrupted by user";

/// Folder of all conversations with this working directory.
pub(crate) fn project_dir(cwd: &str) -> PathBuf {
    let root = match std::env::var_os("CLAUDE_CONFIG_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        // Without HOME claude reads the user database; the simulation uses `/`.
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".claude"),
    };
    root.join("projects").join(folder_name(cwd))
}

/// Replaces all characters but letters and digits by dashes. As in claude, two directories may share a folder.
/// The hash of long names differs from claude's.
fn folder_name(cwd: &str) -> String {
    let dashed = |character: char| {
        // A character outside of the basic plane is two UTF-16 units in JavaScript, hence two dashes.
        let dashes = if character.len_utf16() == 2 { "--" } else { "-" };
        if character.is_ascii_alphanumeric() { character.to_string() } else { dashes.to_owned() }
    };
    let name: String = cwd.chars().map(dashed).collect();
    if name.len() <= MAX_FOLDER_NAME {
        return name;
    }
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in cwd.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let cut: String = name.chars().take(MAX_FOLDER_NAME).collect();
    format!("{cut}-{hash:x}")
}

/// A text of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserText {
    pub(crate) text: String,
    /// False for a text that joined a running turn.
    pub(crate) own_turn: bool,
}

/// The content of a transcript.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) user_texts: Vec<UserText>,
    /// Ids of messages that must not be answered again.
    pub(crate) seen: HashSet<String>,
    /// The last entry, parent of the next.
    pub(crate) leaf: Option<String>,
    pub(crate) model: Option<String>,
}

/// Reads a transcript; `None` without a conversation. Unreadable lines are skipped, because SIGKILL may cut the last one.
pub(crate) fn read(path: &Path) -> Option<History> {
    let bytes = std::fs::read(path).ok()?;
    history(&entries(&bytes))
}

/// Role and content of each message of a transcript.
pub(crate) fn messages(path: &Path) -> Value {
    let entries = std::fs::read(path).map(|bytes| entries(&bytes)).unwrap_or_default();
    let branch = branch(&entries).map(|(_, branch)| branch).unwrap_or_default();
    let messages = branch.iter().filter_map(|entry| entry.get("message"));
    let plain = messages.map(|message| {
        let part = |key: &str| message.get(key).cloned().unwrap_or_default();
        serde_json::json!({ "role": part("role"), "content": part("content") })
    });
    plain.collect()
}

fn entries(bytes: &[u8]) -> Vec<Value> {
    bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn text(entry: &Value, key: &str) -> Option<String> {
    entry.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// The last entry and its ancestors, oldest first.
fn branch(entries: &[Value]) -> Option<(String, Vec<&Value>)> {
    let by_id: HashMap<String, &Value> =
        entries.iter().filter_map(|entry| text(entry, "uuid").map(|id| (id, entry))).collect();
    // Two concurrent writers make a tree; the conversation is the branch of the last entry.
    let leaf = entries.iter().rev().find_map(|entry| text(entry, "uuid"))?;
    let mut branch = Vec::new();
    let mut next = Some(leaf.clone());
    while let Some(entry) = next.as_ref().and_then(|id| by_id.get(id)) {
        branch.push(*entry);
        next = text(entry, "parentUuid");
        if branch.len() > entries.len() {
            // A cycle: not a transcript.
            return None;
        }
    }
    branch.reverse();
    Some((leaf, branch))
}

fn history(entries: &[Value]) -> Option<History> {
    let (leaf, branch) = branch(entries)?;
    let mut history = History { leaf: Some(leaf), ..History::default() };
    history.seen = entries
        .iter()
        .filter(|entry| matches!(text(entry, "type").as_deref(), Some("user" | "attachment")))
        .filter_map(|entry| text(entry, "uuid"))
        .collect();
    for entry in branch {
        let message = entry.get("message").unwrap_or(&Value::Null);
        match text(entry, "type").as_deref() {
            Some("user") => history.user_texts.extend(user_text(entry, message)),
            Some("attachment") => {
                let prompt = entry.pointer("/attachment/prompt").and_then(Value::as_str);
                history
                    .user_texts
                    .extend(prompt.map(|text| UserText { text: text.to_owned(), own_turn: false }));
            }
            Some("assistant") => {
                let model = message.get("model").and_then(Value::as_str);
                history.model = model.filter(|m| *m != "<synthetic>").map(str::to_owned).or(history.model);
            }
            _ => {}
        }
    }
    Some(history)
}

/// The user's text in an entry; `None` for tool results and notes of claude.
fn user_text(entry: &Value, message: &Value) -> Option<UserText> {
    if ["isMeta", "isSynthetic", "isCompactSummary"].iter().any(|flag| entry.get(*flag).is_some()) {
        return None;
    }
    let text = match message.get("content")? {
        Value::String(text) => text.clone(),
        Value::Array(blocks) if blocks.iter().any(|block| block.get("tool_use_id").is_some()) => return None,
        Value::Array(blocks) => text_of(blocks),
        _ => return None,
    };
    if text.starts_with(INTERRUPTED) {
        return None;
    }
    Some(UserText { text, own_turn: true })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{folder_name, history};

    #[test]
    fn folder_name_follows_claude() {
        assert_eq!(folder_name("/a/b_c.d"), "-a-b-c-d");
        assert_eq!(folder_name("/ü😀"), "----");
        let (one, other) =
            (folder_name(&format!("/{}", "x".repeat(300))), folder_name(&format!("/{}", "x".repeat(301))));
        assert!(one != other && one.len() < 230);
    }

    fn entry(id: &str, parent: Option<&str>, text: &str) -> Value {
        json!({"type":"user","uuid":id,"parentUuid":parent,"message":{"role":"user","content":text}})
    }

    #[test]
    fn history_is_the_branch_of_the_last_entry() {
        let entries = [entry("1", None, "a"), entry("2", Some("1"), "left"), entry("3", Some("1"), "right")];
        let history = history(&entries).unwrap();
        let said: Vec<_> = history.user_texts.iter().map(|user| user.text.as_str()).collect();
        assert_eq!(said, ["a", "right"]);
        assert_eq!(history.seen.len(), 3);
    }

    #[test]
    fn invalid_transcripts_have_no_history() {
        assert!(history(&[]).is_none());
        assert!(history(&[json!({"type":"queue-operation"})]).is_none());
        let circle = [entry("1", Some("2"), "a"), entry("2", Some("1"), "b")];
        assert!(history(&circle).is_none());
    }
}
