//! The task that keeps the cache, and reports owners to the decisions.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::Inner;
use super::cache::{Cache, Seen};
use crate::cluster::ledger::{
    Change, Fence, Key, KeyValue, LedgerError, NodeId, Owner, Page, Revision, UserHash, Watch,
};
use crate::cluster::ownership::Event;

/// Pause after a failed read or watch.
const PAUSE: Duration = Duration::from_millis(200);
/// Maximum pause between two reads of everything.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Maximum number of pages of a read.
const MAX_PAGES: usize = 10_000;

impl Inner {
    pub(super) fn cache(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn keep_cache(self: Arc<Self>, ready: oneshot::Sender<()>) {
        let mut ready = Some(ready);
        let (mut failures, mut seen) = (0_u32, 0);
        loop {
            let began = Instant::now();
            match self.read_all(seen).await {
                Ok(revision) => {
                    seen = revision;
                    if let Some(ready) = ready.take() {
                        // The caller of the join may be gone.
                        ready.send(()).ok();
                    }
                    let error = self.follow(&mut seen).await;
                    if error == LedgerError::WentBack {
                        tracing::error!(%error, "users whose owners it does not have any more are lost to this node");
                    }
                    tracing::debug!(%error, "nodes and owners are read again");
                }
                Err(error) => tracing::warn!(%error, "cannot read nodes and owners"),
            }
            // Reading all is expensive: seldom, if it fails again and again.
            failures = if began.elapsed() > MAX_PAUSE { 0 } else { failures.saturating_add(1) };
            let pause = PAUSE.saturating_mul(1 << failures.min(8)).min(MAX_PAUSE);
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
    }

    /// Reads all nodes and owners as of one revision. `before`: the last one that was seen.
    async fn read_all(self: &Arc<Self>, before: Revision) -> Result<Revision, LedgerError> {
        let (start, end) = self.keys.watched();
        // Of users who come meanwhile, changes tell.
        let held: HashSet<UserHash> = self.state().machine.held().map(|(user, _)| user).collect();
        let (revision, found) = self.read_range(start, end).await?;
        // Users of this node as they were read, also those whose key is gone: not as the cache has room for them.
        let mut seen: HashMap<UserHash, Option<(NodeId, Fence)>> =
            held.into_iter().map(|user| (user, None)).collect();
        for kv in &found {
            if let Some(Key::Owner(user)) = self.keys.parse(&kv.key)
                && let Ok(owner) = Owner::decode(&kv.value)
                && (owner.node == self.id || seen.contains_key(&user))
            {
                seen.insert(user, Some((owner.node, Fence(kv.created))));
            }
        }
        {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            cache.replace(&self.keys, found);
        }
        // Numbers of a history that is no more say nothing of what came first.
        let as_of = if revision < before { Revision::MAX } else { revision };
        self.feed_all(seen.into_iter().map(|(user, owner)| event((user, owner, as_of))));
        Ok(revision)
    }

    /// Every key of a range, page by page, as of the revision of the first one.
    pub(super) async fn read_range(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
    ) -> Result<(Revision, Vec<KeyValue>), LedgerError> {
        let mut found: Vec<KeyValue> = Vec::new();
        let (mut from, mut revision) = (start, 0);
        for _ in 0..MAX_PAGES {
            let page = self.ledger.range(from, end.clone(), revision).await?;
            if revision == 0 {
                revision = page.revision;
            }
            found.extend(page.keys);
            match found.last() {
                // The key after the last one is the same with a zero byte.
                Some(last) if page.more => from = [last.key.as_slice(), &[0]].concat(),
                _ => return Ok((revision, found)),
            }
        }
        Err(LedgerError::TooLarge("range"))
    }

    /// Follows the changes after a revision until they can be followed no more.
    async fn follow(self: &Arc<Self>, seen: &mut Revision) -> LedgerError {
        loop {
            let mut watch = match self.watch_after(*seen).await {
                Ok(watch) => watch,
                Err(error) if error.is_unavailable() => {
                    sleep(PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    continue;
                }
                Err(error) => return error,
            };
            loop {
                match watch.next().await {
                    Ok(changes) => {
                        *seen = changes.last().map_or(*seen, Change::revision).max(*seen);
                        self.take_over(&changes);
                    }
                    // The next watch goes on where this one has ended.
                    Err(LedgerError::Silent) => break,
                    Err(error) if error.is_unavailable() => {
                        sleep(PAUSE.mul_f64(fastrand::f64())).await;
                        break;
                    }
                    Err(error) => return error,
                }
            }
        }
    }

    /// Watches what comes after a revision.
    async fn watch_after(&self, seen: Revision) -> Result<Box<dyn Watch>, LedgerError> {
        let (start, end) = self.keys.watched();
        let watch = self.ledger.watch(start, end, seen + 1).await?;
        // Of a ledger that was set back, a watch would wait until its numbers come here again.
        let page = self.one(self.keys.node(&self.id)).await?;
        if page.revision < seen { Err(LedgerError::WentBack) } else { Ok(watch) }
    }

    fn take_over(self: &Arc<Self>, changes: &[Change]) {
        let seen: Vec<Seen> = {
            let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
            changes.iter().filter_map(|change| cache.apply(&self.keys, change)).collect()
        };
        self.feed_all(seen.into_iter().map(event));
    }

    async fn one(&self, key: Vec<u8>) -> Result<Page, LedgerError> {
        // The range of one key: up to the same with a zero byte.
        let end = [key.as_slice(), &[0]].concat();
        self.ledger.range(key, end, 0).await
    }

    pub(super) async fn locate(&self, user: UserHash) -> Result<Option<NodeId>, LedgerError> {
        let page = self.one(self.keys.owner(user)).await?;
        let Some(kv) = page.keys.first() else { return Ok(None) };
        match Owner::decode(&kv.value) {
            Ok(owner) => Ok(Some(owner.node)),
            Err(_) => Err(LedgerError::BadAnswer("the record of an owner")),
        }
    }
}

fn event((user, owner, revision): Seen) -> Event {
    Event::Seen { user, owner, revision }
}
