//! Children that die at any moment, and restored conversations that are restored again: a CLI and its journal, in small.

use std::collections::HashSet;

use proptest::sample::Index;

use super::*;

/// A turn, and what becomes of its child.
#[derive(Debug, Clone)]
struct Turn {
    is_answered: bool,
    /// It has an end, answered or not: its last message is marked.
    is_ended: bool,
    is_mirrored: bool,
    death: Option<Death>,
}

#[derive(Debug, Clone)]
struct Death {
    /// As many of the entries that wait are written first.
    written: Index,
    /// A line of the file that is lost then, up to the last answer.
    lost: Option<Index>,
    /// The journal is cut there, if the file has all that was answered.
    cut: Option<Index>,
}

fn turn() -> impl Strategy<Value = Turn> {
    let damage = || prop::option::weighted(0.2, any::<Index>());
    let death =
        (any::<Index>(), damage(), damage()).prop_map(|(written, lost, cut)| Death { written, lost, cut });
    (any::<bool>(), any::<bool>(), any::<bool>(), death, prop::bool::weighted(0.4)).prop_map(
        |(is_answered, is_ended, is_mirrored, death, lives)| {
            let is_ended = is_ended || is_answered;
            let death = Some(death).filter(|_| !(is_ended && lives));
            Turn { is_answered, is_ended, is_mirrored, death }
        },
    )
}

/// What the journal has, in text.
enum Noted {
    Entry(String),
    Mirrored(String),
    Prompt(String),
    Line(String),
    Mark(Option<String>),
}

#[derive(Default)]
struct World {
    file: Vec<String>,
    /// Written some time after.
    waiting: Vec<String>,
    leaf: Option<String>,
    journal: Vec<Noted>,
    checkpoint: Option<String>,
    /// The last message since then, of a turn that ended without an answer.
    unanswered: Option<String>,
    answered: Vec<String>,
    /// Entries that a child has found in the file and has gone on from.
    followed: HashSet<String>,
    is_damaged: bool,
}

impl World {
    fn entry(&mut self, kind: &str, uuid: &str) -> String {
        let text = entry(kind, uuid, self.leaf.replace(uuid.to_owned()).as_deref());
        self.waiting.push(text.clone());
        text
    }

    fn turn(&mut self, number: usize, turn: &Turn) {
        let [prompt, part, answer] = ["p", "t", "a"].map(|kind| format!("{kind}-{number}"));
        let mut entries = vec![self.entry("user", &prompt), self.entry("assistant", &part)];
        if turn.is_answered {
            entries.push(self.entry("assistant", &answer));
        }
        if turn.is_answered && turn.is_mirrored {
            self.journal.push(Noted::Mirrored(mirror(&entries)));
        } else {
            let own = entries.iter().map(|entry| {
                let entry: Value = serde_json::from_str(entry).unwrap();
                json!({ "type": entry["type"], "message": entry["message"], "uuid": entry["uuid"] })
                    .to_string()
            });
            let mut own = own.collect::<Vec<_>>().into_iter();
            self.journal.extend(own.next().map(Noted::Prompt));
            self.journal.extend(own.map(Noted::Line));
        }
        if turn.is_answered {
            self.answered.extend([prompt, answer.clone()]);
            (self.checkpoint, self.unanswered) = (Some(answer), None);
        } else if turn.is_ended {
            self.unanswered = Some(part);
        }
        self.mark();
    }

    fn mark(&mut self) {
        self.journal.push(Noted::Mark(self.last()));
    }

    fn last(&self) -> Option<String> {
        self.unanswered.clone().or_else(|| self.checkpoint.clone())
    }

    /// Whether the file leads from this message back to the beginning.
    fn has(&self, message: Option<&String>) -> bool {
        let text = self.file.join("\n");
        message.is_none_or(|message| gap(text.as_bytes(), false, message).unwrap().is_none())
    }

    /// Whether the next child finds all that it has to.
    fn die(&mut self, death: &Death) -> Result<(), TestCaseError> {
        let written = death.written.index(self.waiting.len() + 1);
        self.file.extend(self.waiting.drain(..).take(written));
        let checkpoint = self.checkpoint.as_ref();
        let text = self.file.join("\n");
        let answered = ids(text.as_bytes()).iter().position(|id| Some(id) == checkpoint);
        let owed = answered.map_or(self.file.len(), |at| at + 1);
        if let Some(lost) = death.lost.filter(|_| owed > 0 && checkpoint.is_some()) {
            // Only what was answered is owed from then on.
            self.file.remove(lost.index(owed));
            self.followed.clear();
            self.is_damaged = true;
        }
        let owes_nothing = self.has(self.checkpoint.as_ref());
        let cut = death.cut.filter(|_| owes_nothing);
        if let Some(cut) = cut {
            self.journal.truncate(cut.index(self.journal.len() + 1));
        }
        let text = self.file.join("\n");
        let last = self.last();
        let mut restored = None;
        if !self.has(last.as_ref()) {
            let kept: Vec<_> = self.journal.iter().map(Noted::kept).collect();
            restored = restore(text.as_bytes(), &kept, last.as_deref(), ID, &dirs(), SystemTime::UNIX_EPOCH);
            prop_assert!(restored.is_some() || cut.is_some(), "not restored");
            if restored.is_none() {
                // It was never answered, and no loss.
                self.unanswered = None;
            }
        }
        if let Some(restored) = &restored {
            self.file = lines(&restored.transcript)
                .filter(|line| !line.is_empty())
                .map(|line| String::from_utf8(line.to_vec()).unwrap())
                .collect();
        }
        let text = self.file.join("\n");
        if restored.is_some() || cut.is_some() {
            let entries = snapshot(text.as_bytes(), usize::MAX).unwrap();
            self.journal = entries.into_iter().map(noted).collect();
        } else {
            let after = entries_after(text.as_bytes(), self.last().as_deref()).unwrap();
            self.journal.extend(after.into_iter().map(noted));
        }
        self.mark();
        self.resume()
    }

    fn resume(&mut self) -> Result<(), TestCaseError> {
        let text = self.file.join("\n");
        let there = ids(text.as_bytes());
        self.leaf = there.last().cloned();
        let Some(leaf) = &self.leaf else { return Ok(()) };
        if gap(text.as_bytes(), false, leaf).unwrap().is_some() {
            return Err(TestCaseError::fail(format!("a gap before {leaf}: {there:?}")));
        }
        let found: HashSet<_> = said(&text, leaf).into_iter().collect();
        for owed in self.answered.iter().chain(&self.followed) {
            prop_assert!(found.contains(owed), "{} is forgotten: {:?}", owed, there);
        }
        let aside = there.iter().find(|id| id.starts_with("p-") && !found.contains(*id));
        prop_assert!(self.is_damaged || aside.is_none(), "{:?} is in no conversation: {:?}", aside, there);
        self.followed = found;
        Ok(())
    }
}

fn noted(entry: &[u8]) -> Noted {
    Noted::Entry(String::from_utf8(entry.to_vec()).unwrap())
}

impl Noted {
    fn kept(&self) -> Kept<'_> {
        match self {
            Self::Entry(text) => Kept::Entry(text.as_bytes()),
            Self::Mirrored(text) => Kept::Mirrored(text.as_bytes()),
            Self::Prompt(text) => Kept::Prompt(text.as_bytes()),
            Self::Line(text) => Kept::Line(text.as_bytes()),
            Self::Mark(checkpoint) => Kept::Checkpoint(checkpoint.as_deref()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_death_costs_what_was_answered_or_followed(turns in prop::collection::vec(turn(), 1..12)) {
        let mut world = World::default();
        for (number, turn) in turns.iter().enumerate() {
            world.turn(number, turn);
            if let Some(death) = &turn.death {
                world.die(death)?;
            }
        }
    }
}
