//! Messages of the demo's users. Pure.
//!
//! Each message is plain language. The simulation also gets a marker that determines its answer; markers are not shown.

use std::time::Duration;

use super::client::Message;

/// A word of one user alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CodeWord(String);

impl CodeWord {
    /// `word` differs by user, `number` by run.
    pub(super) fn new(word: &str, number: u32) -> Self {
        Self(format!("{word}-{number}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn is_in(&self, answer: &str) -> bool {
        answer.to_lowercase().contains(&self.0)
    }
}

/// The messages, in the form for one CLI.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    /// Only the simulation reads markers.
    pub(super) is_simulated: bool,
}

impl Script {
    pub(super) fn introduce(self, word: &CodeWord) -> Message {
        let word = word.as_str();
        let shown = format!("My code word is {word}. Please say it back.");
        self.message(shown, " Answer with that word alone.", &format!("[[say:{word}]]"))
    }

    /// Asks for the code word: only the conversation so far can know it.
    pub(super) fn ask_back(self) -> Message {
        self.message("What is my code word?".to_owned(), " Answer with that word alone.", "[[recall]]")
    }

    pub(super) fn repeat(self, words: &str) -> Message {
        self.message(
            format!("Please say: {words}"),
            " (Answer with that alone.)",
            &format!("[[say:{words}]]"),
        )
    }

    /// Asks for an answer that begins at once and takes long; the simulation takes exactly this time.
    pub(super) fn take(self, time: Duration) -> Message {
        let shown = "Please count from 1 to 200, one number to a line.".to_owned();
        self.message(shown, "", &format!("[[deltas:1]][[delay:{}]]", time.as_millis()))
    }

    /// Makes the simulation's tool run a command of the shell. A model decides itself what it runs.
    pub(super) fn run(self, command: &str) -> Message {
        let input = serde_json::json!({ "command": command });
        self.message(format!("Please run: {command}"), "", &format!("[[tool:Bash {input}]]"))
    }

    fn message(self, shown: String, more: &str, marker: &str) -> Message {
        let marker = if self.is_simulated { format!(" {marker}") } else { String::new() };
        Message { sent: format!("{shown}{more}{marker}"), shown }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_simulation_gets_markers_and_none_is_shown() {
        let word = CodeWord::new("amber", 7);
        for is_simulated in [true, false] {
            let script = Script { is_simulated };
            let messages = [
                script.introduce(&word),
                script.ask_back(),
                script.repeat("hello"),
                script.take(Duration::from_secs(1)),
                script.run("pwd"),
            ];
            for message in messages {
                assert!(message.sent.starts_with(&message.shown), "{message:?}");
                assert_eq!(message.sent.contains("[["), is_simulated, "{message:?}");
                assert!(!message.shown.contains("[["), "{message:?}");
            }
        }
        assert!(word.is_in("It is Amber-7.") && !word.is_in("amber-8"));
    }
}
