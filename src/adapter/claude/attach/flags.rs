//! The command lines of clients: `known` has each flag with its use, `reading` what it means.

use serde_json::Map;

mod known;
mod reading;
mod words;

use crate::adapter::{AttachRequest, AttachRules, RawFlags};
use crate::model::is_model_name;
use known::{FLAGS, Takes};
use reading::Reading;
use words::is_word;

/// Reads the command line of a client.
///
/// # Errors
/// What is refused, in a sentence for people. It repeats no value.
pub(crate) fn parse(words: &[String], rules: &AttachRules) -> Result<AttachRequest, String> {
    let mut reading = Reading { rules, request: empty(), allowed: Vec::new(), skips: false };
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word, None),
        };
        let known = FLAGS.iter().find(|flag| flag.name == name);
        let Some(flag) = known else { return Err(unknown(name)) };
        let mut values: Vec<&str> = inline.into_iter().collect();
        match flag.takes {
            Takes::Nothing if inline.is_some() => return Err(format!("{name} takes no value")),
            Takes::Nothing => {}
            Takes::One if values.is_empty() => {
                values.push(rest.next().ok_or_else(|| format!("{name} has no value"))?);
            }
            Takes::Maybe if values.is_empty() => values.extend(rest.next_if(|next| !next.starts_with('-'))),
            Takes::Many if values.is_empty() => {
                while let Some(value) = rest.next_if(|next| values.is_empty() || !next.starts_with('-')) {
                    values.push(value);
                }
            }
            Takes::One | Takes::Maybe | Takes::Many => {}
        }
        reading.take(flag.name, &values)?;
    }
    reading.finish()
}

fn unknown(name: &str) -> String {
    // A word that is no flag may be a prompt.
    match name.strip_prefix('-').is_some_and(|rest| rest.len() < 40 && is_word(rest.trim_start_matches('-')))
    {
        true => format!("the flag {name} is not known to the server (docs/attach.md lists those that are)"),
        false => "a word that is no flag is not taken: prompts come over standard input".to_owned(),
    }
}

fn empty() -> AttachRequest {
    AttachRequest {
        flags: RawFlags::default(),
        model: None,
        fallback_model: None,
        tools: None,
        conversation: None,
        notes: Vec::new(),
        opening: Map::new(),
        asks: false,
        own_servers: Vec::new(),
        servers: Map::new(),
        directories: Vec::new(),
    }
}

impl AttachRules {
    fn model(&self, name: &str, value: &str) -> Result<String, String> {
        match self.model_problem(value) {
            Some(problem) => Err(format!("{name}: {problem}")),
            None => Ok(value.to_owned()),
        }
    }

    /// Why a model may not be named; `None`: it may.
    pub(super) fn model_problem(&self, model: &str) -> Option<&'static str> {
        if !is_model_name(model) {
            return Some("this cannot be the name of a model");
        }
        let is_allowed = self.models.as_ref().is_none_or(|models| models.contains(model));
        (!is_allowed).then_some("the key may not use this model")
    }
}

#[cfg(test)]
mod tests;
