//! The spares of a system: which there are, and the way of one to its session.
//!
//! Each spare has a task that owns its child (`spares`). The shelf knows all of them, and gives one away at most once.

mod pauses;
mod room;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub(crate) use self::pauses::Pauses;
use self::room::MemoryRoom;
use super::sessions::Sessions;
use super::spare::Spare;
use super::store::SettingsRecord;
use crate::adapter::LaunchSettings;
use crate::admission::SparePromise;
use crate::config::CliConfig;
use crate::model::ids::{SessionHash, SessionKey};
use crate::support::keyed_locks::Held;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::{SpareClaim, SpareEnd};
use crate::workspace::{DirectoryName, Owner};

/// New users whose wishes are remembered: what a minute brings at some starts in a second.
const MOST_NEWCOMERS: usize = 256;

/// What a spare is started with: all that decides about command line and environment, as long as its user has no variables
/// of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpareKind {
    pub(crate) model: Option<String>,
    /// Without what the handshake brings.
    pub(crate) settings: LaunchSettings,
}

impl SpareKind {
    /// What a new session with these settings wants; `None`: no spare fits.
    pub(crate) fn wanted(cli: &CliConfig, settings: &SettingsRecord, brings_history: bool) -> Option<Self> {
        if brings_history
            || settings.own_credentials
            // Bound at the start, with a flag.
            || !settings.caller_tools.is_empty()
            || settings.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty())
        {
            return None;
        }
        let bound = SettingsRecord::default().with(settings, cli.model.as_deref());
        Some(Self {
            model: bound.model.or_else(|| cli.model.clone()),
            settings: LaunchSettings {
                fallback_model: bound.fallback_model,
                policy: bound.restrictions.policy,
                tools: bound.restrictions.tools,
                ..LaunchSettings::default()
            },
        })
    }
}

/// Phase of a spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SparePhase {
    /// It starts.
    Warming,
    /// It answers, and waits for a session.
    Ready,
}

/// A spare on the shelf.
#[derive(Debug)]
pub(crate) struct Shelved {
    pub(crate) id: u64,
    pub(crate) kind: SpareKind,
    pub(crate) phase: SparePhase,
    /// When it became what it is.
    pub(crate) since: Instant,
    /// The root of its process tree, once it has one.
    pub(crate) shim: Option<u32>,
    /// Of its tree, when it was last measured.
    memory: u64,
    /// Whose its process is, once it has one.
    owner: Option<Owner>,
    place: Option<SparePlace>,
    order: oneshot::Sender<SpareOrder>,
    /// Cancelled once its task has ended.
    gone: CancellationToken,
}

/// What the task of a spare has: its orders, and what says that it has ended.
pub(crate) type SpareTask = (oneshot::Receiver<SpareOrder>, DropGuard);

/// What is left of a spare whose task has failed.
#[derive(Debug)]
pub(crate) struct Abandoned {
    pub(crate) shim: Option<u32>,
    pub(crate) owner: Option<Owner>,
}

/// What a spare brings to its session besides the child.
#[derive(Debug, Clone)]
pub(crate) struct SparePlace {
    pub(crate) directory: DirectoryName,
    /// The CLI's id of the conversation.
    pub(crate) conversation: String,
    pub(crate) owner: Option<Owner>,
}

/// The one order that the task of a spare gets.
#[derive(Debug)]
pub(crate) enum SpareOrder {
    End(SpareEnd),
    /// A session has its directory, and will ask for the child. It has no other child while the slot is held.
    Reserve(oneshot::Receiver<SpareRequest>, Slot, SparePromise),
}

/// That of a session, see [`Sessions::slots`].
pub(crate) type Slot = Held<SessionHash>;

/// How the session gets the child and its slot; `None`: nothing is left of the child.
pub(crate) type SpareRequest = oneshot::Sender<(Option<Spare>, Slot)>;

/// A spare whose directory is that of a session. Dropping it ends the child, and keeps the directory.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) place: SparePlace,
    request: oneshot::Sender<SpareRequest>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    state: Mutex<State>,
    /// Called when the spares or what is wanted of them may have changed.
    pub(crate) changed: Notify,
    /// The tasks of all spares.
    pub(crate) keepers: TaskTracker,
    /// Held while a user id of a spare is waited for: each waits for the end of one spare, and none takes that of another.
    pub(super) id_waits: tokio::sync::Mutex<()>,
    /// The next task panics.
    #[cfg(feature = "failpoints")]
    pub(crate) fails_next: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    spares: Vec<Shelved>,
    next: u64,
    newcomers: VecDeque<(Instant, SpareKind)>,
    pauses: Pauses,
    room: MemoryRoom,
    closed: bool,
}

/// Everything that the decision about spares looks at.
#[derive(Debug)]
pub(crate) struct OnShelf<'a> {
    pub(crate) spares: &'a [Shelved],
    pub(crate) newcomers: &'a VecDeque<(Instant, SpareKind)>,
    pub(crate) pauses: &'a Pauses,
    /// Memory for another one is left, as far as is known.
    pub(crate) has_room: bool,
    /// Memory is scarce.
    pub(crate) is_pressed: bool,
    pub(crate) closed: bool,
}

impl Shelf {
    /// Reads all of it at one moment.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&OnShelf<'_>) -> T) -> T {
        let state = self.lock();
        let used = state.spares.iter().map(|spare| spare.memory);
        read(&OnShelf {
            spares: &state.spares,
            newcomers: &state.newcomers,
            pauses: &state.pauses,
            has_room: state.room.is_enough(used, Instant::now()),
            is_pressed: state.room.is_pressed(),
            closed: state.closed,
        })
    }

    /// Number of spares in a phase.
    pub(crate) fn count(&self, phase: SparePhase) -> usize {
        self.lock().spares.iter().filter(|spare| spare.phase == phase).count()
    }

    /// Adds a spare that is about to start; `None`: no more are started.
    pub(crate) fn add(&self, kind: SpareKind) -> Option<(u64, SpareTask)> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let ((order, orders), gone) = (oneshot::channel(), CancellationToken::new());
        state.next += 1;
        let id = state.next;
        state.spares.push(Shelved {
            id,
            kind,
            phase: SparePhase::Warming,
            since: Instant::now(),
            shim: None,
            memory: 0,
            owner: None,
            place: None,
            order,
            gone: gone.clone(),
        });
        Some((id, (orders, gone.drop_guard())))
    }

    /// The process of a spare runs.
    pub(crate) fn started(&self, id: u64, shim: Option<u32>, owner: Option<Owner>) {
        self.with(id, |spare| (spare.shim, spare.owner) = (shim, owner));
    }

    /// A spare answers.
    pub(crate) fn ready(&self, id: u64, place: SparePlace) {
        self.with(id, |spare| {
            (spare.phase, spare.since, spare.place) = (SparePhase::Ready, Instant::now(), Some(place));
        });
        self.changed.notify_one();
    }

    /// Takes a spare from the shelf before it ends, so that no session gets it. `failed`: for a reason that the next one
    /// may meet as well. Whether the shelf had it; else its order is on the way, or its session begins without it.
    pub(crate) fn withdraw(&self, id: u64, kind: &SpareKind, lived: Duration, failed: bool) -> bool {
        let mut state = self.lock();
        let before = state.spares.len();
        state.spares.retain(|spare| spare.id != id);
        if failed {
            state.pauses.failed(kind, lived, Instant::now());
        }
        state.spares.len() < before
    }

    /// Takes a spare from the shelf whose task has failed: else no other one would start. `None`: the shelf had it no more.
    pub(crate) fn abandon(&self, id: u64, kind: &SpareKind) -> Option<Abandoned> {
        let mut state = self.lock();
        let at = state.spares.iter().position(|spare| spare.id == id)?;
        let Shelved { shim, owner, .. } = state.spares.swap_remove(at);
        state.pauses.failed(kind, Duration::ZERO, Instant::now());
        drop(state);
        self.changed.notify_one();
        Some(Abandoned { shim, owner })
    }

    /// Orders the end of a spare, unless it was given away.
    pub(crate) fn end(&self, id: u64, why: SpareEnd) {
        let mut state = self.lock();
        if let Some(at) = state.spares.iter().position(|spare| spare.id == id) {
            if why == SpareEnd::Memory {
                state.room.ended(Instant::now());
            }
            // A task that has ended needs no order.
            drop(state.spares.swap_remove(at).order.send(SpareOrder::End(why)));
        }
    }

    /// Orders the end of the spare that is worth least of those with a user id. What is cancelled once it is gone; `None`:
    /// there is none.
    pub(super) fn end_for_id(&self) -> Option<CancellationToken> {
        let mut state = self.lock();
        let spares = state.spares.iter().enumerate().filter(|(_, spare)| spare.owner.is_some());
        let least = spares.max_by_key(|(_, spare)| (spare.phase == SparePhase::Warming, spare.since));
        let (at, _) = least?;
        let Shelved { order, gone, .. } = state.spares.swap_remove(at);
        // A task that has ended needs no order.
        drop(order.send(SpareOrder::End(SpareEnd::Room)));
        Some(gone)
    }

    /// Ends all spares, because the host has no room for a start, and keeps others away for a while. Whether there were any;
    /// they are gone when this returns, or `within` is over.
    pub(super) async fn make_room(&self, within: Duration) -> bool {
        let ended: Vec<_> = {
            let mut state = self.lock();
            state.room.ended(Instant::now());
            state.spares.drain(..).collect()
        };
        let ended: Vec<_> = ended
            .into_iter()
            .map(|Shelved { order, gone, .. }| {
                // A task that has ended needs no order.
                drop(order.send(SpareOrder::End(SpareEnd::Room)));
                gone
            })
            .collect();
        let all_gone = async {
            for gone in &ended {
                gone.cancelled().await;
            }
        };
        timeout(within, all_gone).await.ok();
        !ended.is_empty()
    }

    /// Ends all spares; no other one starts. Those whose sessions are about to ask for them stay.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for spare in state.spares.drain(..) {
            drop(spare.order.send(SpareOrder::End(SpareEnd::Drain)));
        }
        drop(state);
        self.keepers.close();
        self.changed.notify_one();
    }

    /// Gives the directory of a spare of this kind to a session that begins. Blocking.
    pub(crate) fn reserve(
        &self,
        sessions: &Sessions,
        key: &SessionKey,
        kind: &SpareKind,
    ) -> Option<Reserved> {
        let (env, user) = (&sessions.env, key.user());
        if env.config.spares.min == 0 || sessions.admission.knows(user) {
            return None;
        }
        let is_plain = env.user_env.of(user).is_empty();
        if !is_plain || !env.isolation.may_adopt(user) {
            return None;
        }
        let slot = sessions.slots.try_acquire(&key.hash())?;
        let reserved = self.take(kind).and_then(|spare| {
            let place = spare.place?;
            // Otherwise its task sees that the shelf has dropped it.
            let adopted = env.isolation.adopt(user, place.owner).ok()?;
            let (request, requests) = oneshot::channel();
            let promise = sessions.admission.promise_spare();
            let sent = adopted.then(|| spare.order.send(SpareOrder::Reserve(requests, slot, promise)))?;
            sent.is_ok().then_some(Reserved { place, request })
        });
        if reserved.is_none() {
            env.telemetry.metrics.spare_claims.increment(SpareClaim::Missed);
        } else {
            // A start that counted on the spare's place needs that of another child.
            sessions.admission.ask_for_room();
        }
        self.changed.notify_one();
        reserved
    }

    /// The spare of this kind that has waited longest, and no longer on the shelf.
    fn take(&self, kind: &SpareKind) -> Option<Shelved> {
        let mut state = self.lock();
        if state.newcomers.len() == MOST_NEWCOMERS {
            state.newcomers.pop_front();
        }
        state.newcomers.push_back((Instant::now(), kind.clone()));
        let ready = |spare: &Shelved| spare.phase == SparePhase::Ready && spare.kind == *kind;
        let at = state.spares.iter().position(ready)?;
        Some(state.spares.remove(at))
    }

    /// A spare of this kind is the child of a session, and ready.
    pub(super) fn served(&self, kind: &SpareKind) {
        self.lock().pauses.worked(kind);
    }

    /// A spare of this kind that a session got did not become ready.
    pub(super) fn failed(&self, kind: &SpareKind) {
        self.lock().pauses.failed(kind, Duration::ZERO, Instant::now());
    }

    /// The roots of the process trees of all spares.
    pub(crate) fn shims(&self) -> Vec<u32> {
        self.lock().spares.iter().filter_map(|spare| spare.shim).collect()
    }

    /// Notes what a tree uses.
    pub(crate) fn measured(&self, shim: u32, bytes: u64) {
        let state = &mut *self.lock();
        if let Some(spare) = state.spares.iter_mut().find(|spare| spare.shim == Some(shim)) {
            spare.memory = bytes;
            state.room.measured_spare(bytes, Instant::now());
        }
    }

    /// Notes how much of the memory budget all children use. What spares use of it.
    pub(crate) fn measured_all(&self, used: u64, budget: u64) -> u64 {
        let mut state = self.lock();
        state.room.measured(used, budget);
        let used = state.spares.iter().map(|spare| spare.memory).sum();
        drop(state);
        self.changed.notify_one();
        used
    }

    fn with(&self, id: u64, change: impl FnOnce(&mut Shelved)) {
        if let Some(spare) = self.lock().spares.iter_mut().find(|spare| spare.id == id) {
            change(spare);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock_unpoisoned()
    }
}

impl Reserved {
    /// Asks for the child and the slot of the session; `None`: neither is given, and the slot will be free.
    pub(super) async fn child(self) -> Option<(Option<Spare>, Slot)> {
        let (request, given) = oneshot::channel();
        self.request.send(request).ok()?;
        given.await.ok()
    }
}

#[cfg(test)]
impl Shelved {
    /// A spare without a task.
    pub(crate) fn of_test(id: u64, kind: SpareKind, phase: SparePhase, since: Instant) -> Self {
        let (order, gone) = (oneshot::channel().0, CancellationToken::new());
        Self { id, kind, phase, since, shim: None, memory: 0, owner: None, place: None, order, gone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PermissionPolicy;

    fn settings() -> SettingsRecord {
        SettingsRecord::default()
    }

    #[test]
    fn kind_has_what_the_command_line_has() {
        let mut cli = CliConfig::default();
        let kind = |cli: &CliConfig, settings: &SettingsRecord| SpareKind::wanted(cli, settings, false);
        assert_eq!(kind(&cli, &settings()), Some(SpareKind::default()));
        let prompted = SettingsRecord { system_prompt: Some("brief".into()), ..settings() };
        assert_eq!(kind(&cli, &prompted), Some(SpareKind::default()));
        let haiku = SettingsRecord { model: Some("haiku".into()), ..settings() };
        let expected = SpareKind { model: Some("haiku".into()), ..SpareKind::default() };
        assert_eq!(kind(&cli, &haiku), Some(expected.clone()));
        cli.model = Some("haiku".into());
        assert_eq!(kind(&cli, &haiku), Some(expected.clone()));
        assert_eq!(kind(&cli, &settings()), Some(expected));
        let mut denied = settings();
        denied.restrictions.policy = Some(PermissionPolicy::Deny);
        assert_ne!(kind(&cli, &denied), kind(&cli, &settings()));
        let own = SettingsRecord { own_credentials: true, ..settings() };
        assert_eq!((kind(&cli, &own), SpareKind::wanted(&cli, &settings(), true)), (None, None));
    }

    fn place() -> SparePlace {
        let directory = DirectoryName::try_from("0".repeat(32)).unwrap();
        SparePlace { directory, conversation: String::new(), owner: None }
    }

    /// A shelf with a spare that is ready.
    fn with_one() -> (Shelf, u64, oneshot::Receiver<SpareOrder>) {
        let shelf = Shelf::default();
        let (id, (orders, _)) = shelf.add(SpareKind::default()).unwrap();
        shelf.ready(id, place());
        (shelf, id, orders)
    }

    #[test]
    fn withdrawn_spare_is_given_to_no_session() {
        let (shelf, id, _orders) = with_one();
        assert!(shelf.withdraw(id, &SpareKind::default(), Duration::ZERO, true));
        assert!(shelf.take(&SpareKind::default()).is_none());
        let is_due = |shelf: &OnShelf<'_>| shelf.pauses.are_over(&SpareKind::default(), Instant::now());
        assert!(!shelf.read(is_due), "the next one waits");
    }

    #[test]
    fn spare_that_a_session_has_cannot_be_withdrawn() {
        let (shelf, id, mut orders) = with_one();
        let taken = shelf.take(&SpareKind::default()).unwrap();
        assert!(!shelf.withdraw(id, &SpareKind::default(), Duration::ZERO, true));
        assert!(orders.try_recv().is_err(), "its order is on the way");
        drop(taken.order.send(SpareOrder::End(SpareEnd::Died)));
        assert!(orders.try_recv().is_ok());
    }

    /// The next one starts after a pause, as after any failure.
    #[test]
    fn spare_of_a_failed_task_is_abandoned_once() {
        let (shelf, id, _orders) = with_one();
        let owner = Some(Owner { uid: 7, gid: 7 });
        shelf.started(id, Some(9), owner);
        let abandoned = shelf.abandon(id, &SpareKind::default()).unwrap();
        assert_eq!((abandoned.shim, abandoned.owner), (Some(9), owner));
        assert!(shelf.abandon(id, &SpareKind::default()).is_none());
        assert!(shelf.read(|shelf| shelf.spares.is_empty()));
    }

    /// Spares without a user id stay: their ends would help nobody.
    #[test]
    fn only_a_spare_with_a_user_id_ends_for_it() {
        let (shelf, id, mut orders) = with_one();
        assert!(shelf.end_for_id().is_none());
        shelf.started(id, None, Some(Owner { uid: 7, gid: 7 }));
        assert!(shelf.end_for_id().is_some() && shelf.end_for_id().is_none());
        assert!(matches!(orders.try_recv(), Ok(SpareOrder::End(SpareEnd::Room))));
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_made_by_the_ends_of_all_spares() {
        let shelf = Shelf::default();
        let limit = Duration::from_secs(5);
        assert!(!shelf.make_room(limit).await, "there are none");
        let (_, task) = shelf.add(SpareKind::default()).unwrap();
        let since = Instant::now();
        let ending = async {
            assert!(matches!(task.0.await, Ok(SpareOrder::End(_))));
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(task.1);
        };
        let (was_any, ()) = tokio::join!(shelf.make_room(limit), ending);
        assert_eq!((was_any, since.elapsed()), (true, Duration::from_secs(1)));
        assert!(!shelf.read(|shelf| shelf.has_room), "none starts at once");
        let (_, _silent) = shelf.add(SpareKind::default()).unwrap();
        assert!(shelf.make_room(limit).await && since.elapsed() == Duration::from_secs(6));
    }
}
