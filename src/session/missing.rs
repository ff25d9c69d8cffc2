//! What the transcript of a conversation lacks, and whether that is a loss. Pure but for the look at the file.
//!
//! What was answered is owed: where it is missing and cannot be restored, a loss is reported. Messages of turns that were not
//! answered - refused, interrupted, lost with their child - are restored as well. Where they cannot be, no loss is reported:
//! their senders know that they have no answer.

use std::io;

use super::store::Record;
use crate::telemetry::metrics::ContextLost;

/// What is missing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Of what was answered.
    pub(super) loss: Option<ContextLost>,
    /// Where, in a transcript that is there.
    pub(super) gap: Option<String>,
    /// The last message, of a turn that was not answered.
    pub(super) unanswered: bool,
}

impl Missing {
    /// `gap` looks in the transcript for what is missing before a message; `None`: there is no transcript.
    pub(super) fn from(
        record: &Record,
        gap: Option<impl Fn(&str) -> io::Result<Option<String>>>,
    ) -> io::Result<Self> {
        let (checkpoint, unanswered) = (record.checkpoint.as_deref(), record.unanswered.as_deref());
        let Some(gap) = gap else {
            let (had_turns, is_owed) = (record.context_turns > 0, is_owed(record));
            let loss = is_owed.then_some(ContextLost::Conversation);
            return Ok(Self { loss, gap: None, unanswered: unanswered.is_some() || (had_turns && !is_owed) });
        };
        // The same gap stays in the transcript for good; it is one loss.
        let is_new = |gap: &Option<String>| gap.is_some() && *gap != record.known_gap;
        let found = |message: Option<&str>| message.map_or(Ok(None), &gap);
        let before_checkpoint = found(checkpoint)?;
        let loss = is_new(&before_checkpoint).then_some(ContextLost::LatestTurns);
        Ok(Self { loss, unanswered: is_new(&found(unanswered)?), gap: before_checkpoint })
    }

    pub(super) fn is_any(&self) -> bool {
        self.loss.is_some() || self.unanswered
    }
}

/// Whether something of the conversation was answered, so that its end is a loss.
pub(super) fn is_owed(record: &Record) -> bool {
    // The messages of an answered turn may be none that a transcript names.
    let has_answer = record.checkpoint.is_some()
        || record.known_gap.is_some()
        || (record.unanswered.is_none() && record.answered);
    record.context_turns > 0 && has_answer
}

/// The last messages with which a conversation would be whole enough, the best first: with all that was said, and with what
/// is owed. `is_owed`: that is missing, too.
pub(super) fn wanted(record: &Record, is_owed: bool) -> Vec<Option<&str>> {
    let unanswered = record.unanswered.as_deref();
    let owed = Some(record.checkpoint.as_deref()).filter(|_| is_owed || unanswered.is_none());
    unanswered.map(Some).into_iter().chain(owed).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::ids::{SessionKey, UserId};
    use crate::workspace::Workspace;

    const CONVERSATION: Option<ContextLost> = Some(ContextLost::Conversation);
    const LATEST: Option<ContextLost> = Some(ContextLost::LatestTurns);

    fn record(turns: u64, checkpoint: Option<&str>, unanswered: Option<&str>) -> Record {
        let key = SessionKey::new(UserId::new("alice").unwrap(), "default").unwrap();
        let mut record = Record::new(&key, &Workspace::begin(Path::new("/nowhere"), &key.hash()));
        (record.context_turns, record.answered) = (turns, true);
        (record.checkpoint, record.unanswered) =
            (checkpoint.map(str::to_owned), unanswered.map(str::to_owned));
        record
    }

    /// In a transcript that has these messages.
    fn missing(record: &Record, there: Option<&[&str]>) -> (Option<ContextLost>, bool) {
        let gap = there.map(|there| {
            |message: &str| Ok((!there.contains(&message)).then(|| format!("before {message}")))
        });
        let Missing { loss, unanswered, .. } = Missing::from(record, gap).unwrap();
        (loss, unanswered)
    }

    #[test]
    fn only_what_was_answered_is_a_loss() {
        let all: &[&str] = &["a", "u"];
        for (turns, checkpoint, unanswered, there, loss, is_forgotten) in [
            (0, None, None, None, None, false),
            (1, Some("a"), None, Some(all), None, false),
            (1, Some("a"), None, Some(&["u"][..]), LATEST, false),
            (1, Some("a"), None, None, CONVERSATION, false),
            (2, Some("a"), Some("u"), Some(all), None, false),
            (2, Some("a"), Some("u"), Some(&["a"][..]), None, true),
            (2, Some("a"), Some("u"), Some(&["u"][..]), LATEST, false),
            (2, Some("a"), Some("u"), Some(&[][..]), LATEST, true),
            (2, Some("a"), Some("u"), None, CONVERSATION, true),
            (1, None, Some("u"), Some(all), None, false),
            (1, None, Some("u"), Some(&[][..]), None, true),
            (1, None, Some("u"), None, None, true),
            // Answered turns whose messages no transcript names.
            (1, None, None, Some(&[][..]), None, false),
            (1, None, None, None, CONVERSATION, false),
        ] {
            let found = missing(&record(turns, checkpoint, unanswered), there);
            assert_eq!(found, (loss, is_forgotten), "{checkpoint:?} {unanswered:?} {there:?}");
        }
    }

    #[test]
    fn session_without_an_answer_owes_nothing() {
        let mut record = record(1, None, None);
        record.answered = false;
        assert_eq!(missing(&record, None), (None, true));
        assert_eq!(missing(&record, Some(&[])), (None, false));
        record.context_turns = 0;
        assert_eq!(missing(&record, None), (None, false), "it has not begun");
    }

    #[test]
    fn known_gap_is_no_new_loss() {
        let mut record = record(3, None, Some("u"));
        record.known_gap = Some("before u".into());
        assert_eq!(missing(&record, Some(&[])), (None, false));
        assert_eq!(missing(&record, None), (CONVERSATION, true), "what was answered before it");
    }

    #[test]
    fn the_whole_conversation_is_wanted_first() {
        let whole = record(2, Some("a"), Some("u"));
        assert_eq!(wanted(&whole, true), [Some("u"), Some("a")]);
        assert_eq!(wanted(&whole, false), [Some("u")], "what is owed is there");
        assert_eq!(wanted(&record(1, Some("a"), None), true), [Some("a")]);
        assert_eq!(wanted(&record(1, None, None), true), [None]);
    }
}
