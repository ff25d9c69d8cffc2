//! A conversation under load: what was said, what was acknowledged, and whether all of that is still known.

use std::time::Duration;

use crate::asker::{Asker, End};

/// One conversation of a user. Each message is a word of its own.
pub struct Talk {
    pub asker: Asker,
    /// Whether the model answers with what was said, as the simulation does.
    pub echoes: bool,
    said: usize,
    acknowledged: Vec<String>,
    /// Errors came for them: they may be known or not.
    uncertain: Vec<String>,
    /// Codes of all errors, and how late they came.
    pub errors: Vec<(String, Duration)>,
    /// How long each turn took that went well.
    pub took: Vec<Duration>,
    /// From the first failure to the next turn that went well.
    pub outages: Vec<Duration>,
}

impl Talk {
    pub fn new(user: &str, conversation: &str) -> Self {
        Self {
            asker: Asker::new(user, conversation),
            echoes: true,
            said: 0,
            acknowledged: Vec::new(),
            uncertain: Vec::new(),
            errors: Vec::new(),
            took: Vec::new(),
            outages: Vec::new(),
        }
    }

    /// Says the next word, with markers for the model. How it ended.
    pub async fn say(&mut self, site: &str, markers: &str) -> End {
        self.said += 1;
        let word = format!("<{}-{}-{}>", self.asker.user, self.asker.conversation, self.said);
        let (end, took, _) = self.asker.asked(site, &format!("{word}{markers}")).await;
        match &end {
            End::Good { text, is_context_lost } => {
                // Deltas come with a text of their own.
                let is_echo = !self.echoes || markers.contains("deltas") || text.contains(&word);
                assert!(is_echo, "the answer to {word} is {text}");
                assert!(!is_context_lost, "{word} reports a loss");
                self.acknowledged.push(word);
                self.took.push(took);
            }
            other => {
                // A node that was not reached has begun nothing.
                if !matches!(other, End::Unreached) {
                    self.uncertain.push(word);
                }
                self.errors.push((other.code().to_owned(), took));
            }
        }
        end
    }

    /// Asks for everything that was said, at one of these nodes. All that was acknowledged is there, once and in order, and
    /// nothing is there twice.
    pub async fn recall(&mut self, site: &str) -> End {
        let end = self.asker.ask(site, "[[recall]]").await;
        if let End::Good { text, is_context_lost } = &end {
            assert!(!is_context_lost, "a recall of {} reports a loss", self.asker.user);
            self.check(text);
        }
        end
    }

    fn check(&self, text: &str) {
        let mut at = 0;
        for word in &self.acknowledged {
            let found = text[at..].find(word.as_str());
            let found = found.unwrap_or_else(|| panic!("{word} is not known, or not in its place: {text}"));
            at += found + word.len();
        }
        for word in self.acknowledged.iter().chain(&self.uncertain) {
            let times = text.matches(word.as_str()).count();
            assert!(times <= 1, "{word} was said {times} times: {text}");
        }
    }

    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }
}

/// The value below which this share of all values is.
pub fn quantile(of: &mut [Duration], share: f64) -> Duration {
    of.sort_unstable();
    let at = ((of.len() as f64 * share).ceil() as usize).clamp(1, of.len().max(1)) - 1;
    of.get(at).copied().unwrap_or_default()
}

/// For the protocol of a test.
pub fn spread(of: &mut [Duration]) -> String {
    let count = of.len();
    let [p50, p95, most] = [0.5, 0.95, 1.0].map(|share| quantile(of, share).as_millis());
    format!("{count} values, p50 {p50} ms, p95 {p95} ms, at most {most} ms")
}
