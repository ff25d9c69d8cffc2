//! The idle-timeout actor: sleeps until the next session may have been quiet for too long, then requests a stop of its
//! child. It only requests: whether nothing needs the child any more is the session's own decision, made in its mailbox's
//! order, so a turn that comes in the same instant is served.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::admission::room::{self, Idle};
use crate::model::SessionState;
use crate::session::actor_refs::{IdleMessage, Room};
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
        Ok(EvictorState { sessions })
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
            IdleMessage::MakeRoom(room) => state.make_room(&room),
            IdleMessage::CameToRest => {
                if state.sessions.admission.wants_room() {
                    let wishes = state.sessions.admission.wishes(None);
                    state.make_room(&Room::Children(wishes));
                }
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            IdleMessage::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

impl EvictorState {
    fn make_room(&self, room: &Room) {
        let (entries, now) = (self.sessions.registry.entries(), Instant::now());
        let victims = victims(&entries, now, room, &self.sessions);
        let reason = match room {
            Room::Children(_) => EvictionReason::Capacity,
            Room::Bytes(_) => EvictionReason::Memory,
        };
        for (entry, quiet_since) in victims {
            drop(entry.actor.cast(SessionMessage::EvictIdle { reason, quiet_since }));
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

/// The idle sessions whose children go.
fn victims<'a>(
    entries: &'a [Arc<Entry>],
    now: Instant,
    room: &Room,
    sessions: &Sessions,
) -> Vec<(&'a Arc<Entry>, Instant)> {
    let candidate = |entry: &Arc<Entry>| {
        let (since, quiet_since) = entry.status.read(|visible| {
            let idle = visible.is_idle() && visible.status.queue_depth == 0;
            Some((visible.child_since.filter(|_| idle)?, visible.quiet_since))
        })?;
        Some(Idle {
            user: entry.key.user().clone(),
            quiet_since,
            young: now.saturating_duration_since(since) < TOO_YOUNG,
            bytes: entry.status.read(|visible| visible.status.memory_bytes),
        })
    };
    let (of, idle): (Vec<_>, Vec<_>) =
        entries.iter().filter_map(|entry| Some((entry, candidate(entry)?))).unzip();
    let chosen = match room {
        Room::Children(wishes) => {
            let is_leaving = |entry: &&Arc<Entry>| {
                entry.status.read(|visible| visible.status.state == SessionState::Stopping)
            };
            let leaving: Vec<_> =
                entries.iter().filter(is_leaving).map(|entry| entry.key.user().clone()).collect();
            room::for_starts(&wishes.waiting, wishes.held.clone(), &leaving, &idle)
        }
        Room::Bytes(wanted) => room::for_bytes(*wanted, sessions.admission.held(), &idle),
    };
    chosen.into_iter().filter_map(|at| Some((*of.get(at)?, idle.get(at)?.quiet_since))).collect()
}
