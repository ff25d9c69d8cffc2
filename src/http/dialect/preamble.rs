//! The history that a client sends with each request, folded into text for a conversation that has none.

use super::message::{Content, Message, Role};

/// Share of the prompt limit that the history may take: the message itself needs room beside it.
const SHARE: usize = 2;

const OPENING: &str = "What was said before in this conversation:\n";
const CLOSING: &str = "\n\nThe conversation goes on with this message:\n\n";
const LEFT_OUT: &str = "\n\n[earlier messages are left out]";

/// The messages before the last as text; `None` if there are none. Keeps the latest ones that fit into the share of
/// `prompt_limit`.
pub(super) fn fold(history: &[Message], prompt_limit: usize) -> Option<String> {
    if history.is_empty() {
        return None;
    }
    let mut room = prompt_limit / SHARE;
    let mut told: Vec<String> = Vec::new();
    for message in history.iter().rev() {
        let text = tell(message);
        let Some(rest) = room.checked_sub(text.len()) else { break };
        room = rest;
        told.push(text);
    }
    let cut = if told.len() < history.len() { LEFT_OUT } else { "" };
    let told: String = told.into_iter().rev().collect();
    Some(format!("{OPENING}{cut}{told}{CLOSING}"))
}

fn tell(message: &Message) -> String {
    let who = match message.role {
        Role::User => "User",
        Role::Assistant => "Assistant",
        Role::System => "System",
    };
    let what = match &message.content {
        Content::Text(text) => text.clone(),
        Content::Blocks(blocks) => {
            let blocks = blocks.iter().map(|block| {
                let text = block.get("text").and_then(serde_json::Value::as_str);
                let kind = block.get("type").and_then(serde_json::Value::as_str).unwrap_or("block");
                text.map_or_else(|| format!("[{kind}]"), str::to_owned)
            });
            blocks.collect::<Vec<_>>().join("\n")
        }
    };
    format!("\n\n{who}: {what}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(value: serde_json::Value) -> Vec<Message> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_history_is_told_in_order() {
        let history = messages(json!([
            { "role": "user", "content": "my cat is Mo" },
            { "role": "assistant", "content": [{ "type": "text", "text": "hello Mo" }, { "type": "image" }] },
        ]));
        let told = fold(&history, 1 << 20).unwrap();
        let expected = "What was said before in this conversation:\n\n\nUser: my cat is Mo\n\nAssistant: hello \
                        Mo\n[image]\n\nThe conversation goes on with this message:\n\n";
        assert_eq!(told, expected);
        assert_eq!(fold(&[], 1 << 20), None);
    }

    #[test]
    fn a_long_history_loses_its_beginning_and_says_so() {
        let history = messages(json!([
            { "role": "user", "content": "old ".repeat(100) },
            { "role": "user", "content": "new" },
        ]));
        let told = fold(&history, 200).unwrap();
        assert!(told.contains(LEFT_OUT) && told.contains("new") && !told.contains("old"), "{told}");
    }
}
