//! The objects of a chain from the store, checked, in order.
//!
//! Some objects are fetched ahead, and the parts of one are fetched when it is reached: memory holds a bounded number. The
//! first object that is missing or damaged ends it.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::chain::Chain;
use super::delta::{Damage, Decoded, Header, Kind};
use super::key::{Key, ObjectId, UserHash};
use super::limits::{FETCHED_AHEAD, PARTS_AHEAD};
use super::store::{Store, StoreError};
use crate::support::blocking::blocking_long;

/// Longest object that is checked without a thread for it: that takes less than a millisecond.
const PARSED_AT_ONCE: usize = 128 << 10;

/// Why an object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LossCause {
    /// The store has not got it, or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its bytes are not those that were written.
    #[error("an object is damaged: {0}")]
    Damaged(#[from] Damage),
    /// It is another object than its name says.
    #[error("an object is in the place of another")]
    Misplaced,
    /// It changes what is not there.
    #[error("an object does not fit the ones before it")]
    Unfit,
    /// The chain begins with no snapshot, or numbers are missing in it.
    #[error("the chain of objects is incomplete")]
    Chain,
}

/// What of a chain is lost: this object and all after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the user's data is lost from object {from} on: {cause}")]
pub(crate) struct Loss {
    /// Number of the first object that is lost.
    pub(crate) from: u64,
    pub(crate) cause: LossCause,
}

impl Loss {
    /// Whether a later try may find what is missing: then nothing is lost yet.
    pub(crate) fn is_temporary(&self) -> bool {
        match &self.cause {
            LossCause::Store(error) => error.is_temporary() || *error == StoreError::Denied,
            // A program of a later version, which this node is to become.
            LossCause::Damaged(Damage::Format(_)) => true,
            _ => false,
        }
    }
}

/// An object, or a part of one.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) id: ObjectId,
    /// A snapshot begins with it.
    pub(crate) begins: bool,
    /// The object is whole with it.
    pub(crate) ends: bool,
    pub(crate) object: Decoded,
}

/// The objects of a chain.
pub(crate) struct Fetch {
    store: Store,
    objects: BoxStream<'static, (ObjectId, Result<Decoded, LossCause>)>,
    current: Option<Current>,
    is_first: bool,
    is_ended: bool,
}

/// An object whose parts come first.
struct Current {
    object: Decoded,
    parts: BoxStream<'static, Result<Decoded, LossCause>>,
    begins: bool,
}

impl Fetch {
    pub(super) fn new(store: Store, user: UserHash, chain: &Chain) -> Result<Self, Loss> {
        let from = chain.0.first().map_or(0, |range| range.from);
        let ids = chain.objects().filter(|ids| !ids.is_empty());
        let ids = ids.ok_or(Loss { from, cause: LossCause::Chain })?;
        let fetched_by = store.clone();
        let objects = stream::iter(ids).map(move |id| {
            let store = fetched_by.clone();
            async move { (id, fetched(&store, Key { user, id, part: None }).await) }
        });
        let objects = objects.buffered(FETCHED_AHEAD).boxed();
        Ok(Self { store, objects, current: None, is_first: true, is_ended: false })
    }

    /// The next object or part; `None` at the end of the chain. Nothing follows a loss.
    pub(crate) async fn next(&mut self) -> Option<Result<Fetched, Loss>> {
        if self.is_ended {
            return None;
        }
        let next = self.try_next().await;
        self.is_ended = !matches!(next, Some(Ok(_)));
        next
    }

    async fn try_next(&mut self) -> Option<Result<Fetched, Loss>> {
        let mut current = match self.current.take() {
            Some(current) => current,
            None => {
                let (id, object) = self.objects.next().await?;
                match self.begin(object) {
                    Ok(current) => current,
                    Err(cause) => return Some(Err(Loss { from: id.seq, cause })),
                }
            }
        };
        let id = current.object.header.id;
        let begins = std::mem::take(&mut current.begins);
        let Some(part) = current.parts.next().await else {
            return Some(Ok(Fetched { id, begins, ends: true, object: current.object }));
        };
        self.current = Some(current);
        let fetched = part.map(|object| Fetched { id, begins, ends: false, object });
        Some(fetched.map_err(|cause| Loss { from: id.seq, cause }))
    }

    fn begin(&mut self, object: Result<Decoded, LossCause>) -> Result<Current, LossCause> {
        let object = object?;
        let begins = object.header.kind == Kind::Snapshot;
        if std::mem::take(&mut self.is_first) && !begins {
            return Err(LossCause::Chain);
        }
        let (store, header) = (self.store.clone(), object.header.clone());
        let parts = stream::iter(header.parts).map(move |part| {
            let (store, key) = (store.clone(), Key { user: header.user, id: header.id, part: Some(part) });
            async move { fetched(&store, key).await }
        });
        let parts = parts.buffered(PARTS_AHEAD).boxed();
        Ok(Current { object, parts, begins })
    }
}

/// An object that is the one that its name says.
async fn fetched(store: &Store, key: Key) -> Result<Decoded, LossCause> {
    let bytes = store.get(&key).await?;
    let object = if bytes.len() > PARSED_AT_ONCE {
        let parsed = blocking_long(move || Ok(Decoded::parse(bytes))).await;
        parsed.map_err(|_| StoreError::Unavailable("the check of an object failed".to_owned()))??
    } else {
        Decoded::parse(bytes)?
    };
    let Header { kind, user, id, .. } = &object.header;
    let is_named = match key.part {
        Some(digest) => *kind == Kind::Part && object.digest == digest,
        None => *kind != Kind::Part,
    };
    if is_named && *user == key.user && *id == key.id { Ok(object) } else { Err(LossCause::Misplaced) }
}
