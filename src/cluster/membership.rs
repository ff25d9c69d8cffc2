//! This node as a member of the cluster: tasks that keep its lease, watch nodes and owners, and carry out the decisions
//! of [`ownership`](super::ownership).
//!
//! | task | number |
//! |---|---|
//! | lease: joins, renews, joins again | 1 |
//! | ticker: reports the deadline to the decisions | 1 |
//! | publisher: writes changes of this node's record | 1 |
//! | watch: keeps the cache | 1 |
//! | claim, restore, commit, close, release, stop | at most 2 per user of this node |

mod cache;
mod clock;
mod drive;
mod lease;
mod operator;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::{
    Fence, Head, Keys, LeaseId, Ledger, LedgerError, NodeId, NodeInfo, RecordError, Stored, UserHash,
};
use super::ownership::{CommitEnd, CommitId, Drain, Event, Limits, Moment, Ownership, Refusal, Ticket};
use cache::Cache;
pub(crate) use clock::Clock;
pub(crate) use operator::{ForgetError, Forgotten};

/// Time before the end of the lease at which the children end: for the kill, and for clocks of different speed.
pub(crate) const MARGIN: Duration = Duration::from_millis(500);
/// Requests to the ledger at once. More wait for their turn.
const MAX_CALLS: usize = 64;
/// Restores at once, and as many closes: a drain closes all users, and who comes does not wait for who leaves. Stops are not
/// counted, since they cannot wait.
const MAX_HOST_WORK: usize = 64;

/// Work of the host, later.
pub(crate) type HostWork<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What has the children and the files of the users.
///
/// A restore or close that is no longer wanted is dropped at its next wait, and `stop` is called after it.
pub(crate) trait Host: Send + Sync + 'static {
    /// Brings the files of a user to its head. `false` if that fails: the user is released.
    fn restore(&self, user: UserHash, fence: Fence, stored: Stored) -> HostWork<bool>;

    /// Ends the children in order, and commits what is open.
    fn close(&self, user: UserHash, fence: Fence) -> HostWork<()>;

    /// Ends the children and the turns of a user at once. Returns when no child is left.
    fn stop(&self, user: UserHash, fence: Fence) -> HostWork<()>;
}

/// Settings of a member.
#[derive(Debug, Clone)]
pub(crate) struct MemberSettings {
    pub(crate) id: NodeId,
    pub(crate) info: NodeInfo,
    /// Prefix of all keys.
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) limits: Limits,
    /// Maximum number of owners in the cache.
    pub(crate) max_owners: usize,
    pub(crate) clock: Clock,
}

/// Why a node cannot join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    /// Another live node has this name.
    #[error("another live node has the name of this one")]
    NameTaken,
    /// Only what a later attempt does not change; an unavailable ledger is waited for.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The record of this node.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lease is shorter than the margin allows, or no lease at all.
    #[error("the lease has to be at least 2 seconds long")]
    TooShort,
    /// The end came first.
    #[error("the node is ending")]
    Ended,
}

/// Where a user is served.
#[derive(Debug)]
pub(crate) enum Claimed {
    Here(Granted),
    Elsewhere(NodeId),
}

/// A request's part of a user that this node owns. The user stays here until it is dropped, unless the lease is lost.
pub(crate) struct Granted {
    inner: Arc<Inner>,
    user: UserHash,
    ticket: Ticket,
    fence: Fence,
}

impl Granted {
    #[cfg(test)]
    pub(crate) fn fence(&self) -> Fence {
        self.fence
    }
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted")
            .field("user", &self.user)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.inner.state().tickets.remove(&self.ticket);
        self.inner.feed(Event::Finished { user: self.user, ticket: self.ticket });
    }
}

/// The answer to a request that wants a user.
enum Verdict {
    Grant(Fence),
    Forward(NodeId),
    Refuse(Refusal),
}

/// A member of the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Membership(Arc<Inner>);

struct Inner {
    ledger: Arc<dyn Ledger>,
    host: Arc<dyn Host>,
    keys: Keys,
    id: NodeId,
    ttl: Duration,
    clock: Clock,
    state: Mutex<State>,
    /// Every event has an effect on the state: for waits on one.
    changed: Notify,
    cache: RwLock<Cache>,
    deadline: tokio::sync::watch::Sender<Option<Moment>>,
    lease: tokio::sync::watch::Sender<Option<LeaseId>>,
    info: tokio::sync::watch::Sender<NodeInfo>,
    /// A rejoin is in the state.
    rejoin: Notify,
    calls: Semaphore,
    restores: Semaphore,
    closes: Semaphore,
    tasks: TaskTracker,
    end: CancellationToken,
    /// Part of `end`: no lease is renewed or taken any more.
    leaving: CancellationToken,
}

struct State {
    machine: Ownership,
    tickets: HashMap<Ticket, oneshot::Sender<Verdict>>,
    commits: HashMap<CommitId, oneshot::Sender<CommitEnd>>,
    /// Restores and closes that run.
    host: HashMap<UserHash, JoinHandle<()>>,
    rejoin: Option<Option<LeaseId>>,
    last: u64,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// Joins the cluster: waits until the ledger answers and the name is free. Its tasks end with the token, which gives
    /// nothing back; [`Self::leave`] does.
    pub(crate) async fn join(
        ledger: Arc<dyn Ledger>,
        host: Arc<dyn Host>,
        settings: MemberSettings,
        tasks: TaskTracker,
        end: CancellationToken,
    ) -> Result<Self, JoinError> {
        if settings.ttl < Duration::from_secs(2) {
            return Err(JoinError::TooShort);
        }
        let inner = Arc::new(Inner {
            ledger,
            host,
            keys: Keys::new(&settings.prefix),
            ttl: settings.ttl,
            clock: settings.clock,
            state: Mutex::new(State {
                machine: Ownership::new(settings.id.clone(), settings.limits),
                tickets: HashMap::new(),
                commits: HashMap::new(),
                host: HashMap::new(),
                rejoin: None,
                last: 0,
            }),
            cache: RwLock::new(Cache::new(settings.id.clone(), settings.max_owners)),
            id: settings.id,
            changed: Notify::new(),
            deadline: tokio::sync::watch::Sender::new(None),
            lease: tokio::sync::watch::Sender::new(None),
            info: tokio::sync::watch::Sender::new(settings.info),
            rejoin: Notify::new(),
            calls: Semaphore::new(MAX_CALLS),
            restores: Semaphore::new(MAX_HOST_WORK),
            closes: Semaphore::new(MAX_HOST_WORK),
            tasks,
            leaving: end.child_token(),
            end,
        });
        let joined = inner.first_join().await?;
        let keep = Arc::clone(&inner).keep_lease(joined);
        let leaving = inner.leaving.clone();
        inner.tasks.spawn(async move { leaving.run_until_cancelled(keep).await });
        inner.spawn(Arc::clone(&inner).tick());
        inner.spawn(Arc::clone(&inner).publish());
        // The cache is complete before the first question to it.
        let (ready, is_ready) = oneshot::channel();
        inner.spawn(Arc::clone(&inner).keep_cache(ready));
        is_ready.await.map_err(|_| JoinError::Ended)?;
        Ok(Self(inner))
    }

    pub(crate) fn id(&self) -> &NodeId {
        &self.0.id
    }

    /// The owner of a user, as the watch has seen it.
    pub(crate) fn owner_of(&self, user: UserHash) -> Option<NodeId> {
        self.0.cache().owner_of(user)
    }

    /// The owner of a user, from the ledger itself: for a request that was sent to the wrong node.
    pub(crate) async fn locate(&self, user: UserHash) -> Result<Option<NodeId>, LedgerError> {
        self.0.locate(user).await
    }

    /// A live node.
    pub(crate) fn node(&self, id: &NodeId) -> Option<NodeInfo> {
        self.0.cache().nodes().get(id).cloned()
    }

    /// All live nodes, this one included.
    pub(crate) fn nodes(&self) -> Vec<(NodeId, NodeInfo)> {
        self.0.cache().nodes().iter().map(|(id, info)| (id.clone(), info.clone())).collect()
    }

    /// The node for a user without an owner.
    pub(crate) fn place(&self, user: UserHash, except: &[NodeId]) -> Option<NodeId> {
        super::placement::choose(user, self.0.cache().nodes().iter(), except).cloned()
    }

    /// Number of users that each node owns, as the watch has seen it.
    pub(crate) fn owners(&self) -> std::collections::BTreeMap<NodeId, usize> {
        self.0.cache().counts()
    }

    /// The fence of a user that this node owns at this moment. A child of another fence must not be started.
    pub(crate) fn fence(&self, user: UserHash) -> Option<Fence> {
        self.0.state().machine.fence(self.0.clock.now(), user)
    }

    /// Number of users that this node owns and serves, and of those in any state.
    pub(crate) fn users(&self) -> (usize, usize) {
        let state = self.0.state();
        (state.machine.owned(), state.machine.len())
    }

    /// The users that are served here and are not to leave yet, and whether nothing of them runs.
    pub(crate) fn served(&self) -> Vec<(UserHash, bool)> {
        self.0.state().machine.served().collect()
    }

    /// The users that this node holds.
    pub(crate) fn held(&self) -> Vec<(UserHash, Fence)> {
        self.0.state().machine.held().collect()
    }

    /// The deadline of the children; `None` without a lease, when all are being ended. It only grows while there is a lease.
    pub(crate) fn deadline(&self) -> tokio::sync::watch::Receiver<Option<Moment>> {
        self.0.deadline.subscribe()
    }

    /// Brings a user here for a request, or finds out where it is, up to the deadline. Requests of one user share one claim.
    pub(crate) async fn claim(&self, user: UserHash, deadline: Instant) -> Result<Claimed, Refusal> {
        self.want(user, deadline, |user, ticket| Event::Wanted { user, ticket }).await
    }

    /// As [`Self::claim`], for a request that may have a grant already: it waits for the end of no other.
    pub(crate) async fn claim_again(&self, user: UserHash, deadline: Instant) -> Result<Claimed, Refusal> {
        self.want(user, deadline, |user, ticket| Event::WantedAgain { user, ticket }).await
    }

    async fn want(
        &self,
        user: UserHash,
        deadline: Instant,
        event: impl FnOnce(UserHash, Ticket) -> Event,
    ) -> Result<Claimed, Refusal> {
        let inner = &self.0;
        let (sender, verdict) = oneshot::channel();
        let ticket = {
            let mut state = inner.state();
            state.last += 1;
            let ticket = state.last;
            state.tickets.insert(ticket, sender);
            ticket
        };
        // Dropped on every way out, which also takes back a request that waits.
        let mut granted = Granted { inner: Arc::clone(inner), user, ticket, fence: Fence(0) };
        inner.feed(event(user, ticket));
        match timeout_at(deadline, verdict).await {
            Ok(Ok(Verdict::Grant(fence))) => {
                granted.fence = fence;
                Ok(Claimed::Here(granted))
            }
            Ok(Ok(Verdict::Forward(node))) => Ok(Claimed::Elsewhere(node)),
            Ok(Ok(Verdict::Refuse(why))) => Err(why),
            Ok(Err(_)) => Err(Refusal::Unavailable),
            Err(_) => Err(Refusal::Late),
        }
    }

    /// The head of a user that this node holds, as it was last stored.
    pub(crate) fn stored(&self, user: UserHash) -> Option<Stored> {
        self.0.state().machine.stored(user).cloned()
    }

    /// Whether the user is here, is about to be, or leaves: also while its children are to be stopped.
    pub(crate) fn is_known(&self, user: UserHash) -> bool {
        self.0.state().machine.is_known(user)
    }

    /// As [`Self::stored`], of this ownership. `None` if it is over.
    pub(crate) fn stored_of(&self, user: UserHash, fence: Fence) -> Option<Stored> {
        self.0.state().machine.stored_of(user, fence).cloned()
    }

    /// Stores the next head of a user. Returns when that is known, or when the ownership is over.
    ///
    /// Continues if the future is dropped. The next commit then tells by [`CommitEnd::Behind`].
    pub(crate) async fn commit(&self, user: UserHash, fence: Fence, head: Head) -> CommitEnd {
        let (sender, end) = oneshot::channel();
        let commit = {
            let mut state = self.0.state();
            state.last += 1;
            let commit = state.last;
            state.commits.insert(commit, sender);
            commit
        };
        self.0.feed(Event::CommitWanted { user, fence, commit, head });
        let end = self.0.end.run_until_cancelled(end).await;
        end.and_then(Result::ok).unwrap_or(CommitEnd::Unknown)
    }

    /// Lets a user go as soon as nothing of it runs. A request that comes before keeps it.
    pub(crate) fn evict(&self, user: UserHash) {
        self.0.feed(Event::Evict { user });
    }

    /// As [`Self::evict`], and waits for the end of it, for a maximum time. Returns whether the user is gone.
    #[cfg(test)]
    pub(crate) async fn release(&self, user: UserHash, within: Duration) -> bool {
        self.evict(user);
        self.0.until(within, |state| !state.machine.is_known(user)).await
    }

    /// The lease of this node.
    #[cfg(test)]
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        *self.0.lease.borrow()
    }

    /// The lease of this node is over, which the ledger does not know.
    #[cfg(test)]
    pub(crate) fn lose_lease(&self) {
        if let Some(lease) = self.lease() {
            self.0.feed(Event::LeaseLost { lease });
        }
    }

    /// Takes no further users and lets all go, or takes users again.
    pub(crate) fn drain(&self, how: Drain) {
        let draining = how != Drain::Off;
        self.0.info.send_if_modified(|info| {
            let is_new = info.draining != draining;
            info.draining = draining;
            is_new
        });
        self.0.feed(Event::Drain(how));
    }

    /// Waits until this node has no user, for a maximum time. Returns whether it has none.
    pub(crate) async fn drained(&self, within: Duration) -> bool {
        self.0.until(within, |state| state.machine.len() == 0).await
    }

    /// Whether this node has left: what it knows of others gets old.
    pub(crate) fn has_left(&self) -> bool {
        self.0.end.is_cancelled()
    }

    /// Leaves the cluster: lets all users go within a time, ends the tasks and the lease. Users that are left are stopped.
    pub(crate) async fn leave(&self, within: Duration) -> Result<(), LedgerError> {
        self.drain(Drain::Now);
        let is_empty = self.drained(within).await;
        let lease = *self.0.lease.borrow();
        self.0.leaving.cancel();
        if let Some(lease) = lease {
            if !is_empty {
                self.0.feed(Event::LeaseLost { lease });
                // The keys go only after the children. A child that does not end keeps them until the lease does.
                if !self.drained(self.0.ttl).await {
                    self.0.end.cancel();
                    return Ok(());
                }
            }
            self.0.end.cancel();
            return self.0.ledger.revoke(lease).await;
        }
        self.0.end.cancel();
        Ok(())
    }
}
