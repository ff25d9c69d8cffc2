//! The next object of a user: what differs from the replica. Blocking, in steps of bounded length.
//!
//! First all files are looked at, then those that may differ are read, piece by piece: memory holds one part of an object
//! at a time. A session's record is read before its journal, so that the journal is never behind it.

mod own;
mod reading;
#[cfg(test)]
mod tests;
mod work;

use std::collections::VecDeque;
use std::io;
use std::time::SystemTime;

use super::delta::{Area, Change, Entry, Writer};
use super::limits::{
    LENGTH_OF_BYTES, PART_BYTES, WORK_BYTES_PER_TURN, WORK_BYTES_WHOLE, WORK_FILES_KNOWN,
    WORK_FILES_PER_TURN, WORK_READ_PER_TURN,
};
use super::places::{Place, UserPlaces};
use super::state::{ChainSize, Changes, Known, UserState};
use crate::model::ids::SessionHash;
use reading::Reading;

/// What goes into an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything there is of a user of whom the store has nothing; of `work/` up to the limits of a turn.
    First,
    /// What these sessions have changed, up to the limits of a turn.
    Turn(Vec<SessionHash>),
    /// What anything has changed, up to the same limits.
    Changes,
    /// What anything has changed, without the limits of a turn: before a session or a user leaves the node.
    Whole,
    /// Everything there is.
    Snapshot,
    /// The same, where the caller has a place among the snapshots that are due.
    Due,
}

impl Scope {
    /// Whether it has the limits of a turn: then it is soon done, and holds nobody up.
    pub(crate) fn is_limited(&self) -> bool {
        matches!(self, Self::First | Self::Turn(_) | Self::Changes)
    }

    /// Whether the object replaces those before.
    pub(crate) fn is_snapshot(&self) -> bool {
        matches!(self, Self::First | Self::Snapshot | Self::Due)
    }
}

/// What is sent beside conversations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// OAuth credentials that the broker renews. Off: clients bring theirs again.
    pub(crate) credentials: bool,
    /// Bytes that the files of a session may take, if they have a limit.
    pub(crate) workspace_bytes: Option<u64>,
}

impl Options {
    /// Bytes of one session's `work/` that are sent as a whole.
    fn work_bytes(self) -> u64 {
        self.workspace_bytes
            .map_or(WORK_BYTES_WHOLE, |bytes| bytes.saturating_mul(LENGTH_OF_BYTES).min(WORK_BYTES_WHOLE))
    }
}

/// What an object has, and what it has not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Files of which something was sent.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Paths that are gone.
    pub(crate) removed: u64,
    /// Files of `work/` beyond the limits of a turn, which go later. With their bytes.
    pub(crate) later_files: u64,
    pub(crate) later_bytes: u64,
    /// Files of `work/` that are never sent: pipes, sockets, devices, second names of files, too long or deep paths, and
    /// what is beyond the limits of a session.
    pub(crate) left_out: u64,
    /// Files and directories of `work/` that are not to be read: a child has closed or exchanged them. What the replica has
    /// of them stays, but for a snapshot.
    pub(crate) unreadable: u64,
    /// A working directory has more entries than are looked at.
    pub(crate) is_cut: bool,
}

/// Limits of what is read of `work/`.
#[derive(Debug, Clone, Copy)]
struct Budget {
    sent: u64,
    read: u64,
    files: u64,
}

impl Budget {
    const TURN: Self =
        Self { sent: WORK_BYTES_PER_TURN, read: WORK_READ_PER_TURN, files: WORK_FILES_PER_TURN };

    /// Of each session.
    fn whole(options: Options) -> Self {
        Self { sent: options.work_bytes(), read: u64::MAX, files: WORK_FILES_KNOWN }
    }
}

/// Something to be looked at closer.
#[derive(Debug)]
enum Job {
    Removed(Place),
    Own(own::Own),
    Work(work::Work),
}

/// An object in the making.
#[derive(Debug)]
pub(crate) struct Collector {
    places: UserPlaces,
    scope: Scope,
    options: Options,
    state: UserState,
    jobs: VecDeque<Job>,
    reading: Option<Reading>,
    writer: Writer,
    changes: Changes,
    budget: Budget,
    /// Whose `work/` the budget is for.
    budget_of: Option<SessionHash>,
    summary: Summary,
    now: SystemTime,
    /// Why the files could not be looked at.
    failed: Option<io::Error>,
    least: ChainSize,
}

/// What a step has led to.
#[derive(Debug)]
pub(crate) enum Step {
    /// A part is full.
    Part(Writer),
    /// The rest.
    Last(Writer),
}

/// A finished collection.
#[derive(Debug)]
pub(crate) struct Collected {
    /// The state as it was.
    pub(crate) state: UserState,
    pub(crate) changes: Changes,
    pub(crate) summary: Summary,
}

impl Collector {
    /// Looks at all files. The state comes back with [`Collector::end`]. What fails, the first step tells.
    pub(crate) fn begin(places: UserPlaces, scope: Scope, options: Options, state: UserState) -> Self {
        let budget = Budget::TURN;
        let mut collector = Self {
            places,
            scope,
            options,
            state,
            jobs: VecDeque::new(),
            reading: None,
            writer: Writer::default(),
            changes: Vec::new(),
            budget,
            budget_of: None,
            summary: Summary::default(),
            now: SystemTime::now(),
            failed: None,
            least: ChainSize::default(),
        };
        collector.failed = collector.look().err();
        if matches!(collector.scope, Scope::Snapshot | Scope::Due) {
            collector.least = collector.measure();
        }
        collector
    }

    /// What the server has written itself must be readable: an object without it would be taken for all there is.
    fn look(&mut self) -> io::Result<()> {
        accessed()?;
        let sessions = self.places.sessions()?;
        self.forgotten(&sessions);
        for session in &sessions {
            let is_wanted = match &self.scope {
                Scope::Turn(touched) => touched.contains(session) || !self.state.has_session(session),
                Scope::First | Scope::Changes | Scope::Whole | Scope::Snapshot | Scope::Due => true,
            };
            if is_wanted {
                self.look_at_record(session)?;
                self.look_at_work(session)?;
            }
        }
        self.look_at_others()
    }

    /// Sessions that the replica has and the user has no more.
    fn forgotten(&mut self, sessions: &[SessionHash]) {
        if self.scope.is_snapshot() {
            return;
        }
        let mut known: Vec<_> = self
            .state
            .files
            .keys()
            .filter_map(|place| match &place.area {
                Area::Record(session) | Area::Work(session) => Some(session.clone()),
                Area::User => None,
            })
            .collect();
        known.sort_unstable();
        known.dedup();
        for session in known {
            if !sessions.contains(&session) {
                self.jobs.push_back(Job::Removed(Place::new(Area::Record(session), Vec::new())));
            }
        }
    }

    /// What the replica has of a place. A snapshot takes nothing as known.
    fn known(&self, place: &Place) -> Option<Known> {
        if self.scope.is_snapshot() { None } else { self.state.files.get(place).copied() }
    }

    /// What a snapshot has at least, as far as it was looked at. Nothing is known of other objects before they are made.
    pub(crate) fn least(&self) -> ChainSize {
        self.least
    }

    /// What the files that are to be sent have, within the limits of each session.
    fn measure(&self) -> ChainSize {
        let (mut size, mut of, mut left) = (ChainSize::default(), None, 0);
        for job in &self.jobs {
            let bytes = match job {
                Job::Removed(_) => 0,
                Job::Own(own) => own.bytes(),
                Job::Work(work) => {
                    if of != Some(work.area()) {
                        (of, left) = (Some(work.area()), self.options.work_bytes());
                    }
                    let fits = left >= work.bytes();
                    left -= if fits { work.bytes() } else { 0 };
                    if fits { work.bytes() } else { 0 }
                }
            };
            size = size.with(bytes, 1);
        }
        size
    }

    /// Reads on, up to the end of a part.
    ///
    /// # Errors
    /// If a file of the server's own cannot be read, or the host lacks something, such as descriptors: nothing of the object
    /// may be used.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            if self.writer.len() >= PART_BYTES {
                return Ok(Step::Part(std::mem::take(&mut self.writer)));
            }
            if let Some(reading) = self.reading.take() {
                self.read_on(reading)?;
                continue;
            }
            match self.jobs.pop_front() {
                None => return Ok(Step::Last(std::mem::take(&mut self.writer))),
                Some(Job::Removed(place)) => self.removed(place),
                Some(Job::Own(own)) => self.own(own)?,
                Some(Job::Work(work)) => self.work(work)?,
            }
        }
    }

    fn removed(&mut self, place: Place) {
        self.summary.removed += 1;
        self.push(&place, Change::Removed);
        self.changes.push((place, None));
    }

    fn push(&mut self, place: &Place, change: Change<'_>) {
        self.writer.push(&Entry { area: place.area.clone(), path: &place.path, change });
    }

    /// Gives the state back, and what the object changes in it.
    pub(crate) fn end(self) -> Collected {
        Collected { state: self.state, changes: self.changes, summary: self.summary }
    }
}

/// An access to a file or directory. Tests let it fail.
#[cfg(not(test))]
fn accessed() -> io::Result<()> {
    Ok(())
}
#[cfg(test)]
use tests::accessed;
