//! One change of a user on its way: an object in the store, then the head in the ledger, which only the owner's fence allows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Cluster;
use super::house::{House, Resident};
use super::ledger::{Fence, Head, UserHash};
use super::mark::Mark;
use super::ownership::CommitEnd;
use super::replica::chain::Since;
use super::replica::collect::Scope;
use super::replica::delta::Kind;
use super::replica::{ReplicateError, UserState};
use super::route::Grant;
use crate::config::Replication;
use crate::error::TurnError;
use crate::model::ids::{SessionHash, UserId};
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

    /// Whether the store may lack something of the files here.
    pub(super) fn are_missing(&self) -> bool {
        self.is_partial || self.is_unknown
    }

    /// Whether a snapshot is to be made in the background.
    fn wants_snapshot(&self, resident: &Resident) -> bool {
        let is_wanted =
            self.is_partial || self.since.is_snapshot_due() || resident.is_too_large.load(Ordering::Acquire);
        is_wanted && self.may_try_snapshot()
    }

    /// Whether one that failed was long ago.
    fn may_try_snapshot(&self) -> bool {
        self.snapshot_failed.is_none_or(|failed| failed.elapsed() >= SNAPSHOT_AGAIN_AFTER)
    }

    /// Puts a snapshot off that was overdue and has no room, if the chain has room for what has changed. Whether it did.
    fn put_off_snapshot(&mut self) -> bool {
        let is_put_off = self.since.is_snapshot_overdue()
            && !self.since.is_chain_full()
            && !self.is_unknown
            && self.may_try_snapshot();
        if is_put_off {
            self.snapshot_failed = Some(Instant::now());
        }
        is_put_off
    }

    /// What the next object has.
    fn scope(&self, extent: Extent, before: Option<&Head>, touched: &[SessionHash]) -> Scope {
        let is_overdue = self.since.is_snapshot_overdue() && self.may_try_snapshot();
        let needs_snapshot = self.is_unknown
            || is_overdue
            || self.since.is_chain_full()
            || before.is_some_and(|head| head.is_full(self.fence));
        match extent {
            Extent::Due => Scope::Due,
            _ if needs_snapshot => Scope::Snapshot,
            Extent::Turn | Extent::Changes if before.is_none() => Scope::First,
            Extent::Turn => Scope::Turn(touched.to_vec()),
            Extent::Changes => Scope::Changes,
            Extent::Last => Scope::Whole,
            Extent::Snapshot => Scope::Snapshot,
        }
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
    /// All changes, before the user leaves this node. Those before it give way.
    Last,
}

impl Extent {
    /// Whether it needs no more than what has changed.
    fn has_less(self) -> bool {
        matches!(self, Self::Turn | Self::Changes | Self::Last)
    }

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

    /// As [`Cluster::commit`], for a change that is no turn and was made under this grant.
    ///
    /// # Errors
    /// As [`Cluster::commit`]; [`TurnError::Moved`] also if the user has come back meanwhile, with the files of the store.
    pub(crate) async fn commit_changes(&self, user: &UserId, grant: &Grant) -> Result<(), TurnError> {
        let Some(resident) = self.house.resident(UserHash::of(user)) else { return Err(TurnError::Moved) };
        self.house.commit_during(&resident, Extent::Changes, grant.stay.clone()).await
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
        self.commit_during(resident, extent, resident.stay()).await
    }

    /// As [`House::commit`], of a change that was made in this stay.
    pub(super) async fn commit_during(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
        extent: Extent,
        stay: CancellationToken,
    ) -> Result<(), TurnError> {
        if stay.is_cancelled() && extent == Extent::Changes {
            // The files may be those of the store by now, without the change.
            resident.changes_wait.store(false, Ordering::Release);
            return Err(TurnError::Moved);
        }
        let (house, of, wanted) = (self.clone(), resident.clone(), resident.wants());
        let Ok(place) = resident.commits.clone().try_acquire_owned() else {
            if extent == Extent::Changes {
                resident.changes_wait.store(false, Ordering::Release);
            }
            self.count(CommitResult::Failed);
            return Err(self.not_replicated());
        };
        let storing = self.tasks.spawn(async move {
            let stored = house.store(&of, extent, wanted, &stay).await;
            drop(place);
            // Its caller may be gone.
            house.dismiss(of);
            stored
        });
        match timeout(self.config.commit_timeout, storing).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(_)) => Err(TurnError::Internal("a change could not be stored")),
            Err(_) => {
                self.count(CommitResult::Late);
                Err(self.not_replicated())
            }
        }
    }

    /// Stores everything that is not stored yet of a user who leaves. The files are nobody's then, up to the end of the result.
    /// Only what was sent goes on if this is dropped.
    pub(super) async fn commit_last(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
    ) -> Result<OwnedMutexGuard<Option<Files>>, TurnError> {
        let too_late = |_| {
            self.count(CommitResult::Late);
            TurnError::NotReplicated { limit: GIVE_UP_AFTER }
        };
        // Apart: a change that was begun before, and gives way at its next try, takes nothing of the time of this one.
        let locking = resident.files.clone().lock_owned();
        let mut present = timeout(GIVE_UP_AFTER, locking).await.map_err(too_late)?;
        let stay = resident.stay();
        let storing = self.store_locked(resident, &mut present, Extent::Last, &stay);
        timeout(GIVE_UP_AFTER, storing).await.map_err(too_late)??;
        // They are removed now: a change that waits would take their absence for a deletion.
        *present = None;
        Ok(present)
    }

    /// Has a snapshot made in the background: what holds it up holds up no turn of another user. The user's own wait while it is
    /// made.
    fn snapshot_later(self: &Arc<Self>, resident: &Arc<Resident>) {
        let Ok(only) = resident.snapshot.clone().try_acquire_owned() else { return };
        let (house, of, stay) = (self.clone(), resident.clone(), resident.stay());
        self.tasks.spawn(async move {
            let making = async {
                // Before the files are locked, which the user's turns wait for.
                let place = house.replica.snapshots.clone().acquire_owned().await;
                if place.is_ok() {
                    house.store(&of, Extent::Due, 0, &stay).await.ok();
                }
            };
            stay.run_until_cancelled(making).await;
            drop(only);
            house.dismiss(of);
        });
    }

    async fn store(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
        extent: Extent,
        wanted: u64,
        stay: &CancellationToken,
    ) -> Result<(), TurnError> {
        let mut present = resident.files.lock().await;
        if extent == Extent::Changes {
            resident.changes_wait.store(false, Ordering::Release);
        }
        // A change that came later has taken this one along.
        if extent == Extent::Turn && resident.stored_to.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        // Another one was made meanwhile.
        if extent == Extent::Due && !present.as_ref().is_some_and(|files| files.wants_snapshot(resident)) {
            return Ok(());
        }
        if extent == Extent::Snapshot {
            // May take long, and is not worth it any more.
            let storing = self.store_locked(resident, &mut present, extent, stay);
            return stay.run_until_cancelled(storing).await.unwrap_or(Err(TurnError::Moved));
        }
        self.store_locked(resident, &mut present, extent, stay).await
    }

    async fn store_locked(
        self: &Arc<Self>,
        resident: &Arc<Resident>,
        present: &mut Option<Files>,
        extent: Extent,
        stay: &CancellationToken,
    ) -> Result<(), TurnError> {
        let Some(files) = present.as_mut() else {
            *resident.waits_since.lock_unpoisoned() = None;
            return Err(TurnError::Moved);
        };
        let began = Instant::now();
        let up_to = resident.wanted.load(Ordering::Acquire);
        let touched = resident.take_touched();
        let result = self.store_all(resident, files, extent, &touched, began, stay).await;
        let gave_way = extent != Extent::Last && stay.is_cancelled();
        match &result {
            _ if extent == Extent::Due => {}
            Ok(()) => self.count(CommitResult::Done),
            Err(TurnError::Moved) => self.count(CommitResult::Fenced),
            Err(_) if gave_way => {}
            Err(_) => self.count(CommitResult::Failed),
        }
        if let Err(error) = result {
            touched.iter().for_each(|session| resident.touch(session));
            files.snapshot_failed = (extent == Extent::Due).then(Instant::now).or(files.snapshot_failed);
            let owned = || self.membership()?.stored_of(resident.hash, files.fence);
            if matches!(error, TurnError::Moved) && owned().is_none() {
                // Changes that wait have nothing to store.
                *present = None;
                *resident.waits_since.lock_unpoisoned() = None;
            }
            return Err(error);
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
        Ok(())
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
        touched: &[SessionHash],
        began: Instant,
        stay: &CancellationToken,
    ) -> Result<(), TurnError> {
        let Some(membership) = self.membership() else { return Err(TurnError::Moved) };
        while began.elapsed() < GIVE_UP_AFTER {
            if extent != Extent::Last && stay.is_cancelled() {
                break;
            }
            let stored = membership.stored_of(resident.hash, files.fence).ok_or(TurnError::Moved)?;
            let (seq, before) = (stored.seq() + 1, stored.head.as_ref());
            if extent == Extent::Last && before.is_some() {
                // The change before, or the try before, may have moved the head since it was noted.
                self.note(resident.hash, Mark::newer(files.fence, before)).await;
            }
            let scope = files.scope(extent, before, touched);
            let (is_first, is_limited_first) = (before.is_none(), scope == Scope::First);
            let written =
                self.replica.replicate(&resident.user, files.fence.0, seq, scope, &mut files.state).await;
            let info = match written {
                Ok(info) => info,
                Err(ReplicateError::TooMuch) if extent.has_less() && files.put_off_snapshot() => continue,
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
            let head = match (info.kind, before) {
                (Kind::Snapshot, _) => Some(Head::snapshot(before, files.fence, info.bytes)),
                (_, Some(before)) => before.delta(files.fence, info.bytes),
                (_, None) => None,
            };
            let mut head = head.ok_or(TurnError::Internal("a user's chain has no room for a change"))?;
            head.early = self.config.replication == Replication::Async;
            head.released = extent == Extent::Last && info.is_current;
            let is_partial = !info.is_current || (is_limited_first && info.summary.later_files > 0);
            // Before the head, which would hide that there is more here. One that has all, or is the last, is stored in any case.
            let is_noted = !is_first || self.note(resident.hash, Mark::newer(files.fence, None)).await;
            if !is_noted && is_partial && extent != Extent::Last {
                *self.failed_at.lock_unpoisoned() = Some(Instant::now());
                sleep(PAUSE).await;
                continue;
            }
            match membership.commit(resident.hash, files.fence, head.clone()).await {
                CommitEnd::Done => {
                    let was_missing = is_first || files.are_missing();
                    if info.kind == Kind::Snapshot {
                        files.is_partial = is_partial;
                        if !is_partial {
                            resident.is_too_large.store(false, Ordering::Release);
                        }
                    }
                    files.is_unknown = false;
                    // A user who leaves has the mark of that.
                    if was_missing && extent != Extent::Last {
                        let (is_partial, head) = (files.is_partial, Some(&head));
                        let mark = if is_partial { Mark::newer(files.fence, head) } else { Mark::Stored };
                        self.note(resident.hash, mark).await;
                    }
                    resident.is_announced.store(head.announces_loss(), Ordering::Release);
                    *self.failed_at.lock_unpoisoned() = None;
                }
                CommitEnd::Fenced | CommitEnd::Unknown => return Err(TurnError::Moved),
                CommitEnd::TooLarge => return Err(TurnError::Internal("a user's head is too large")),
                CommitEnd::Busy | CommitEnd::Behind(_) if extent == Extent::Due => break,
                CommitEnd::Busy => {
                    sleep(PAUSE).await;
                    continue;
                }
                CommitEnd::Behind(_) => {
                    // What was noted as sent may not be what the head names.
                    files.state = UserState::default();
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
