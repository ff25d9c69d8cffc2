//! What the users of the demo say. Pure.
//!
//! Each message is plain language, for a real model, and carries a marker that tells the simulation (and the test
//! API) what to answer. The marker is not shown.

use std::time::Duration;

use super::client::Message;

/// A word that only one user knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CodeWord(String);

impl CodeWord {
    /// `word` tells users apart, `number` runs.
    pub(super) fn new(word: &str, number: u32) -> Self {
        Self(format!("{word}-{number}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an answer holds it.
    pub(super) fn is_in(&self, answer: &str) -> bool {
        answer.to_lowercase().contains(&self.0)
    }

    /// Tells it.
    pub(super) fn tell(&self) -> Message {
        let shown = format!("My code word is {}. Please say it back.", self.0);
        let sent = format!("{shown} Answer with that word alone. [[say:{}]]", self.0);
        Message { shown, sent }
    }
}

/// Asks for the code word: only the conversation so far can know it.
pub(super) fn ask_back() -> Message {
    let shown = "What is my code word?".to_owned();
    Message { sent: format!("{shown} Answer with that word alone. [[recall]]"), shown }
}

/// Asks for a word to be repeated.
pub(super) fn repeat(word: &str) -> Message {
    let shown = format!("Please say: {word}");
    Message { sent: format!("{shown} (Answer with that word alone.) [[say:{word}]]"), shown }
}

/// Asks for an answer that begins at once and takes so long.
pub(super) fn take(time: Duration) -> Message {
    let shown = "Please count from 1 to 200, one number to a line.".to_owned();
    Message { sent: format!("{shown} [[deltas:1]][[delay:{}]]", time.as_millis()), shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_sent_and_not_shown() {
        let word = CodeWord::new("amber", 7);
        for message in [word.tell(), ask_back(), repeat("hello"), take(Duration::from_secs(1))] {
            assert!(message.sent.starts_with(&message.shown), "{message:?}");
            assert!(message.sent.contains("[[") && !message.shown.contains("[["), "{message:?}");
        }
        assert!(word.is_in("It is Amber-7.") && !word.is_in("amber-8"));
    }
}
