//! Values of flags: words, lists of words, JSON objects.

use std::collections::BTreeSet;

use serde_json::Value;

/// Longest list of tools, models and the like in one flag, and longest word of them.
const MAX_WORDS: usize = 256;
const MAX_WORD: usize = 512;

pub(super) fn object(name: &str, value: &str) -> Result<Value, String> {
    let parsed: Option<Value> = serde_json::from_str(value).ok();
    parsed.filter(Value::is_object).ok_or_else(|| format!("{name} must be a JSON object"))
}

/// A short word that is neither a flag nor a text of a user.
pub(super) fn is_word(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    !value.is_empty() && value.len() <= 64 && !value.starts_with('-') && value.bytes().all(allowed)
}

/// Rules for tools, apart at commas and blanks outside of parentheses.
pub(super) fn words(name: &str, values: &[&str]) -> Result<Vec<String>, String> {
    let mut words = BTreeSet::new();
    for value in values {
        let (mut depth, mut word) = (0_usize, String::new());
        for character in value.chars().chain([',']) {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                ',' | ' ' if depth == 0 => {
                    words.insert(std::mem::take(&mut word));
                    continue;
                }
                _ => {}
            }
            word.push(character);
        }
        words.insert(word);
    }
    words.remove("");
    let is_usable = |word: &String| word.len() <= MAX_WORD && !word.starts_with('-');
    if words.len() > MAX_WORDS || !words.iter().all(is_usable) {
        return Err(format!("{name} has too many or too long values"));
    }
    Ok(words.into_iter().collect())
}
