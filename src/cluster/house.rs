//! What this node has of its users, as the decisions of [`ownership`](super::ownership) demand it: files come with a claim, and
//! leave for the store before a release.

mod restore;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Residents;
use super::commit::{Extent, Files};
use super::lately::Lately;
use super::ledger::{Fence, Head, Stored, UserHash};
use super::mark::Mark;
use super::membership::{Host, HostWork, Membership};
use super::replica::Replica;
use super::replica::chain::{Chain, HeadView};
use crate::config;
use crate::error::TurnError;
use crate::model::ids::{SessionHash, UserId};
use crate::support::lock::MutexExt as _;
use crate::telemetry::metrics::ClusterMetrics;

/// Interval of looking for users who rest, for other nodes, and of the metrics.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time after a change that the store did not take in which no user is let go.
const FAILING: Duration = Duration::from_secs(30);
/// Changes of one user that are stored or wait, some kilobytes each: as many as a user may have requests.
const MAX_COMMITS: usize = super::start::MAX_WAITING;

/// A user of this node, or one who is about to be.
pub(super) struct Resident {
    pub(super) user: UserId,
    pub(super) hash: UserHash,
    used: Mutex<Instant>,
    /// Requests in progress.
    requests: AtomicUsize,
    touched: Mutex<HashSet<SessionHash>>,
    /// Number of the last change that is to be stored, and since when one waits.
    pub(super) wanted: AtomicU64,
    pub(super) waits_since: Mutex<Option<Instant>>,
    /// Number of the last change that is stored.
    pub(super) stored_to: AtomicU64,
    /// Whether a change in the background waits for its turn.
    pub(super) changes_wait: AtomicBool,
    /// Places of changes that are stored or wait.
    pub(super) commits: Arc<Semaphore>,
    /// Place of the one snapshot in the background.
    pub(super) snapshot: Arc<Semaphore>,
    /// Whether the next node knows that it may lack the ends of turns that were sent before their objects.
    pub(super) is_announced: AtomicBool,
    /// Of this stay of the user: cancelled when the ownership is over and its children must end at once.
    lost: Mutex<CancellationToken>,
    /// Of this stay as well: cancelled when the user begins to leave, and new after the end.
    stay: Mutex<CancellationToken>,
    /// What has changed is here alone: no node would take it over.
    pub(super) is_too_large: AtomicBool,
    /// `None` until the user's files are here. Held while they come, are stored, one change after the other, or are removed.
    pub(super) files: Arc<tokio::sync::Mutex<Option<Files>>>,
}

impl Resident {
    pub(super) fn used_now(&self) {
        *self.used.lock_unpoisoned() = Instant::now();
    }

    /// Whether the user rests for this time: since the end of the last request.
    fn rests_for(&self, time: Duration) -> bool {
        self.requests.load(Ordering::Acquire) == 0 && self.used.lock_unpoisoned().elapsed() >= time
    }

    pub(super) fn touch(&self, session: &SessionHash) {
        self.touched.lock_unpoisoned().insert(session.clone());
    }

    /// Cancelled when the children of the user must end at once.
    pub(super) fn lost(&self) -> CancellationToken {
        self.lost.lock_unpoisoned().clone()
    }

    /// Cancelled when the user begins to leave, or is lost.
    pub(super) fn stay(&self) -> CancellationToken {
        self.stay.lock_unpoisoned().clone()
    }

    /// Sessions that have changed since the last call.
    pub(super) fn take_touched(&self) -> Vec<SessionHash> {
        self.touched.lock_unpoisoned().drain().collect()
    }

    pub(super) fn wants(&self) -> u64 {
        self.waits_since.lock_unpoisoned().get_or_insert_with(Instant::now);
        self.wanted.fetch_add(1, Ordering::AcqRel) + 1
    }
}

/// A request in progress of a user, which does not rest meanwhile. The user may be lost before the request ends.
#[derive(Debug)]
pub(super) struct InProgress(Weak<Resident>);

impl InProgress {
    pub(super) fn of(resident: &Arc<Resident>) -> Self {
        resident.requests.fetch_add(1, Ordering::AcqRel);
        Self(Arc::downgrade(resident))
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let Some(resident) = self.0.upgrade() {
            resident.used_now();
            resident.requests.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// See the module.
pub(super) struct House {
    pub(super) config: config::Cluster,
    pub(super) data_dir: PathBuf,
    pub(super) replica: Replica,
    pub(super) metrics: Arc<ClusterMetrics>,
    pub(super) tasks: TaskTracker,
    pub(super) residents: OnceLock<Arc<dyn Residents>>,
    pub(super) lately: Mutex<Lately>,
    /// Age of the oldest change that is not stored, in milliseconds, at the last look.
    pub(super) lag_millis: AtomicU64,
    membership: OnceLock<Membership>,
    /// When the store did not take a change. `None` after one that it took.
    pub(super) failed_at: Mutex<Option<Instant>>,
    users: DashMap<UserHash, Arc<Resident>>,
}

impl House {
    pub(super) fn new(
        config: config::Cluster,
        data_dir: PathBuf,
        replica: Replica,
        metrics: Arc<ClusterMetrics>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            config,
            data_dir,
            replica,
            metrics,
            tasks,
            residents: OnceLock::new(),
            lately: Mutex::default(),
            lag_millis: AtomicU64::new(0),
            membership: OnceLock::new(),
            failed_at: Mutex::default(),
            users: DashMap::new(),
        }
    }

    pub(super) fn joined(&self, membership: Membership) {
        self.membership.set(membership).ok();
    }

    pub(super) fn inhabit(&self, residents: Arc<dyn Residents>) {
        self.residents.set(residents).ok();
    }

    /// `None` while the node joins.
    pub(super) fn membership(&self) -> Option<&Membership> {
        self.membership.get()
    }

    pub(super) fn resident(&self, hash: UserHash) -> Option<Arc<Resident>> {
        self.users.get(&hash).map(|resident| resident.clone())
    }

    /// The user's place here, which is kept while the result is held.
    pub(super) fn admit(&self, user: &UserId, hash: UserHash) -> Arc<Resident> {
        let new = || {
            Arc::new(Resident {
                user: user.clone(),
                hash,
                used: Mutex::new(Instant::now()),
                requests: AtomicUsize::new(0),
                touched: Mutex::default(),
                wanted: AtomicU64::new(0),
                waits_since: Mutex::default(),
                stored_to: AtomicU64::new(0),
                changes_wait: AtomicBool::new(false),
                commits: Arc::new(Semaphore::new(MAX_COMMITS)),
                snapshot: Arc::new(Semaphore::new(1)),
                is_announced: AtomicBool::new(false),
                lost: Mutex::default(),
                stay: Mutex::default(),
                is_too_large: AtomicBool::new(false),
                files: Arc::default(),
            })
        };
        self.users.entry(hash).or_insert_with(new).clone()
    }

    /// Gives back a place that was kept while the user may have left.
    pub(super) fn dismiss(&self, resident: Arc<Resident>) {
        let hash = resident.hash;
        drop(resident);
        self.dismiss_unless_here(hash);
    }

    /// Removes the place of a user who has not come and is not expected. Nobody else knows whose children are to be stopped.
    pub(super) fn dismiss_unless_here(&self, hash: UserHash) {
        // Asked under the lock: a request that comes now either finds the place, or makes a new one.
        let is_known = || self.membership().is_some_and(|membership| membership.is_known(hash));
        self.users.remove_if(&hash, |_, resident| Arc::strong_count(resident) == 1 && !is_known());
    }

    /// Lets users go who rest, forgets those who are not here, and keeps the metrics. Until it is dropped.
    pub(super) async fn look_after(self: Arc<Self>) {
        let mut ticks = interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            if let Some(membership) = self.membership() {
                self.look_once(membership);
            }
        }
    }

    /// Who cannot be stored stays: nobody else has the latest changes.
    pub(super) fn may_leave(&self, resident: &Resident, now: Instant) -> bool {
        !self.fails(now) && !resident.is_too_large.load(Ordering::Acquire)
    }

    fn look_once(&self, membership: &Membership) {
        let (mut absent, mut resting) = (Vec::new(), Vec::new());
        let (mut oldest, now) = (Duration::ZERO, Instant::now());
        for resident in &self.users {
            if Arc::strong_count(resident.value()) == 1 && !membership.is_known(resident.hash) {
                absent.push(resident.hash);
                continue;
            }
            if let Some(since) = *resident.waits_since.lock_unpoisoned() {
                oldest = oldest.max(now.duration_since(since));
            }
            if self.may_leave(&resident, now) && resident.rests_for(self.config.release_after) {
                resting.push(resident.hash);
            }
        }
        // They stay if a request comes before. After the look: this may find that the lease is over, and stop others.
        resting.into_iter().for_each(|hash| membership.evict(hash));
        // Who was asked for and could not come.
        absent.into_iter().for_each(|hash| self.dismiss_unless_here(hash));
        self.metrics.lag.set(oldest.as_secs_f64());
        self.lag_millis.store(oldest.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        let nodes = membership.nodes();
        self.metrics.nodes.set(nodes.len() as f64);
        // Without a lease the watch may stand still.
        if membership.deadline().borrow().is_some() {
            self.lately.lock_unpoisoned().saw(nodes, SystemTime::now());
        }
        self.metrics.users.set(membership.users().0 as f64);
    }

    /// Whether the store has not taken changes lately.
    fn fails(&self, now: Instant) -> bool {
        self.failed_at.lock_unpoisoned().is_some_and(|failed| now.duration_since(failed) < FAILING)
    }

    /// Notes what is known of the files of a user here. Whether it is noted.
    pub(super) async fn note(&self, hash: UserHash, mark: Mark) -> bool {
        let noted = mark.write(&self.data_dir, hash).await;
        if let Err(error) = &noted {
            tracing::warn!(%error, "it cannot be noted whether the files of a user are those of the cluster");
        }
        noted.is_ok()
    }

    /// Ends the children of a user in order and stores what is not stored yet.
    async fn close(self: Arc<Self>, hash: UserHash, fence: Fence) {
        let Some((resident, residents)) = self.resident(hash).zip(self.residents.get().cloned()) else {
            tracing::error!(user = ?hash, "a user who leaves this node has no place here: nothing is stored");
            return;
        };
        if !residents.rest(&resident.user).await {
            tracing::warn!("children of a user who leaves this node do not end in order");
            resident.lost().cancel();
            residents.end(&resident.user).await;
        }
        let head = self.membership().and_then(|membership| membership.stored(hash)?.head);
        if head.is_none() && residents.has_no_files(&resident.user).await {
            // A stranger's name is no reason to keep anything.
            return self.leave(resident);
        }
        if head.is_some() {
            // For the case that this node gets the user back before another one.
            self.note(hash, Mark::newer(fence, head.as_ref())).await;
        }
        // What is being stored ends: the last change has it in it.
        resident.stay().cancel();
        match self.commit_last(&resident).await {
            Err(error) => {
                tracing::warn!(%error, "the last changes of a user who leaves this node were not stored");
            }
            Ok(files) => {
                let (house, of) = (self.clone(), resident.clone());
                // Goes on to its end when this is dropped. A claim meanwhile finds the same place, and waits.
                let removing = self.tasks.spawn(async move {
                    // Noted before: what is left of them is never taken for the latest.
                    if house.note(hash, Mark::Stored).await && residents.forget(&of.user).await {
                        house.note(hash, Mark::Never).await;
                    }
                    drop(files);
                    house.dismiss(of);
                });
                removing.await.ok();
            }
        }
        self.leave(resident);
    }

    /// The lease of this node has ended before it left.
    pub(super) fn lease_lost(&self) {
        self.metrics.lease_lost.increment(1);
        self.lately.lock_unpoisoned().leases_lost.note(SystemTime::now());
    }

    async fn stop(self: Arc<Self>, hash: UserHash) {
        let Some((resident, residents)) = self.resident(hash).zip(self.residents.get().cloned()) else {
            // It has just left in order.
            tracing::warn!(user = ?hash, "a user who is lost to the cluster has no place here any more");
            return;
        };
        self.metrics.lost_users.increment(1);
        resident.lost().cancel();
        resident.stay().cancel();
        self.lately.lock_unpoisoned().users_lost.note(SystemTime::now());
        tracing::error!("this node has lost a user to the cluster: its children are ended");
        residents.end(&resident.user).await;
        self.leave(resident);
    }

    /// The user is not here any more. Its place stays for requests that wait until it comes back.
    fn leave(&self, resident: Arc<Resident>) {
        // One who is storing finds out by itself.
        if let Ok(mut files) = resident.files.try_lock() {
            *files = None;
        }
        *resident.waits_since.lock_unpoisoned() = None;
        // A user who comes back begins a new stay.
        resident.take_touched();
        resident.is_too_large.store(false, Ordering::Release);
        *resident.lost.lock_unpoisoned() = CancellationToken::new();
        std::mem::take(&mut *resident.stay.lock_unpoisoned()).cancel();
        let hash = resident.hash;
        drop(resident);
        self.users.remove_if(&hash, |_, resident| Arc::strong_count(resident) == 1);
    }

    /// Deletes what the store and the ledger have of a user.
    pub(super) async fn delete(self: &Arc<Self>, user: &UserId) -> Result<(), TurnError> {
        let hash = UserHash::of(user);
        let Some(resident) = self.resident(hash) else { return Err(TurnError::Moved) };
        // What is left is an empty user, which nothing older can follow.
        self.commit(&resident, Extent::Snapshot).await.map_err(|error| match error {
            TurnError::NotReplicated { .. } => TurnError::NotDeleted,
            error => error,
        })?;
        let stored = self.membership().and_then(|membership| membership.stored(hash));
        let head = stored.and_then(|stored| stored.head).ok_or(TurnError::Moved)?;
        self.replica.clean(hash, &view_of(&head)).await.map_err(|error| {
            tracing::warn!(%error, "objects of a user who was deleted are still in the store");
            TurnError::NotDeleted
        })?;
        Ok(())
    }
}

/// The head as the replica has it.
pub(super) fn view_of(head: &Head) -> HeadView {
    HeadView { fence: head.fence.0, seq: head.seq, chain: chain_of(head) }
}

/// The chain as the replica has it.
pub(super) fn chain_of(head: &Head) -> Chain {
    Chain(head.chain.clone())
}

/// The house, as the membership sees it.
pub(super) struct Steward(pub(super) Arc<House>);

impl Host for Steward {
    fn restore(&self, user: UserHash, fence: Fence, stored: Stored) -> HostWork<bool> {
        Box::pin(self.0.clone().restore(user, fence, stored))
    }

    fn close(&self, user: UserHash, fence: Fence) -> HostWork<()> {
        Box::pin(self.0.clone().close(user, fence))
    }

    fn stop(&self, user: UserHash, _: Fence) -> HostWork<()> {
        Box::pin(self.0.clone().stop(user))
    }
}
