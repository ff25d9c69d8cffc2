//! The object store: objects are created once, read whole, listed and deleted, each within a time limit.
//!
//! A directory (`file:///…`), or a bucket (`s3://bucket/prefix`); others by the features of `object_store`. Requests are
//! repeated here and not by that crate, so that every kind of store has the same limits. Errors have no addresses and no
//! answers of a server in them: those may hold what is no log's business.

mod config;
mod connector;
mod error;
mod local;
#[cfg(test)]
pub(in crate::cluster) mod tests;
mod tries;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetResultPayload, ObjectStore, PutMode, PutOptions, PutPayload};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::delta::Encoded;
use super::key::{Key, ROOT, UserHash};
use super::limits::{LISTED_PER_USER, MAX_OBJECT_BYTES};
pub(crate) use config::StoreConfig;
pub(crate) use error::{OpenError, StoreError};
use local::Local;
use tries::TRIES;

/// Requests to the store at a time. Further ones wait. With a directory that does not answer, as many threads hang.
const IN_FLIGHT: usize = 32;

/// A store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    objects: Arc<dyn ObjectStore>,
    /// Directory of the configuration within the store.
    prefix: Path,
    local: Option<Local>,
    in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Time of one try.
    try_for: Duration,
    /// Time of a request with all tries.
    give_up_after: Duration,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

/// What became of a creation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// The object is there.
    Written,
    /// There is another one under its name.
    Exists(Bytes),
}

/// An object in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: Key,
    pub(crate) bytes: u64,
}

/// What one try has led to.
enum Put {
    Written,
    Exists,
}

impl Store {
    /// `tasks`: what a request that is given up leaves behind.
    ///
    /// # Errors
    /// [`OpenError`]
    pub(crate) fn open(config: &StoreConfig, tasks: TaskTracker) -> Result<Self, OpenError> {
        let config::Opened { objects, prefix, local } = config.open()?;
        Ok(Self(Arc::new(Inner {
            objects,
            prefix,
            local,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            tasks,
            try_for: config.try_for,
            give_up_after: config.give_up_after,
        })))
    }

    /// Creates an object. An object with the same content that is already there is the same: an answer was lost.
    ///
    /// # Errors
    /// [`StoreError`]; the object may be there all the same.
    pub(crate) async fn create(&self, key: &Key, object: &Encoded) -> Result<Created, StoreError> {
        for _ in 1..TRIES {
            match self.create_once(key, object).await {
                // Another request under the name was in progress, and came to nothing.
                Err(StoreError::Missing) => {}
                done => return done,
            }
        }
        self.create_once(key, object).await
    }

    async fn create_once(&self, key: &Key, object: &Encoded) -> Result<Created, StoreError> {
        let payload: PutPayload = object.pieces.iter().cloned().collect();
        let path = self.path(key);
        let put = self.tried_for(Some(&path), |store| {
            let (path, payload) = (path.clone(), payload.clone());
            async move {
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match store.objects.put_opts(&path, payload, options).await {
                    Ok(_) => Ok(Put::Written),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Exists),
                    Err(error) => Err(StoreError::of(&error).of_put()),
                }
            }
        });
        if let Put::Written = put.await? {
            return Ok(Created::Written);
        }
        let found = self.get(key).await?;
        if found != object.pieces.concat() {
            return Ok(Created::Exists(found));
        }
        if let Some(local) = self.0.local.clone() {
            // Its writer may have been killed before the name was on the disk.
            self.tried(|_| local.clone().sync(path.clone())).await?;
        }
        Ok(Created::Written)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn get(&self, key: &Key) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        self.tried(|store| {
            let path = path.clone();
            async move {
                let found = store.objects.get_opts(&path, GetOptions::default()).await;
                let found = found.map_err(|error| StoreError::of(&error))?;
                if found.meta.size > MAX_OBJECT_BYTES as u64 {
                    return Err(StoreError::TooLarge);
                }
                if let GetResultPayload::File(..) = found.payload {
                    // At once, and not in small pieces, each on a thread for it.
                    return found.bytes().await.map_err(|error| StoreError::of(&error));
                }
                let mut content =
                    BytesMut::with_capacity(usize::try_from(found.meta.size).unwrap_or_default());
                let mut pieces = found.into_stream();
                while let Some(piece) = pieces.next().await {
                    content.extend_from_slice(&piece.map_err(|error| StoreError::of(&error))?);
                    if content.len() > MAX_OBJECT_BYTES {
                        return Err(StoreError::TooLarge);
                    }
                }
                Ok(content.freeze())
            }
        })
        .await
    }

    /// Deletes objects. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`]; some of them may be deleted.
    pub(crate) async fn delete(&self, keys: &[Key]) -> Result<(), StoreError> {
        let paths: Vec<_> = keys.iter().map(|key| self.path(key)).collect();
        self.tried(|store| {
            let paths: Vec<_> = paths.iter().cloned().map(Ok).collect();
            async move {
                let mut deleted = store.objects.delete_stream(stream::iter(paths).boxed());
                while let Some(deleted) = deleted.next().await {
                    match deleted.map_err(|error| StoreError::of(&error)) {
                        Ok(_) | Err(StoreError::Missing) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
        })
        .await
    }

    /// The objects of a user, in no order; other names are left out. With more than the limit: `false`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn list(&self, user: UserHash) -> Result<(Vec<Listed>, bool), StoreError> {
        let prefix = self.child(&format!("{ROOT}/{user}"));
        let base = self.0.prefix.clone();
        self.tried(|store| {
            let (prefix, base) = (prefix.clone(), base.clone());
            async move {
                let mut found = Vec::new();
                let mut objects = store.objects.list(Some(&prefix));
                while let Some(object) = objects.try_next().await.map_err(|error| StoreError::of(&error))? {
                    if found.len() == LISTED_PER_USER {
                        return Ok((found, false));
                    }
                    let name = object.location.prefix_match(&base).map(|parts| {
                        parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/")
                    });
                    let key = name.and_then(|name| Key::parse(&name)).filter(|key| key.user == user);
                    found.extend(key.map(|key| Listed { key, bytes: object.size }));
                }
                Ok((found, true))
            }
        })
        .await
    }

    /// Removes what killed writers have left of a user's objects, older than `age`. Only a directory has such files.
    ///
    /// # Errors
    /// [`StoreError`]
    pub(crate) async fn sweep(&self, user: UserHash, age: Duration) -> Result<(), StoreError> {
        let Some(local) = &self.0.local else { return Ok(()) };
        let path = self.child(&format!("{ROOT}/{user}"));
        self.tried(|_| local.clone().sweep(path.clone(), age)).await
    }

    fn path(&self, key: &Key) -> Path {
        self.child(&key.to_string())
    }

    fn child(&self, name: &str) -> Path {
        name.split('/').fold(self.0.prefix.clone(), |path, name| path.join(name))
    }
}
