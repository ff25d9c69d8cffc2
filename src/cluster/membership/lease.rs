//! The lease of this node: joining, renewing, joining again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Inner, JoinError, MARGIN};
use crate::cluster::ledger::{self, Join, LeaseId, LedgerError, NodeUpdate};
use crate::cluster::ownership::{Event, Moment};

/// Pause after a failed renewal or attempt to join.
const PAUSE: Duration = Duration::from_millis(100);
/// Minimum time between two publications of this node's record: the room changes with each user.
const PUBLISH_EACH: Duration = Duration::from_secs(1);
/// How long a name may stay taken after its lease: that of a process before this one ends by then.
const NAME_GRACE: Duration = Duration::from_secs(5);
/// Added to the end of a lease until its keys are taken for gone: a renewal may be under way.
const GONE_AFTER: Duration = Duration::from_secs(3);

/// A lease with the node's key on it, and the moment before it was granted.
#[derive(Clone, Copy)]
pub(super) struct Joined {
    lease: LeaseId,
    seconds: u64,
    sent: Moment,
}

impl Inner {
    fn ttl(&self) -> u64 {
        self.ttl.as_secs()
    }

    /// Deadline of the children and end of the keys, for a lease renewed by a request sent at this moment.
    fn deadlines(&self, sent: Moment, seconds: u64) -> (Moment, Moment) {
        // Not longer than configured: that is how long the others wait.
        let ttl = Duration::from_secs(seconds.min(self.ttl()));
        (sent.after(ttl.saturating_sub(MARGIN)), sent.after(Duration::from_secs(seconds) + GONE_AFTER))
    }

    /// Joins when the ledger answers and the name is free.
    pub(super) async fn first_join(&self) -> Result<Joined, JoinError> {
        let taken_until = self.clock.now().after(self.ttl * 2 + NAME_GRACE);
        loop {
            let attempt = self.end.run_until_cancelled(self.try_join()).await;
            match attempt.ok_or(JoinError::Ended)? {
                Ok(Some(joined)) => return Ok(joined),
                Ok(None) if self.clock.now() >= taken_until => return Err(JoinError::NameTaken),
                Ok(None) => {}
                Err(JoinError::Ledger(error))
                    if error.is_unavailable() || error == LedgerError::LeaseGone =>
                {
                    tracing::warn!(%error, "cannot join the cluster yet");
                }
                Err(error) => return Err(error),
            }
            if self.end.run_until_cancelled(sleep(jitter(PAUSE * 3))).await.is_none() {
                return Err(JoinError::Ended);
            }
        }
    }

    /// `None` while another lease has the name.
    async fn try_join(&self) -> Result<Option<Joined>, JoinError> {
        let sent = self.clock.now();
        let (lease, seconds) = self.ledger.grant(self.ttl()).await?;
        let info = self.info.borrow().clone();
        let reply = self.ledger.txn(ledger::join(&self.keys, &self.id, &info, lease)?).await;
        match reply.and_then(|reply| Join::of(reply, lease)) {
            Ok(Join::Done) => Ok(Some(Joined { lease, seconds, sent })),
            other => {
                // It would end by itself. An error is no reason to stop.
                self.ledger.revoke(lease).await.ok();
                other.map(|_| None).map_err(JoinError::from)
            }
        }
    }

    /// The task that keeps a lease for as long as this node is a member.
    pub(super) async fn keep_lease(self: Arc<Self>, mut joined: Joined) {
        loop {
            let Joined { lease, seconds, sent } = joined;
            let (deadline, gone) = self.deadlines(sent, seconds);
            self.lease.send_replace(Some(lease));
            self.feed(Event::Joined { lease, deadline, gone });
            tokio::select! {
                () = self.renew(lease) => {}
                () = self.rejoin.notified() => {}
            }
            self.lease.send_replace(None);
            tracing::warn!("the lease of this node is lost");
            joined = self.join_again().await;
        }
    }

    /// Renews a lease until it is lost, or takes part in no decision any more.
    async fn renew(self: &Arc<Self>, lease: LeaseId) {
        let each = self.ttl / 4;
        loop {
            let sent = self.clock.now();
            match self.ledger.renew(lease).await {
                Ok(seconds) => {
                    let (deadline, gone) = self.deadlines(sent, seconds);
                    self.feed(Event::Renewed { lease, deadline, gone });
                    sleep(self.clock.now().until(sent.after(each))).await;
                }
                Err(LedgerError::LeaseGone) => {
                    self.feed(Event::LeaseLost { lease });
                    // The decisions ask for the next one.
                    std::future::pending::<()>().await;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot renew the lease");
                    sleep(jitter(PAUSE)).await;
                }
            }
            // Past the deadline, the keys should end as well.
            if self.deadline.borrow().is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends the last lease, as far as it is not over, and takes a new one.
    async fn join_again(&self) -> Joined {
        loop {
            let asked = self.state().rejoin.take();
            let Some(revoke) = asked else {
                self.rejoin.notified().await;
                continue;
            };
            if let Some(lease) = revoke {
                while let Err(error) = self.ledger.revoke(lease).await {
                    tracing::warn!(%error, "cannot end the last lease");
                    sleep(jitter(PAUSE * 10)).await;
                }
            }
            loop {
                match self.try_join().await {
                    Ok(Some(joined)) => return joined,
                    Ok(None) => tracing::error!("another live node has the name of this one"),
                    Err(error) => tracing::warn!(%error, "cannot join the cluster again"),
                }
                sleep(jitter(PAUSE * 3)).await;
            }
        }
    }

    /// The task that reports the passing of the deadline. It sleeps on another clock, hence in steps.
    pub(super) async fn tick(self: Arc<Self>) {
        let mut deadline = self.deadline.subscribe();
        let step = self.ttl / 8;
        loop {
            let at = *deadline.borrow_and_update();
            let left = at.map_or(step, |at| self.clock.now().until(at).min(step));
            if left.is_zero() || at.is_none() {
                self.feed(Event::Tick);
            }
            tokio::select! {
                () = sleep(left.max(Duration::from_millis(1))) => {}
                // The sender lives as long as this task.
                _ = deadline.changed() => {}
            }
        }
    }

    /// The task that publishes changes of this node's record.
    pub(super) async fn publish(self: Arc<Self>) {
        let (mut info, mut lease) = (self.info.subscribe(), self.lease.subscribe());
        let mut published = None;
        loop {
            let now = (info.borrow_and_update().clone(), *lease.borrow_and_update());
            if let (record, Some(id)) = &now
                && published.as_ref() != Some(&now)
            {
                let txn = ledger::node_update(&self.keys, &self.id, record, *id);
                match self.txn(txn).await.map(|reply| NodeUpdate::of(&reply)) {
                    Ok(NodeUpdate::Done) => published = Some(now),
                    Ok(NodeUpdate::Gone) => tracing::warn!("the key of this node is gone"),
                    Err(error) => tracing::debug!(%error, "cannot publish the record of this node"),
                }
            }
            // Also after a failure, which is tried again then.
            sleep(PUBLISH_EACH).await;
            let is_due = published
                .as_ref()
                .is_none_or(|(record, id)| *record != *info.borrow() || *id != *lease.borrow());
            if !is_due {
                // The senders live as long as this task.
                tokio::select! {
                    _ = info.changed() => {}
                    _ = lease.changed() => {}
                }
            }
        }
    }
}

fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
