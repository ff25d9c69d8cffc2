//! Events go to the decisions, and their actions to the ledger and the host.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Host, HostWork, Inner, State, Verdict};
use crate::cluster::ledger::{self, Claim, Commit, Fence, LedgerError, RecordError, Txn, TxnReply, UserHash};
use crate::cluster::ownership::{Action, Event};

/// Pause before the first repetition of a commit or release; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Pause after which a stop that has panicked is called again.
const STOP_AGAIN: Duration = Duration::from_secs(1);

impl Inner {
    /// The decisions on an event, carried out.
    pub(super) fn feed(self: &Arc<Self>, event: Event) {
        self.feed_all([event]);
    }

    /// Actions begin under the lock: those of a user begin in the order of the decisions. Nothing waits there.
    pub(super) fn feed_all(self: &Arc<Self>, events: impl IntoIterator<Item = Event>) {
        let mut state = self.state();
        for event in events {
            let actions = state.machine.handle(self.clock.now(), event);
            let deadline = state.machine.deadline();
            self.deadline.send_if_modified(|current| std::mem::replace(current, deadline) != deadline);
            for action in actions {
                self.act(&mut state, action);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until the state is as wanted, for a maximum time. Returns whether it is.
    pub(super) async fn until(&self, within: Duration, is_so: impl Fn(&State) -> bool) -> bool {
        let end = Instant::now() + within;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_so(&self.state()) {
                return true;
            }
            if timeout_at(end, changed).await.is_err() {
                return is_so(&self.state());
            }
        }
    }

    /// Starts a task of this node. It ends with the node.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tasks.spawn(async move { end.run_until_cancelled(task).await });
    }

    fn act(self: &Arc<Self>, state: &mut State, action: Action) {
        match action {
            Action::Claim { user, attempt, lease } => {
                let inner = Arc::clone(self);
                self.spawn(async move {
                    let txn = ledger::claim(&inner.keys, user, &inner.id, lease);
                    let result = inner.txn(txn).await.and_then(|reply| Claim::of(reply, &inner.id, lease));
                    match &result {
                        Err(error) => tracing::warn!(?user, %error, "cannot claim a user"),
                        Ok(Claim::Unreadable(_, error)) => {
                            tracing::error!(?user, %error, "the head of a user cannot be read");
                        }
                        Ok(Claim::Won(_) | Claim::Owned(..)) => {}
                    }
                    inner.feed(Event::Claimed { user, attempt, result });
                });
            }
            Action::Restore { user, fence, stored } => {
                let failed = Event::Restored { user, fence, ok: false };
                let work = move |host: &dyn Host| host.restore(user, fence, stored);
                let permits: Permits = |inner| &inner.restores;
                self.host_work(state, user, (work, permits), failed, move |ok| Event::Restored {
                    user,
                    fence,
                    ok,
                });
            }
            Action::Close { user, fence } => {
                // The children may live: they are stopped before the release.
                let failed = Event::CloseFailed { user, fence };
                let work = move |host: &dyn Host| host.close(user, fence);
                let permits: Permits = |inner| &inner.closes;
                self.host_work(state, user, (work, permits), failed, move |()| Event::Closed { user, fence });
            }
            Action::Stop { user, fence } => self.stop(state, user, fence),
            Action::Commit { user, fence, commit, expected, head, attempt } => {
                let inner = Arc::clone(self);
                self.spawn(async move {
                    pause(attempt).await;
                    let txn = ledger::commit(&inner.keys, user, fence, expected, &head);
                    let result = inner.txn(txn).await.and_then(|reply| Commit::of(reply, &head));
                    inner.feed(Event::Committed { user, fence, commit, result });
                });
            }
            Action::Release { user, fence, attempt } => {
                // What the host did for this ownership has ended.
                state.host.remove(&user);
                let inner = Arc::clone(self);
                self.spawn(async move {
                    pause(attempt).await;
                    let reply = inner.txn(Ok(ledger::release(&inner.keys, user, fence))).await;
                    let result = reply.and_then(|reply| ledger::released(reply, fence));
                    inner.feed(Event::Released { user, fence, result });
                });
            }
            Action::Grant { ticket, fence, .. } => self.answer(state, ticket, Verdict::Grant(fence)),
            Action::Forward { ticket, node } => self.answer(state, ticket, Verdict::Forward(node)),
            Action::Refuse { ticket, why } => self.answer(state, ticket, Verdict::Refuse(why)),
            Action::CommitEnded { commit, end } => {
                if let Some(sender) = state.commits.remove(&commit) {
                    // The caller may be gone; the next commit learns of the result.
                    drop(sender.send(end));
                }
            }
            Action::Rejoin { revoke } => {
                state.rejoin = Some(revoke);
                self.rejoin.notify_one();
            }
        }
    }

    fn answer(&self, state: &mut State, ticket: u64, verdict: Verdict) {
        if let Some(sender) = state.tickets.remove(&ticket) {
            // A request that is gone takes back its ticket itself.
            drop(sender.send(verdict));
        }
    }

    /// Runs a restore or a close until it ends or is aborted. One that panics counts as failed. Nothing of it runs under the
    /// lock, which the caller holds.
    fn host_work<T: Send + 'static>(
        self: &Arc<Self>,
        state: &mut State,
        user: UserHash,
        (work, permits): (impl FnOnce(&dyn Host) -> HostWork<T> + Send + 'static, Permits),
        failed: Event,
        done: impl FnOnce(T) -> Event + Send + 'static,
    ) {
        let inner = Arc::clone(self);
        let handle = self.tasks.spawn(async move {
            let host = Arc::clone(&inner.host);
            let mut outcome = Outcome { inner: Arc::clone(&inner), event: Some(failed) };
            let permit = permits(&inner).acquire().await;
            let result = work(&*host).await;
            drop(permit);
            outcome.is(done(result));
        });
        state.host.insert(user, handle);
    }

    /// Ends what runs for a user, and then its children.
    fn stop(self: &Arc<Self>, state: &mut State, user: UserHash, fence: Fence) {
        let running = state.host.remove(&user);
        let inner = Arc::clone(self);
        // Not ended with the node: children must end.
        self.tasks.spawn(async move {
            if let Some(running) = running {
                running.abort();
                // Aborted, ended or panicked: it is over.
                drop(running.await);
            }
            loop {
                match inner.tasks.spawn(inner.host.stop(user, fence)).await {
                    Ok(()) => break,
                    Err(_) => tracing::error!(?user, "stopping a user's children has panicked"),
                }
                sleep(STOP_AGAIN).await;
            }
            inner.feed(Event::Stopped { user, fence });
        });
    }

    /// Carries out a transaction, in its turn.
    pub(super) async fn txn(&self, txn: Result<Txn, RecordError>) -> Result<TxnReply, LedgerError> {
        let txn = txn.map_err(|_| LedgerError::TooLarge("record"))?;
        let permit = self.calls.acquire().await;
        let reply = self.ledger.txn(txn).await;
        drop(permit);
        reply
    }
}

/// The permits of a kind of the host's work.
type Permits = fn(&Inner) -> &Semaphore;

/// Reports the end of a host's work, also if it ends by a panic.
struct Outcome {
    inner: Arc<Inner>,
    event: Option<Event>,
}

impl Outcome {
    fn is(&mut self, event: Event) {
        self.event = Some(event);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.inner.feed(event);
        }
    }
}

async fn pause(attempt: u32) {
    if let Some(doublings) = attempt.checked_sub(1) {
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings.min(8)).min(MAX_PAUSE);
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}
