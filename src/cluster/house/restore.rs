//! The files of a user who comes to this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::super::Residents;
use super::super::commit::Files;
use super::super::ledger::{Fence, Stored, UserHash};
use super::super::mark::Mark;
use super::super::replica::TakeOverError;
use super::{House, Resident, chain_of};
use crate::model::ids::UserId;

impl House {
    /// Brings the files of a user here. Whether they are. If this is dropped, what changes files ends first, and nothing new
    /// begins: the next stay of the user waits for that.
    pub(super) async fn restore(self: Arc<Self>, hash: UserHash, fence: Fence, stored: Stored) -> bool {
        let Some((resident, residents)) = self.resident(hash).zip(self.residents.get().cloned()) else {
            return false;
        };
        let dropped = CancellationToken::new();
        let _on_drop = dropped.clone().drop_guard();
        let house = self.clone();
        let restoring = self.tasks.spawn(async move {
            // Those of a stay before may still be removed.
            let locking = resident.files.clone().lock_owned();
            let locked = dropped.run_until_cancelled(locking).await;
            let mut are_here = false;
            if let Some(mut present) = locked.filter(|_| !dropped.is_cancelled()) {
                // Of the stay before, whose last change may have ended after it.
                resident.is_too_large.store(false, Ordering::Release);
                let files = house.files_of(&resident, &*residents, fence, stored, &dropped).await;
                *present = files.filter(|_| !dropped.is_cancelled());
                are_here = present.is_some();
            }
            // Nobody else may be left who would.
            house.dismiss(resident);
            are_here
        });
        restoring.await.unwrap_or(false)
    }

    /// Makes the files here those of the cluster. `None` if they are not.
    async fn files_of(
        &self,
        resident: &Resident,
        residents: &dyn Residents,
        fence: Fence,
        stored: Stored,
        dropped: &CancellationToken,
    ) -> Option<Files> {
        let (user, hash) = (&resident.user, resident.hash);
        let mark = match Mark::read(&self.data_dir, hash).await {
            Ok(mark) => mark,
            Err(error) => {
                tracing::error!(%error, "it cannot be read whether the files of a user are those of the cluster");
                return None;
            }
        };
        if dropped.is_cancelled() {
            return None;
        }
        let files = match &stored.head {
            None => {
                if mark != Mark::Never && !mark.is_latest(None) {
                    // Heads do not vanish: those of deleted users stay.
                    tracing::error!(
                        "the ledger does not know a user any more who was in the cluster; was it restored from an older state?"
                    );
                    if !self.set_aside(user, fence).await {
                        return None;
                    }
                    self.note(hash, Mark::Never).await;
                }
                Files::new(fence)
            }
            // The store was away when the user left, and nobody has had the user since.
            Some(head) if mark.is_latest(Some(head)) => {
                tracing::warn!("the files of a user here are newer than those of the store, and stay");
                Files { is_unknown: true, ..Files::new(fence) }
            }
            Some(head) => {
                // Files of a time before the cluster, or that could not be stored, of a user who has gone on without them.
                let is_old = mark == Mark::Stored
                    || (self.set_aside(user, fence).await && self.note(hash, Mark::Stored).await);
                if !is_old {
                    return None;
                }
                let taken = match self.replica.take_over(user, fence.0, &chain_of(head), dropped).await {
                    Ok(taken) => taken,
                    Err(TakeOverError::GivenUp) => return None,
                    Err(error) => {
                        tracing::error!(%error, "a user's files cannot be fetched from the store");
                        return None;
                    }
                };
                if let Some(loss) = &taken.loss {
                    tracing::error!(error = %loss, "objects of a user are lost");
                }
                if taken.loss.is_some() || head.announces_loss() {
                    residents.report_loss(user).await;
                }
                Files { state: taken.state, since: taken.since, ..Files::new(fence) }
            }
        };
        // The head is another ownership's: if that was all there is, the node before could go on with its own files.
        resident.is_announced.store(false, Ordering::Release);
        Some(files)
    }

    /// Moves files of a user out of the way that are not those of the cluster.
    async fn set_aside(&self, user: &UserId, fence: Fence) -> bool {
        match self.replica.set_aside(user, fence.0).await {
            Ok(None) => true,
            Ok(Some(_)) => {
                tracing::error!(
                    "files of a user that are not those of the cluster are set aside, below `replaced` of the data directory"
                );
                true
            }
            Err(error) => {
                tracing::error!(%error, "files of a user that are not those of the cluster cannot be set aside");
                false
            }
        }
    }
}
