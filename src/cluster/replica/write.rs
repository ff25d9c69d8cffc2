//! One more object of a user.

use std::io;

use super::Replica;
use super::collect::{Collected, Collector, Scope, Step, Summary};
use super::delta::{Decoded, Digest, Encoded, Header, Kind};
use super::key::{Key, ObjectId};
use super::places::UserPlaces;
use super::state::{ChainSize, UserState};
use super::store::{Created, StoreError};
use crate::model::ids::UserId;
use crate::support::blocking::blocking_long;

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicateError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user's files cannot be read.
    #[error("the data directory: {0}")]
    Io(#[from] io::Error),
    /// What lies under the object's name is damaged, or nobody's that had this fence. Another number may be free.
    #[error("something else is in the place of the object")]
    Occupied,
    /// No node would take it over.
    #[error("the user has more data than a node takes over")]
    TooMuch,
}

/// An object that is in the store. It counts once the head names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectInfo {
    pub(crate) id: ObjectId,
    /// A snapshot begins a chain; a delta goes on with one.
    pub(crate) kind: Kind,
    pub(crate) digest: Digest,
    /// With its parts.
    pub(crate) bytes: u64,
    pub(crate) parts: usize,
    /// It has what there is now. Otherwise it is the object of an earlier call whose answer was lost: what has changed since
    /// needs the next object.
    pub(crate) is_current: bool,
    pub(crate) summary: Summary,
}

impl Replica {
    /// Writes what has changed of a user as object `seq`. Returns once the store has it. Without a known state, and where the
    /// chain has no room for more changes, the object is a snapshot.
    ///
    /// After an error the same `seq` may be tried again: what an earlier try has written is found and taken as the object.
    /// If this future is dropped while it makes a delta, the state is no longer known, and the next object is a snapshot.
    ///
    /// # Errors
    /// [`ReplicateError`]
    pub(crate) async fn replicate(
        &self,
        user: &UserId,
        fence: u64,
        seq: u64,
        scope: Scope,
        state: &mut UserState,
    ) -> Result<ObjectInfo, ReplicateError> {
        let id = ObjectId { fence, seq };
        let scope = if state.is_known() || scope.is_snapshot() { scope } else { Scope::Snapshot };
        let may_begin_again = !scope.is_snapshot();
        match self.write(user, id, scope, state).await {
            Err(ReplicateError::TooMuch) if may_begin_again => {
                self.write(user, id, Scope::Snapshot, state).await
            }
            done => done,
        }
    }

    async fn write(
        &self,
        user: &UserId,
        id: ObjectId,
        scope: Scope,
        state: &mut UserState,
    ) -> Result<ObjectInfo, ReplicateError> {
        let at_once = match scope {
            Scope::Due => None,
            _ if scope.is_limited() => Some(&self.turns),
            _ => Some(&self.wholes),
        };
        let _permit = match at_once {
            Some(at_once) => Some(at_once.acquire().await.map_err(io::Error::other)?),
            None => None,
        };
        let places = UserPlaces::of(&self.data_dir, user);
        let kind = if scope.is_snapshot() { Kind::Snapshot } else { Kind::Delta };
        let before = if kind == Kind::Snapshot { ChainSize::default() } else { state.size() };
        let header = Header { kind, user: places.hash(), id, parts: Vec::new() };
        // A snapshot takes nothing as known, and what is known stays if it is given up.
        let taken = if kind == Kind::Snapshot { UserState::default() } else { std::mem::take(state) };
        let options = self.options;
        let begin = move || Collector::begin(places, scope, options, taken);
        let (collector, result) = self.collect(begin, header, before).await?;
        let Collected { state: unchanged, changes, summary } = collector.end();
        if kind == Kind::Delta {
            *state = unchanged;
        }
        let Sent { header, object, size } = result?;
        let key = Key { user: header.user, id: header.id, part: None };
        let info = ObjectInfo {
            id: header.id,
            kind: header.kind,
            digest: object.digest,
            bytes: size.bytes - before.bytes,
            parts: header.parts.len(),
            is_current: true,
            summary,
        };
        // Noted before: the object may be there also if no answer comes.
        state.attempt(header.id, object.digest, header.kind == Kind::Snapshot, changes, size);
        match self.store.create(&key, &object).await? {
            Created::Written => {
                state.written(header.id, &object.digest);
                Ok(info)
            }
            Created::Exists(found) => {
                let found = Decoded::parse(found).map_err(|_| ReplicateError::Occupied)?;
                adopt(state, &header, found).ok_or(ReplicateError::Occupied)
            }
        }
    }

    /// Reads the user's files and sends all parts but the last. `size`: of the chain before.
    async fn collect(
        &self,
        begin: impl FnOnce() -> Collector + Send + 'static,
        mut header: Header,
        mut size: ChainSize,
    ) -> io::Result<(Collector, Result<Sent, ReplicateError>)> {
        let step = |mut collector: Collector| {
            let step = collector.step();
            Ok((collector, step))
        };
        let (mut collector, mut next) = blocking_long(move || step(begin())).await?;
        let result = loop {
            // Found out before anything is sent: it would be sent once more with each try.
            if !collector.least().fits() {
                break Err(ReplicateError::TooMuch);
            }
            let writer = match next {
                Err(error) => break Err(error.into()),
                Ok(Step::Last(writer)) => {
                    let object = writer.finish(&header);
                    size = size.with(object.len() as u64, object.entries.into());
                    break if size.fits() {
                        Ok(Sent { header, object, size })
                    } else {
                        Err(ReplicateError::TooMuch)
                    };
                }
                Ok(Step::Part(writer)) => writer,
            };
            let Header { user, id, .. } = header;
            let part = writer.finish(&Header { kind: Kind::Part, user, id, parts: Vec::new() });
            size = size.with(part.len() as u64, part.entries.into());
            if !size.fits() {
                break Err(ReplicateError::TooMuch);
            }
            match self.part(&header, &part).await {
                Ok(()) => header.parts.push(part.digest),
                Err(error) => break Err(error),
            }
            (collector, next) = blocking_long(move || step(collector)).await?;
        };
        Ok((collector, result))
    }

    async fn part(&self, header: &Header, part: &Encoded) -> Result<(), ReplicateError> {
        let key = Key { user: header.user, id: header.id, part: Some(part.digest) };
        match self.store.create(&key, part).await? {
            Created::Written => Ok(()),
            Created::Exists(_) => Err(ReplicateError::Occupied),
        }
    }
}

/// What is sent of an object but the object itself.
struct Sent {
    header: Header,
    object: Encoded,
    /// Of the chain with it.
    size: ChainSize,
}

/// Takes an object that an earlier call has written. `None`: it is another's.
fn adopt(state: &mut UserState, header: &Header, found: Decoded) -> Option<ObjectInfo> {
    let Header { kind, user, id, parts } = &found.header;
    if *user != header.user || *id != header.id || *kind == Kind::Part {
        return None;
    }
    if !state.written(*id, &found.digest) {
        // Of a call that was dropped. What it had sent is not known any more.
        *state = UserState::default();
    }
    Some(ObjectInfo {
        id: *id,
        kind: *kind,
        digest: found.digest,
        bytes: found.len() as u64,
        parts: parts.len(),
        is_current: false,
        summary: Summary::default(),
    })
}
