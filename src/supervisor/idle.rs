//! The idle-timeout actor: sleeps until the next session may have been quiet for too long, then requests a stop of its
//! child. It only requests: whether nothing needs the child any more is the session's own decision, made in its mailbox's
//! order, so a turn that comes in the same instant is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::admission::room::{self, Idle};
use crate::model::{SessionState, ids::UserId};
use crate::session::actor_refs::IdleMessage;
use crate::session::{SessionMessage, registry::Entry, sessions::Sessions, status::Visible};
use crate::telemetry::metrics::EvictionReason;

/// Sessions are looked at this often even if none is due, so that one which became quiet by other ways than a turn is
/// found; also the least pause between two looks.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// A child younger than this is not stopped for its memory: starting it cost more than it gives back.
const TOO_YOUNG: Duration = Duration::from_secs(10);

pub(crate) struct IdleEvictor;

pub(crate) struct EvictorState {
    sessions: Arc<Sessions>,
    /// A message to make room is in the mailbox.
    is_asked: Arc<AtomicBool>,
    /// Passes on that starts wait for room.
    _asks: AbortOnDropHandle<()>,
}

impl Actor for IdleEvictor {
    type Msg = IdleMessage;
    type State = EvictorState;
    type Arguments = Arc<Sessions>;

    async fn pre_start(
        &self,
        myself: ActorRef<IdleMessage>,
        sessions: Arc<Sessions>,
    ) -> Result<EvictorState, ActorProcessingErr> {
        look_again(&myself, sessions.env.current().session.idle_timeout);
        let (admission, evictor) = (sessions.admission.clone(), myself.clone());
        let is_asked = Arc::<AtomicBool>::default();
        let is_pending = is_asked.clone();
        let asks = sessions.env.tasks.spawn(async move {
            loop {
                admission.wants_child.notified().await;
                // One message stands for all.
                if !is_pending.swap(true, Ordering::AcqRel) && evictor.cast(IdleMessage::MakeRoom).is_err() {
                    // For the successor.
                    return admission.wants_child.notify_one();
                }
            }
        });
        // A former evictor may have ended before it answered.
        sessions.admission.ask_for_room();
        Ok(EvictorState { sessions, is_asked, _asks: AbortOnDropHandle::new(asks) })
    }

    async fn handle(
        &self,
        myself: ActorRef<IdleMessage>,
        message: IdleMessage,
        state: &mut EvictorState,
    ) -> Result<(), ActorProcessingErr> {
        let sessions = &state.sessions;
        match message {
            IdleMessage::Look => {
                let entries = sessions.registry.entries();
                let (due, next) = look(&entries, Instant::now(), sessions.env.current().session.idle_timeout);
                for (entry, message) in due {
                    // One that has ended meanwhile needs nothing.
                    drop(entry.actor.cast(message));
                }
                look_again(&myself, next);
            }
            IdleMessage::MakeRoom => {
                // Before the look: what changes from here on asks again.
                state.is_asked.store(false, Ordering::Release);
                if sessions.admission.wants_room() {
                    let wishes = sessions.admission.wishes();
                    state.evict(EvictionReason::Capacity, |idle, entries| {
                        room::for_starts(&wishes.waiting, wishes.held, &leaving(entries), idle)
                    });
                }
            }
            IdleMessage::FreeBytes(wanted) => {
                let held = sessions.admission.held();
                state.evict(EvictionReason::Memory, |idle, _| room::for_bytes(wanted, held, idle));
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            IdleMessage::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

impl EvictorState {
    /// Requests the ends of those idle children that `choose` names by their places.
    fn evict(&self, reason: EvictionReason, choose: impl FnOnce(&[Idle], &[Arc<Entry>]) -> Vec<usize>) {
        let entries = self.sessions.registry.entries();
        let (of, idle) = candidates(&entries, Instant::now());
        for at in choose(&idle, &entries) {
            if let (Some(entry), Some(child)) = (of.get(at), idle.get(at)) {
                drop(entry.actor.cast(SessionMessage::EvictIdle { reason, quiet_since: child.quiet_since }));
            }
        }
    }
}

fn look_again(myself: &ActorRef<IdleMessage>, after: Duration) {
    let after = after.clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
    drop(myself.send_after(after, || IdleMessage::Look));
}

/// Sessions that are due, each with its message, and the time until the next one may be.
fn look(
    entries: &[Arc<Entry>],
    now: Instant,
    timeout: Duration,
) -> (Vec<(&Arc<Entry>, SessionMessage)>, Duration) {
    let mut due = Vec::new();
    let mut next = timeout;
    for entry in entries {
        match entry.status.read(|visible| wish(visible, now, timeout)) {
            Wish::Evict { quiet_since } => {
                due.push((entry, SessionMessage::EvictIdle { reason: EvictionReason::Idle, quiet_since }));
            }
            Wish::Retire => due.push((entry, SessionMessage::Retire)),
            Wish::Later(remaining) => next = next.min(remaining),
            Wish::Leave => {}
        }
    }
    (due, next)
}

enum Wish {
    Evict { quiet_since: Instant },
    Retire,
    Later(Duration),
    Leave,
}

fn wish(visible: &Visible, now: Instant, timeout: Duration) -> Wish {
    let quiet = now.saturating_duration_since(visible.quiet_since);
    match visible.status.state {
        _ if quiet < timeout => Wish::Later(timeout - quiet),
        // Its caller was given longer than others. The wait has a limit of its own; a start that needs room ends it.
        SessionState::Idle if visible.awaits_caller => Wish::Leave,
        SessionState::Idle if !visible.active => Wish::Evict { quiet_since: visible.quiet_since },
        SessionState::Dormant | SessionState::Failed => Wish::Retire,
        _ => Wish::Leave,
    }
}

/// The idle children, each with its session.
fn candidates(entries: &[Arc<Entry>], now: Instant) -> (Vec<&Arc<Entry>>, Vec<Idle>) {
    let candidate = |entry: &Arc<Entry>| {
        entry.status.read(|visible| {
            let idle = visible.is_idle() && visible.status.queue_depth == 0;
            let since = visible.child_since.filter(|_| idle)?;
            Some(Idle {
                user: entry.key.user().clone(),
                quiet_since: visible.quiet_since,
                young: now.saturating_duration_since(since) < TOO_YOUNG,
                bytes: visible.status.memory_bytes,
            })
        })
    };
    entries.iter().filter_map(|entry| Some((entry, candidate(entry)?))).unzip()
}

/// The users of children that are on their way out.
fn leaving(entries: &[Arc<Entry>]) -> Vec<UserId> {
    let is_leaving =
        |entry: &&Arc<Entry>| entry.status.read(|visible| visible.status.state == SessionState::Stopping);
    entries.iter().filter(is_leaving).map(|entry| entry.key.user().clone()).collect()
}
