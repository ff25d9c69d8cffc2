//! Children that die at any moment, and restored conversations that are restored again: a CLI and its journal, in small.

use std::collections::HashSet;

use proptest::sample::Index;

use super::*;

/// A turn, and what becomes of its child.
#[derive(Debug, Clone)]
struct Turn {
    is_answered: bool,
    is_mirrored: bool,
    death: Option<Death>,
}

#[derive(Debug, Clone)]
struct Death {
    /// As many of the entries that wait are written first.
    written: Index,
    /// A line of the file that is lost then, up to the last answer.
    lost: Option<Index>,
}

fn turn() -> impl Strategy<Value = Turn> {
    let death = (any::<Index>(), prop::option::weighted(0.2, any::<Index>()))
        .prop_map(|(written, lost)| Death { written, lost });
    (any::<bool>(), any::<bool>(), death, prop::bool::weighted(0.4)).prop_map(
        |(is_answered, is_mirrored, death, lives)| {
            let death = Some(death).filter(|_| !(is_answered && lives));
            Turn { is_answered, is_mirrored, death }
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
            self.checkpoint = Some(answer);
        }
        self.journal.push(Noted::Mark(self.checkpoint.clone()));
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
        let text = self.file.join("\n");
        let is_whole = match &self.checkpoint {
            Some(checkpoint) => gap(text.as_bytes(), false, checkpoint).unwrap().is_none(),
            None => true,
        };
        if is_whole {
            let after = entries_after(text.as_bytes(), self.checkpoint.as_deref()).unwrap();
            self.journal.extend(after.into_iter().map(noted));
        } else {
            let kept: Vec<_> = self.journal.iter().map(Noted::kept).collect();
            let checkpoint = self.checkpoint.as_deref();
            let restored = restore(text.as_bytes(), &kept, checkpoint, ID, &dirs(), SystemTime::UNIX_EPOCH);
            let Some(restored) = restored else { return Err(TestCaseError::fail("not restored")) };
            let entries = snapshot(&restored.transcript, usize::MAX).unwrap();
            self.journal = entries.into_iter().map(noted).collect();
            self.file = lines(&restored.transcript)
                .filter(|line| !line.is_empty())
                .map(|line| String::from_utf8(line.to_vec()).unwrap())
                .collect();
        }
        self.journal.push(Noted::Mark(self.checkpoint.clone()));
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
