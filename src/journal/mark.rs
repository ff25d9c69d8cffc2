//! The mark of a journal: how far the conversation has come. Pure.

use serde::{Deserialize, Serialize};

use super::frame::{self, HEADER, Kind};

/// Size of every mark. Ids of a CLI have at most 128 bytes, so that the text always fits.
pub(super) const SIZE: usize = 512;

/// How far a conversation has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Turns of the session.
    pub(crate) turns: u64,
    /// The last message of a turn that was answered: it must be in the transcript.
    pub(crate) checkpoint: Option<String>,
    /// The last message since then, of a turn that was not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unanswered: Option<String>,
    /// The CLI's id of the conversation.
    pub(crate) conversation: String,
    /// The records reach back to the beginning of what was known of the conversation.
    pub(crate) is_whole: bool,
}

/// What a record needs of a mark, without a copy.
#[derive(Deserialize)]
struct Checkpoint<'a> {
    // Ids have no characters that need an escape.
    checkpoint: Option<&'a str>,
    unanswered: Option<&'a str>,
    is_whole: bool,
}

/// What the end of a turn changes in the last messages of a conversation, whose last message is `last`.
pub(crate) fn advance(
    (checkpoint, unanswered): (&mut Option<String>, &mut Option<String>),
    last: Option<String>,
    is_answered: bool,
) {
    match last {
        Some(last) if is_answered => (*checkpoint, *unanswered) = (Some(last), None),
        Some(last) => *unanswered = Some(last),
        // The answer hangs on what was said before it.
        None if is_answered && unanswered.is_some() => *checkpoint = unanswered.take(),
        None => {}
    }
}

impl Mark {
    /// The mark as a frame of [`SIZE`] bytes. `None`: an id in it is longer than any CLI's.
    pub(super) fn frame(&self) -> Option<Vec<u8>> {
        let mut body = Vec::with_capacity(SIZE);
        serde_json::to_writer(&mut body, self).ok()?;
        (body.len() <= SIZE - HEADER).then(|| body.resize(SIZE - HEADER, b' '))?;
        let mut bytes = Vec::with_capacity(SIZE);
        frame::push(&mut bytes, Kind::Mark, &body)?;
        Some(bytes)
    }

    /// The mark that is a whole frame.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match frame::first(bytes)? {
            (Kind::Mark, body, []) if bytes.len() == SIZE => serde_json::from_slice(body).ok(),
            _ => None,
        }
    }
}

/// The last message in the body of a mark, as far as the records before it lead there. A mark at the beginning of a journal is
/// kept up to date in its place while nothing can be appended, and is not whole then: what follows it comes before that message.
pub(super) fn last_message(body: &[u8], is_beginning: bool) -> Option<&str> {
    let Checkpoint { checkpoint, unanswered, is_whole } = serde_json::from_slice(body).ok()?;
    unanswered.or(checkpoint).filter(|_| is_whole || !is_beginning)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer that no message names hangs on the last one that does.
    #[test]
    fn answer_without_a_message_makes_the_last_one_owed() {
        let text = |text: &str| Some(text.to_owned());
        for (before, last, is_answered, after) in [
            ((text("a"), None), text("b"), true, (text("b"), None)),
            ((text("a"), text("u")), text("b"), true, (text("b"), None)),
            ((text("a"), None), text("u"), false, (text("a"), text("u"))),
            ((text("a"), text("u")), None, false, (text("a"), text("u"))),
            ((text("a"), text("u")), None, true, (text("u"), None)),
            ((None, text("u")), None, true, (text("u"), None)),
            ((text("a"), None), None, true, (text("a"), None)),
        ] {
            let (mut checkpoint, mut unanswered) = before;
            advance((&mut checkpoint, &mut unanswered), last, is_answered);
            assert_eq!((checkpoint, unanswered), after);
        }
    }
}
