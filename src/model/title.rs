//! The first words of a conversation, by which people find it in a list. Pure.

use super::{Block, History, Prompt, Role};
use crate::support::hidden::is_hidden;

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

/// The beginning of a text in one line, as it is seen: what is hidden in it could make it pass for another text in the
/// operator's list. Text in angle brackets is a program's, not a person's.
fn one_line(text: &str) -> Option<String> {
    let text = text.trim_start_matches(is_blank);
    if text.is_empty() || text.starts_with('<') {
        return None;
    }
    let mut line = String::new();
    // Words may be long, and more than one line's worth of them is not looked at.
    for character in text.chars().take(4 * MAX_CHARACTERS) {
        if !is_blank(character) {
            line.push(character);
        } else if is_gap(character) && !line.ends_with(' ') {
            line.push(' ');
        }
    }
    let cut: String = line.trim_end().chars().take(MAX_CHARACTERS).collect();
    (!cut.is_empty()).then_some(cut)
}

/// White space and control characters part words; other hidden characters are left out.
fn is_gap(character: char) -> bool {
    character.is_whitespace() || character.is_control()
}

fn is_blank(character: char) -> bool {
    is_gap(character) || is_hidden(character)
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
        assert_eq!(of("\u{200b}\u{feff}<system-reminder>"), None, "a program's, whatever precedes it");
        assert_eq!(of("\u{200b}\u{2060}"), None);
        assert_eq!(of(&"é".repeat(1000)).map(|line| line.chars().count()), Some(MAX_CHARACTERS));
    }

    /// A text with them could pass for another in the operator's list.
    #[test]
    fn first_words_hide_nothing() {
        let of = |text: &str| first_words(&Prompt::from(text), None);
        assert_eq!(of("a\u{202e}gnp.exe\u{202c}").as_deref(), Some("agnp.exe"));
        let directions = ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}');
        let others =
            "\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{61c}\u{ad}\u{2060}\u{feff}\u{fff9}\u{e0041}\u{3164}";
        for hidden in directions.chain(others.chars()) {
            assert_eq!(
                of(&format!("pay{hidden}roll")).as_deref(),
                Some("payroll"),
                "{}",
                hidden.escape_unicode()
            );
        }
        assert_eq!(of("שלום عالم").as_deref(), Some("שלום عالم"));
        assert_eq!(of("two\u{2028}lines").as_deref(), Some("two lines"));
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
