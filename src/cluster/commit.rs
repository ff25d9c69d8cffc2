//! One change of a user on its way: an object in the store, then the head in the ledger, which only the owner's fence allows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout};

use super::Cluster;
use super::house::{House, Resident};
use super::ledger::{Fence, Head, UserHash};
use super::ownership::CommitEnd;
use super::replica::chain::Since;
use super::replica::collect::Scope;
use super::replica::delta::Kind;
use super::replica::{ReplicateError, UserState};
use crate::config::Replication;
use crate::error::TurnError;
use crate::model::ids::UserId;
use crate::support::lock::MutexExt as _;
use crate::telemetry::metrics::CommitResult;

/// Maximum time that a change is tried to be stored. What is not stored then goes with the next change.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
/// Pause after a store or a ledger that does not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// Least time between a snapshot that failed and the next one in the background.
const SNAPSHOT_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What the store has of a user.
pub(super) struct Files {
    pub(super) fence: Fence,
    pub(super) state: UserState,
    pub(super) since: Since,
    /// If it is not known what the store has: the next change sends everything.
    pub(super) is_unknown: bool,
    /// The first object was beyond the limits of a turn, and nothing was sent as a whole since.
    pub(super) is_partial: bool,
    /// When a snapshot in the background has failed.
    pub(super) snapshot_failed: Option<Instant>,
}

impl Files {
    /// Of a user of whom the store has nothing.
    pub(super) fn new(fence: Fence) -> Self {
        let (state, since) = (UserState::default(), Since::default());
        Self { fence, state, since, is_unknown: false, is_partial: false, snapshot_failed: None }
    }

    /// Whether a snapshot is to be made in the background.
    fn wants_snapshot(&self, resident: &Resident) -> bool {
        let is_wanted =
            self.is_partial || self.since.is_snapshot_due() || resident.is_too_large.load(Ordering::Acquire);
        is_wanted && self.snapshot_failed.is_none_or(|failed| failed.elapsed() >= SNAPSHOT_AGAIN_AFTER)
    }
}

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What sessions have changed, within the limits of a turn.
    Turn,
    /// Whatever has changed, within the same limits: who changes something without a turn says not what.
    Changes,
    /// Everything as it is now.
    Snapshot,
    /// The same in the background, and once: nothing is missing without it.
    Due,
    /// All changes, before the user leaves this node.
    Last,
}

impl Extent {
    /// Whether it has the limits of a turn: a caller may wait for it.
    fn is_limited(self) -> bool {
        matches!(self, Self::Turn | Self::Changes)
    }
}

impl Cluster {
    /// Stores what has changed of a user. Other nodes can go on after it once this is done.
    ///
    /// # Errors
    /// [`TurnError::Moved`] if the user has another node, [`TurnError::NotReplicated`] if it took too long: what is missing
    /// goes with the next change.
    pub(crate) async fn commit(&self, user: &UserId) -> Result<(), TurnError> {
        let Some(resident) = self.house.resident(UserHash::of(user)) else { return Err(TurnError::Moved) };
        self.house.commit(&resident, Extent::Turn).await
    }

    /// As [`Cluster::commit`], for a change that is no turn.
    ///
    /// # Errors
    /// As [`Cluster::commit`].
    pub(crate) async fn commit_changes(&self, user: &UserId) -> Result<(), TurnError> {
        let Some(resident) = self.house.resident(UserHash::of(user)) else { return Err(TurnError::Moved) };
        self.house.commit(&resident, Extent::Changes).await
    }

    /// As [`Cluster::commit_changes`], in the background. What fails goes with the next change.
    pub(crate) fn commit_changes_later(&self, user: &UserId) {
        let Some(resident) = self.house.resident(UserHash::of(user)) else { return };
        // One that has not begun takes this one along.
        if resident.changes_wait.swap(true, Ordering::AcqRel) {
            return;
        }
        let house = self.house.clone();
        self.house.tasks.spawn(async move {
            house.commit(&resident, Extent::Changes).await.ok();
            house.dismiss(resident);
        });
    }

    /// The error of a turn that could not be stored.
    pub(crate) fn not_replicated(&self) -> TurnError {
        self.house.not_replicated()
    }
}

impl House {
    pub(super) fn not_replicated(&self) -> TurnError {
        TurnError::NotReplicated { limit: self.config.commit_timeout }
    }

    /// Stores what has changed. Goes on behind a caller that has waited long enough.
    pub(super) async fn commit(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
        extent: Extent,
    ) -> Result<(), TurnError> {
        let (house, of, wanted) = (self.clone(), resident.clone(), resident.wants());
        let storing = self.tasks.spawn(async move {
            let stored = house.store(&of, extent, wanted).await;
            // Its caller may be gone.
            house.dismiss(of);
            stored
        });
        // Who leaves has time.
        let limit = if extent == Extent::Last { GIVE_UP_AFTER } else { self.config.commit_timeout };
        match timeout(limit, storing).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(_)) => Err(TurnError::Internal("a change could not be stored")),
            Err(_) => {
                self.count(CommitResult::Late);
                Err(self.not_replicated())
            }
        }
    }

    /// Has a snapshot made in the background: what holds it up holds up no turn of another user. The user's own wait while it is
    /// made.
    fn snapshot_later(self: &Arc<Self>, resident: &Arc<Resident>) {
        if resident.snapshot_waits.swap(true, Ordering::AcqRel) {
            return;
        }
        let (house, of, stay) = (self.clone(), resident.clone(), resident.stay());
        self.tasks.spawn(async move {
            let making = async {
                // Before the files are locked, which the user's turns wait for.
                let place = house.replica.snapshots.clone().acquire_owned().await;
                if place.is_ok() {
                    house.store(&of, Extent::Due, 0).await.ok();
                }
            };
            // Dropped in the middle, the next object is a snapshot.
            stay.run_until_cancelled(making).await;
            of.snapshot_waits.store(false, Ordering::Release);
            house.dismiss(of);
        });
    }

    async fn store(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
        extent: Extent,
        wanted: u64,
    ) -> Result<(), TurnError> {
        let mut present = resident.files.lock().await;
        if extent == Extent::Changes {
            resident.changes_wait.store(false, Ordering::Release);
        }
        // A change that came later has taken this one along.
        if extent == Extent::Turn && resident.stored_to.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let Some(files) = present.as_mut() else {
            *resident.waits_since.lock_unpoisoned() = None;
            return Err(TurnError::Moved);
        };
        // Another one was made meanwhile.
        if extent == Extent::Due && !files.wants_snapshot(resident) {
            return Ok(());
        }
        let began = Instant::now();
        let up_to = resident.wanted.load(Ordering::Acquire);
        let touched = resident.take_touched();
        let result = self.store_all(resident, files, extent, &touched, began).await;
        if extent != Extent::Due {
            self.count(match &result {
                Ok(()) => CommitResult::Done,
                Err(TurnError::Moved) => CommitResult::Fenced,
                Err(_) => CommitResult::Failed,
            });
        }
        if result.is_err() {
            touched.iter().for_each(|session| resident.touch(session));
            files.snapshot_failed = (extent == Extent::Due).then(Instant::now).or(files.snapshot_failed);
            return result;
        }
        if extent != Extent::Due {
            self.metrics.commit.record(began.elapsed().as_secs_f64());
        }
        resident.stored_to.store(up_to, Ordering::Release);
        let mut waits = resident.waits_since.lock_unpoisoned();
        *waits = (resident.wanted.load(Ordering::Acquire) > up_to).then(Instant::now);
        drop(waits);
        if extent.is_limited() && files.wants_snapshot(resident) {
            self.snapshot_later(resident);
        }
        if extent == Extent::Last {
            // They are removed now: a change that waits would take their absence for a deletion.
            *present = None;
        }
        result
    }

    fn count(&self, result: CommitResult) {
        self.metrics.commits.increment(result);
        let mut lately = self.lately.lock_unpoisoned();
        match result {
            CommitResult::Done => {}
            CommitResult::Fenced => lately.fenced.note(SystemTime::now()),
            CommitResult::Late | CommitResult::Failed => lately.not_stored.note(SystemTime::now()),
        }
    }

    async fn store_all(
        &self,
        resident: &Resident,
        files: &mut Files,
        extent: Extent,
        touched: &[crate::model::ids::SessionHash],
        began: Instant,
    ) -> Result<(), TurnError> {
        let Some(membership) = self.membership() else { return Err(TurnError::Moved) };
        let mut is_full = files.is_unknown;
        while began.elapsed() < GIVE_UP_AFTER {
            let Some(stored) = membership.stored(resident.hash) else { return Err(TurnError::Moved) };
            let seq = stored.seq() + 1;
            if let (Extent::Last, Some(head)) = (extent, &stored.head) {
                // The change before may have moved the head since it was noted.
                super::start::set_unstored(&self.data_dir, resident.hash, (head.fence.0, head.seq)).await;
            }
            let scope = match extent {
                Extent::Due => Scope::Due,
                _ if is_full || files.since.is_snapshot_overdue() => Scope::Snapshot,
                Extent::Turn | Extent::Changes if stored.head.is_none() => Scope::First,
                Extent::Turn => Scope::Turn(touched.to_vec()),
                Extent::Changes => Scope::Changes,
                Extent::Last if !files.since.is_snapshot_due() => Scope::Whole,
                Extent::Last | Extent::Snapshot => Scope::Snapshot,
            };
            let is_first = scope == Scope::First;
            let written =
                self.replica.replicate(&resident.user, files.fence.0, seq, scope, &mut files.state).await;
            let info = match written {
                Ok(info) => info,
                Err(error @ ReplicateError::TooMuch) => {
                    // With a snapshot in the background each turn would log it.
                    if !resident.is_too_large.swap(true, Ordering::AcqRel) {
                        tracing::error!(user = ?resident.hash, %error, "changes of a user are stored on this node alone");
                    }
                    return Err(TurnError::Internal("a user has too much data to be stored"));
                }
                Err(error) => {
                    tracing::warn!(%error, "a change of a user was not stored yet");
                    if extent == Extent::Due {
                        break;
                    }
                    *self.failed_at.lock_unpoisoned() = Some(Instant::now());
                    sleep(PAUSE).await;
                    continue;
                }
            };
            self.metrics.commit_bytes.increment(info.bytes);
            self.metrics.left_out.increment(info.summary.later_files + info.summary.unreadable);
            let before = stored.head.as_ref();
            let head = match (info.kind, before) {
                (Kind::Snapshot, _) => Some(Head::snapshot(before, files.fence, info.bytes)),
                (_, Some(before)) => before.delta(files.fence, info.bytes),
                (_, None) => None,
            };
            let Some(mut head) = head else {
                is_full = true;
                continue;
            };
            head.early = self.config.replication == Replication::Async;
            head.released = extent == Extent::Last;
            match membership.commit(resident.hash, files.fence, head.clone()).await {
                CommitEnd::Done => {
                    let was_known = before.is_some() && !files.is_unknown && !files.is_partial;
                    if info.kind == Kind::Snapshot {
                        files.is_partial = !info.is_current || (is_first && info.summary.later_files > 0);
                        if !files.is_partial {
                            resident.is_too_large.store(false, Ordering::Release);
                        }
                    }
                    let at = (head.fence.0, head.seq);
                    if files.is_partial {
                        // There is more here than in the store.
                        super::start::set_unstored(&self.data_dir, resident.hash, at).await;
                    } else if !was_known && extent != Extent::Last {
                        super::start::set_stale(&self.data_dir, resident.hash, true).await;
                    }
                    files.is_unknown = false;
                    resident.is_announced.store(head.announces_loss(), Ordering::Release);
                    *self.failed_at.lock_unpoisoned() = None;
                }
                CommitEnd::Fenced | CommitEnd::Unknown => return Err(TurnError::Moved),
                CommitEnd::TooLarge => {
                    is_full = true;
                    continue;
                }
                CommitEnd::Busy | CommitEnd::Behind(_) if extent == Extent::Due => break,
                CommitEnd::Busy | CommitEnd::Behind(_) => {
                    sleep(PAUSE).await;
                    continue;
                }
            }
            files.since = files.since.with(info.kind, info.bytes);
            if info.kind == Kind::Snapshot && before.is_some() {
                self.clean(resident, &head);
            }
            if info.is_current {
                return Ok(());
            }
        }
        Err(self.not_replicated())
    }

    /// Deletes what a snapshot has replaced, in the background.
    fn clean(&self, resident: &Resident, head: &Head) {
        let (replica, hash) = (self.replica.clone(), resident.hash);
        let view = super::house::view_of(head);
        self.tasks.spawn(async move {
            if let Err(error) = replica.clean(hash, &view).await {
                tracing::warn!(%error, "replaced objects of a user are not deleted yet");
            }
        });
    }
}
