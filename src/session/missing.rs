//! What the transcript of a conversation lacks, and whether that is a loss. Pure but for the look at the file.
//!
//! What was answered is owed: where it is missing and cannot be restored, a loss is reported. Messages of turns that were not
//! answered - refused, interrupted, lost with their child - are restored as well. Where they cannot be, no loss is reported:
//! their senders know that they have no answer.
//!
//! Messages that no mark names are of a turn that was not shown to its end: the mark comes first. They are owed to nobody,
//! but the CLI goes on from the last of them. Where that one does not lead back to the beginning, the CLI would forget what
//! was answered before, which is in the file all the same: so the end of a transcript is looked at as well.

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
    /// `gap` looks in the transcript for what is missing before a message; `None`: there is no transcript. `end`: the message
    /// that it ends with.
    pub(super) fn from(
        record: &Record,
        gap: Option<impl Fn(&str) -> io::Result<Option<String>>>,
        end: Option<&str>,
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
        let unnamed = end.filter(|end| is_owed(record) && ![checkpoint, unanswered].contains(&Some(*end)));
        let gap = match before_checkpoint {
            None => found(unnamed)?,
            found => found,
        };
        let loss = is_new(&gap).then_some(ContextLost::LatestTurns);
        Ok(Self { loss, unanswered: is_new(&found(unanswered)?), gap })
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
        || (record.unanswered.is_none() && record.context_answered);
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
        (record.context_turns, record.context_answered) = (turns, true);
        (record.checkpoint, record.unanswered) =
            (checkpoint.map(str::to_owned), unanswered.map(str::to_owned));
        record
    }

    /// In a transcript that has these messages.
    fn missing(record: &Record, there: Option<&[&str]>) -> (Option<ContextLost>, bool) {
        missing_with_end(record, there, None)
    }

    fn missing_with_end(
        record: &Record,
        there: Option<&[&str]>,
        end: Option<&str>,
    ) -> (Option<ContextLost>, bool) {
        let gap = there.map(|there| {
            |message: &str| Ok((!there.contains(&message)).then(|| format!("before {message}")))
        });
        let Missing { loss, unanswered, .. } = Missing::from(record, gap, end).unwrap();
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

    /// The CLI goes on from the end: what was answered must lead to it.
    #[test]
    fn end_that_no_mark_names_leads_back_or_is_a_loss() {
        let all: Option<&[&str]> = Some(&["a", "u", "e"]);
        let without: Option<&[&str]> = Some(&["a", "u"]);
        let named = record(2, Some("a"), Some("u"));
        for (there, end, loss) in
            [(all, "e", None), (without, "e", LATEST), (without, "a", None), (without, "u", None)]
        {
            assert_eq!(missing_with_end(&named, there, Some(end)), (loss, false), "{there:?} {end}");
        }
        let mut unanswered = record(1, None, Some("u"));
        assert_eq!(missing_with_end(&unanswered, without, Some("e")), (None, false), "nothing is owed");
        unanswered.known_gap = Some("before e".into());
        assert_eq!(missing_with_end(&unanswered, without, Some("e")), (None, false), "it is known");
    }

    #[test]
    fn session_without_an_answer_owes_nothing() {
        let mut record = record(1, None, None);
        record.context_answered = false;
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
