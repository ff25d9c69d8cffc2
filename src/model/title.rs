//! The first words of a conversation, by which people find it in a list. Pure.

use super::{Block, History, Prompt, Role};

/// Maximum characters: one line of a list.
const MAX_CHARACTERS: usize = 80;

/// The first words that a user says in this conversation; `None` if the first message has no text.
pub(crate) fn first_words(prompt: &Prompt, history: Option<&History>) -> Option<String> {
    let earlier =
        history.into_iter().flat_map(History::messages).filter(|message| message.role == Role::User);
    let mut said = earlier.flat_map(|message| &message.content).filter_map(|block| match block {
        Block::Text(text) => one_line(text),
        _ => None,
    });
    said.next().or_else(|| match prompt {
        Prompt::Text(text) => one_line(text),
        Prompt::Blocks(blocks) => {
            blocks.iter().filter_map(|block| block.get("text")?.as_str()).find_map(one_line)
        }
        Prompt::ToolResults(_) => None,
    })
}

/// The beginning of a text in one line. Text in angle brackets is a program's, not a person's.
fn one_line(text: &str) -> Option<String> {
    let text = text.trim_start();
    if text.is_empty() || text.starts_with('<') {
        return None;
    }
    let mut line = String::new();
    // Words may be long, and more than one line's worth of them is not looked at.
    for character in text.chars().take(4 * MAX_CHARACTERS) {
        let is_blank = character.is_whitespace() || character.is_control();
        match is_blank {
            true if line.ends_with(' ') => {}
            true => line.push(' '),
            false => line.push(character),
        }
    }
    let cut: String = line.trim_end().chars().take(MAX_CHARACTERS).collect();
    (!cut.is_empty()).then_some(cut)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn first_words_are_one_short_line() {
        let of = |text: &str| first_words(&Prompt::from(text), None);
        assert_eq!(of("  Write a\n\n\tpoem \u{1b}[2J").as_deref(), Some("Write a poem [2J"));
        assert_eq!(of("<system-reminder>x</system-reminder>"), None);
        assert_eq!((of(""), of(" \n ")), (None, None));
        assert_eq!(of(&"é".repeat(1000)).map(|line| line.chars().count()), Some(MAX_CHARACTERS));
    }

    #[test]
    fn first_text_block_of_a_person_counts() {
        let blocks = [
            json!({"type": "image"}),
            json!({"type": "text", "text": "<note>"}),
            json!({"type": "text", "text": "Hi"}),
        ];
        assert_eq!(first_words(&Prompt::Blocks(blocks.to_vec()), None).as_deref(), Some("Hi"));
        assert_eq!(first_words(&Prompt::ToolResults(Vec::new()), None), None);
    }

    #[test]
    fn history_comes_before_the_prompt() {
        let said =
            |role, text: &str| super::super::Message { role, content: vec![Block::Text(text.to_owned())] };
        let history = History::new(vec![said(Role::Assistant, "Hello"), said(Role::User, "First")]);
        assert_eq!(first_words(&Prompt::from("second"), Some(&history)).as_deref(), Some("First"));
    }
}
