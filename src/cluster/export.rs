//! All users of a cluster as the files of a single node, from the ledger and the store alone: no node is needed.

use std::path::Path;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio_util::task::TaskTracker;

use super::house::chain_of;
use super::ledger::{Etcd, Head, Key, Keys, Ledger as _, LedgerError, RecordError, UserHash};
use super::replica::fetch::LossCause;
use super::replica::store::StoreError;
use super::replica::{Replica, TakeOverError, TakenOut};
use super::start;
use crate::config::Config;
use crate::error::StartError;
use crate::model::ids::UserId;

/// Users that are fetched at the same time.
const AT_ONCE: usize = 4;
/// Heads that are read of a user whose objects are replaced meanwhile.
const MOST_HEADS: usize = 5;

/// Why not all users were exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the record of a user in etcd: {0}")]
    Record(#[from] RecordError),
    #[error(transparent)]
    User(#[from] TakeOverError),
}

impl ExportError {
    /// Whether it concerns one user. Others are exported all the same, and a repetition would find the same.
    fn is_of_one_user(&self) -> bool {
        match self {
            Self::Ledger(_) | Self::User(TakeOverError::Io(_) | TakeOverError::GivenUp) => false,
            Self::Record(_) | Self::User(TakeOverError::TooMuch) => true,
            Self::User(TakeOverError::Lost(loss)) => {
                !matches!(loss.cause, LossCause::Store(StoreError::Unavailable(_) | StoreError::Denied))
            }
        }
    }
}

/// Where users are read from, and where their files go.
pub(crate) struct Exporter {
    ledger: Etcd,
    keys: Keys,
    replica: Replica,
}

/// A user whose files are in the directory now.
#[derive(Debug)]
pub(crate) struct Exported {
    /// `None` without a conversation that names it.
    pub(crate) user: Option<UserId>,
    pub(crate) sessions: usize,
    /// Stored responses of a user without a conversation are left out: nothing names the user.
    pub(crate) is_whole: bool,
    /// The latest turns are lost, or may be.
    pub(crate) may_lack: bool,
}

/// Some heads, and where the next ones begin.
type Heads = (Vec<(UserHash, Result<Head, RecordError>)>, Option<Vec<u8>>);

impl Exporter {
    /// # Errors
    /// [`StartError::Cluster`]
    pub(crate) async fn open(config: &Config, data_dir: &Path) -> Result<Self, StartError> {
        Ok(Self {
            ledger: start::etcd(&config.cluster).await?,
            keys: Keys::new(&config.cluster.prefix),
            replica: start::replica(config, data_dir, &TaskTracker::new())?,
        })
    }

    /// Names of the nodes that live, some of them if they are many.
    ///
    /// # Errors
    /// The ledger.
    pub(crate) async fn live_nodes(&self) -> Result<Vec<String>, LedgerError> {
        let (start, end) = self.keys.watched();
        let page = self.ledger.range(start, end, 0).await?;
        let name = |key: &[u8]| match self.keys.parse(key) {
            Some(Key::Node(id)) => Some(id.to_string()),
            _ => None,
        };
        Ok(page.keys.iter().filter_map(|kv| name(&kv.key)).collect())
    }

    /// Exports all users. `each` gets every one of them. Returns the number of those of whom nothing could be read.
    ///
    /// # Errors
    /// [`ExportError`] that concerns all users; what is there is incomplete then.
    pub(crate) async fn run(&self, mut each: impl FnMut(Exported)) -> Result<usize, ExportError> {
        let mut failed = 0;
        let mut from = Some(self.keys.heads().0);
        while let Some(start) = from {
            let (heads, next) = self.heads(start).await?;
            let users = stream::iter(heads).map(|(user, head)| async move {
                let exported = async { self.user(user, head?).await };
                (user, exported.await)
            });
            let mut users = std::pin::pin!(users.buffer_unordered(AT_ONCE));
            while let Some((user, exported)) = users.next().await {
                match exported {
                    Ok(Some(exported)) => each(exported),
                    Ok(None) => failed += 1,
                    Err(error) if error.is_of_one_user() => {
                        tracing::error!(?user, %error, "a user is not exported");
                        failed += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            from = next;
        }
        Ok(failed)
    }

    async fn heads(&self, start: Vec<u8>) -> Result<Heads, ExportError> {
        let page = self.ledger.range(start, self.keys.heads().1, 0).await?;
        // The key after the last one is the same with a zero byte.
        let next = page.keys.last().filter(|_| page.more).map(|last| [last.key.as_slice(), &[0]].concat());
        let mut heads = Vec::new();
        for kv in page.keys {
            if let Some(Key::Head(user)) = self.keys.parse(&kv.key) {
                heads.push((user, Head::decode(&kv.value)));
            }
        }
        Ok((heads, next))
    }

    /// `None`: nothing of the user's objects could be read.
    async fn user(&self, hash: UserHash, mut head: Head) -> Result<Option<Exported>, ExportError> {
        let mut count = 0;
        loop {
            let taken = self.replica.take_out(hash, &chain_of(&head)).await;
            let is_lost = match &taken {
                Ok(taken) => taken.loss.is_some(),
                Err(TakeOverError::Lost(loss)) => !loss.is_temporary(),
                Err(_) => false,
            };
            count += 1;
            // A snapshot may have replaced its objects meanwhile.
            if is_lost
                && count < MOST_HEADS
                && let Some(now) = self.head(hash).await?
                && now != head
            {
                head = now;
                continue;
            }
            let TakenOut { user, sessions, is_whole, loss } = taken?;
            if let Some(loss) = loss.as_ref().filter(|_| user.is_none()) {
                tracing::error!(user = ?hash, error = %loss, "objects of a user are lost: it is not exported");
                return Ok(None);
            }
            // Ends of turns that were sent before their objects may have no object.
            let may_lack = loss.is_some() || (head.early && !head.released);
            return Ok(Some(Exported { user, sessions, is_whole, may_lack }));
        }
    }

    /// The present head of a user.
    async fn head(&self, user: UserHash) -> Result<Option<Head>, ExportError> {
        let key = self.keys.head(user);
        let end = [key.as_slice(), &[0]].concat();
        let page = self.ledger.range(key, end, 0).await?;
        Ok(page.keys.first().map(|kv| Head::decode(&kv.value)).transpose()?)
    }
}
