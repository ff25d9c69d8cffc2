//! The file of a journal: begun as a whole, then appended to. Blocking.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::frame::{self, HEADER, Kind};
use super::mark::{Mark, SIZE, advance};
use super::unwritten::{Unwritten, Waiting};
use crate::support::atomic_file::{self, Durability};
use crate::support::lock::MutexExt as _;

/// The open journal of a session.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Arc<File>,
    /// Maximum size of the file.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mark: Mark,
    length: u64,
    /// Records are kept, not the mark alone.
    is_on: bool,
    /// Frames that could not be written.
    unwritten: Unwritten,
    is_failing: bool,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// The kernel has it.
    Written,
    /// As before, after failures.
    WrittenAgain,
    /// It waits in memory for the next write. With the first failure: that it is the first.
    Failed { is_first: bool },
    /// The journal has reached its limit and keeps its mark alone from now on.
    GivenUp,
    /// So does one that would wait with more than there is room for in memory.
    Crowded,
}

/// Begins a journal, or begins it again, with these records.
pub(crate) fn write(path: &Path, mark: &Mark, records: &[u8], durability: Durability) -> io::Result<()> {
    let marked = mark.frame().ok_or(io::ErrorKind::InvalidInput)?;
    let mut content = marked.clone();
    if !records.is_empty() {
        frame::push(&mut content, Kind::Records, records).ok_or(io::ErrorKind::FileTooLarge)?;
        content.extend(marked);
    }
    atomic_file::replace(path, &content, durability)
}

/// The last mark of a journal, and whether it is at the end: only then may be appended. `None` without a usable one.
pub(crate) fn load(mut file: &File) -> io::Result<Option<(Mark, bool)>> {
    let length = file.metadata()?.len();
    let at = |offset: u64| {
        let mut bytes = [0; SIZE];
        file.read_exact_at(&mut bytes, offset).ok().and_then(|()| Mark::parse(&bytes))
    };
    let first = at(0);
    let last = length.checked_sub(SIZE as u64).and_then(at).map(|mark| (mark, true));
    let last = match last {
        Some(last) => Some(last),
        None => {
            let mut content = Vec::new();
            file.by_ref().take(MOST_READ).read_to_end(&mut content)?;
            last_mark(&content).map(|mark| (mark, false))
        }
    };
    Ok(match (first, last) {
        // The first is written alone when nothing can be appended.
        (Some(first), Some((last, _))) if first.turns > last.turns => Some((first, false)),
        (Some(first), None) => Some((first, false)),
        (_, last) => last,
    })
}

/// More than a journal can have (`session.journal_bytes`).
const MOST_READ: u64 = 2 << 30;

/// Whether a journal consists of undamaged frames alone. Reads it once, in pieces.
pub(crate) fn is_intact(file: &File) -> io::Result<bool> {
    let mut reader = BufReader::with_capacity(64 << 10, file.take(MOST_READ));
    loop {
        match frame::check(&mut reader)? {
            Some(true) => {}
            Some(false) => return Ok(false),
            None => return Ok(true),
        }
    }
}

fn last_mark(mut journal: &[u8]) -> Option<Mark> {
    let mut last = None;
    while let Some((kind, body, rest)) = frame::first(journal) {
        if kind == Kind::Mark && body.len() == SIZE - HEADER {
            last = serde_json::from_slice(body).ok().or(last);
        }
        journal = rest;
    }
    last
}

impl Journal {
    /// A journal that ends with `mark`.
    pub(crate) fn open(
        file: File,
        mark: Mark,
        is_on: bool,
        limit: u64,
        waiting: &Arc<Waiting>,
    ) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let unwritten = Unwritten::new(waiting.clone());
        let state = State { mark, length, is_on, unwritten, is_failing: false };
        Ok(Self { file: Arc::new(file), limit, state: Mutex::new(state) })
    }

    /// A journal that could not be begun, for want of room on the disk: these first records are written with the next
    /// turn for which there is room.
    pub(crate) fn open_later(
        file: File,
        mark: Mark,
        records: &[u8],
        limit: u64,
        waiting: &Arc<Waiting>,
    ) -> io::Result<Self> {
        // What it held is of no use any more. The first mark stays where it is: to replace it takes no room.
        let length = file.metadata()?.len().min(SIZE as u64);
        file.set_len(length)?;
        let journal = Self::open(file, mark, true, limit, waiting)?;
        let mut state = journal.state.lock_unpoisoned();
        if !matches!(journal.mark_alone(&mut state), Noted::Written) {
            journal.file.set_len(0)?;
            state.length = 0;
        }
        let mut frames = Vec::new();
        let is_framed = records.is_empty() || frame::push(&mut frames, Kind::Records, records).is_some();
        if !is_framed || !state.unwritten.keep(frames) {
            journal.give_up(&mut state, Noted::Crowded);
        }
        drop(state);
        Ok(journal)
    }

    /// The file, to be synchronised.
    pub(crate) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Whether a conversation that has come to `mark` can go on with this journal.
    pub(crate) fn goes_on(&self, mark: &Mark) -> bool {
        let state = self.state.lock_unpoisoned();
        state.is_on && state.mark == *mark && state.length <= self.limit / 2
    }

    /// The frames that wait in memory.
    pub(crate) fn unwritten(&self) -> Vec<u8> {
        self.state.lock_unpoisoned().unwritten.frames().to_vec()
    }

    /// Whether nothing waits in memory. Tries to write it.
    pub(crate) fn is_written(&self) -> bool {
        let mut state = self.state.lock_unpoisoned();
        if !state.unwritten.frames().is_empty() {
            self.append(&mut state, &[]);
        }
        state.unwritten.frames().is_empty()
    }

    /// Adds the records of a turn that has ended and the number of turns, by one write. `last`: its last message.
    pub(crate) fn end_turn(
        &self,
        turns: u64,
        (last, is_answered): (Option<&String>, bool),
        conversation: Option<&str>,
        records: &[u8],
    ) -> Noted {
        let mut state = self.state.lock_unpoisoned();
        state.mark.turns = turns;
        if let Some(id) = conversation.filter(|id| *id != state.mark.conversation) {
            // A command in the text began another conversation: of all that was kept, only this turn belongs to it.
            state.mark = Mark { conversation: id.to_owned(), turns, ..Mark::default() };
            self.file.set_len(0).ok();
            state.length = 0;
            drop(state.unwritten.take());
        }
        let Mark { checkpoint, unanswered, .. } = &mut state.mark;
        advance((checkpoint, unanswered), last.cloned(), is_answered);
        self.append(&mut state, records)
    }

    /// Adds records between the ends of two turns.
    pub(crate) fn add(&self, records: &[u8]) -> Noted {
        self.append(&mut self.state.lock_unpoisoned(), records)
    }

    fn append(&self, state: &mut State, records: &[u8]) -> Noted {
        if !state.is_on {
            return self.mark_alone(state);
        }
        let mut frames = state.unwritten.take();
        frames.reserve(HEADER + records.len() + SIZE);
        let is_framed = records.is_empty() || frame::push(&mut frames, Kind::Records, records).is_some();
        let unmarked = frames.len();
        let Some(mark) = state.mark.frame().filter(|_| is_framed) else {
            return self.give_up(state, Noted::GivenUp);
        };
        frames.extend(mark);
        let length = state.length.saturating_add(frames.len() as u64);
        if length > self.limit {
            return self.give_up(state, Noted::GivenUp);
        }
        if self.file.write_all_at(&frames, state.length).is_ok() {
            state.length = length;
            let failed = std::mem::take(&mut state.is_failing);
            return if failed { Noted::WrittenAgain } else { Noted::Written };
        }
        // The last mark stays the end of the file.
        self.file.set_len(state.length).ok();
        // The mark stays, for it parts the records of this turn from those of the next one. Without records, each further attempt
        // would add one more.
        if records.is_empty() {
            frames.truncate(unmarked);
        }
        if !state.unwritten.keep(frames) {
            return self.give_up(state, Noted::Crowded);
        }
        let is_first = !state.is_failing;
        self.mark_alone(state);
        // That mark has no records before it.
        state.is_failing = true;
        Noted::Failed { is_first }
    }

    fn give_up(&self, state: &mut State, why: Noted) -> Noted {
        (state.is_on, state.mark.is_whole) = (false, false);
        drop(state.unwritten.take());
        self.mark_alone(state);
        why
    }

    /// Replaces the first mark: in place, so that it needs no room on the disk. It promises no records.
    fn mark_alone(&self, state: &mut State) -> Noted {
        let mark = Mark { is_whole: false, ..state.mark.clone() };
        let written = mark.frame().is_some_and(|mark| self.file.write_all_at(&mark, 0).is_ok());
        if written {
            state.length = state.length.max(SIZE as u64);
            let failed = std::mem::take(&mut state.is_failing);
            return if failed { Noted::WrittenAgain } else { Noted::Written };
        }
        Noted::Failed { is_first: !std::mem::replace(&mut state.is_failing, true) }
    }
}
