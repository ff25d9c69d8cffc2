//! The idle-timeout actor: sleeps until the next session may have been quiet for too long, then asks it to stop its
//! child. It only asks: whether nothing needs the child any more is the session's own decision, made in its mailbox's
//! order, so a turn that comes in the same instant is served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::instance::Instance;
use crate::metrics::EvictionReason;
use crate::registry::{Board, Entry};
use crate::session::{SessionMessage, SessionState};

/// Sessions are looked at this often even if none is due, so that one which became quiet by other ways than a turn is
/// found; also the least pause between two looks.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// A child younger than this is not stopped to make room: starting it cost more than it gives back.
const TOO_YOUNG: Duration = Duration::from_secs(10);

/// How much is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Room {
    /// For so many children.
    Children(usize),
    /// So many bytes.
    Bytes(u64),
}

/// What the actor is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum IdleMessage {
    /// Look for sessions that are due.
    Look,
    /// Stop the children that have been idle longest.
    MakeRoom(Room),
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

pub(crate) struct IdleEvictor;

impl Actor for IdleEvictor {
    type Msg = IdleMessage;
    type State = Arc<Instance>;
    type Arguments = Arc<Instance>;

    async fn pre_start(
        &self,
        myself: ActorRef<IdleMessage>,
        instance: Arc<Instance>,
    ) -> Result<Arc<Instance>, ActorProcessingErr> {
        look_again(&myself, instance.config.session.idle_timeout);
        Ok(instance)
    }

    async fn handle(
        &self,
        myself: ActorRef<IdleMessage>,
        message: IdleMessage,
        instance: &mut Arc<Instance>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            IdleMessage::Look => {
                let entries = instance.registry.entries();
                let (due, next) = look(&entries, Instant::now(), instance.config.session.idle_timeout);
                for (entry, message) in due {
                    // One that has ended meanwhile needs nothing.
                    drop(entry.actor.cast(message));
                }
                look_again(&myself, next);
            }
            IdleMessage::MakeRoom(room) => {
                let (entries, now) = (instance.registry.entries(), Instant::now());
                // Asked again before they are gone, the same ones are chosen again, which changes nothing.
                let victims = victims(&entries, now, room);
                if let Room::Children(wanted) = room
                    && victims.len() < wanted
                    && let Some(wait) = next_old_enough(&entries, now)
                {
                    // Who waits now may be served as soon as the next one may be stopped.
                    let instance = instance.clone();
                    drop(myself.send_after(wait, move || {
                        IdleMessage::MakeRoom(Room::Children(instance.admission.waiting()))
                    }));
                }
                for (entry, quiet_since) in victims {
                    let reason = match room {
                        Room::Children(_) => EvictionReason::Capacity,
                        Room::Bytes(_) => EvictionReason::Memory,
                    };
                    drop(entry.actor.cast(SessionMessage::EvictIdle { reason, quiet_since }));
                }
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            IdleMessage::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

fn look_again(myself: &ActorRef<IdleMessage>, after: Duration) {
    let after = after.clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
    drop(myself.send_after(after, || IdleMessage::Look));
}

/// Who is due and what it is told, and how long until the next one may be.
fn look(
    entries: &[Arc<Entry>],
    now: Instant,
    timeout: Duration,
) -> (Vec<(&Arc<Entry>, SessionMessage)>, Duration) {
    let mut due = Vec::new();
    let mut next = timeout;
    for entry in entries {
        match entry.with_board(|board| wish(board, now, timeout)) {
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

fn wish(board: &Board, now: Instant, timeout: Duration) -> Wish {
    let quiet = now.saturating_duration_since(board.quiet_since);
    match board.state {
        _ if quiet < timeout => Wish::Later(timeout - quiet),
        SessionState::Idle if !board.active => Wish::Evict { quiet_since: board.quiet_since },
        SessionState::Dormant | SessionState::Failed => Wish::Retire,
        _ => Wish::Leave,
    }
}

/// How long until the next idle child may be stopped to make room; `None` if there is none that is too young.
fn next_old_enough(entries: &[Arc<Entry>], now: Instant) -> Option<Duration> {
    let remaining = |board: &mut Board| {
        let age = now.saturating_duration_since(board.child_since?);
        let idle = board.state == SessionState::Idle && !board.active;
        TOO_YOUNG.checked_sub(age).filter(|remaining| idle && !remaining.is_zero())
    };
    let next = entries.iter().filter_map(|entry| entry.with_board(remaining)).min()?;
    Some(next.max(SHORTEST_SLEEP))
}

/// The idle sessions that were used longest ago, as many as are needed, if their children are old enough.
fn victims(entries: &[Arc<Entry>], now: Instant, room: Room) -> Vec<(&Arc<Entry>, Instant)> {
    let candidate = |board: &mut Board| {
        let old_enough =
            board.child_since.is_some_and(|since| now.saturating_duration_since(since) >= TOO_YOUNG);
        let idle = board.state == SessionState::Idle && !board.active && board.queue_depth == 0;
        (idle && old_enough).then_some(board.quiet_since)
    };
    let mut idle: Vec<_> =
        entries.iter().filter_map(|entry| Some((entry, entry.with_board(candidate)?))).collect();
    idle.sort_by_key(|(_, quiet_since)| *quiet_since);
    let enough = match room {
        Room::Children(count) => count,
        Room::Bytes(wanted) => {
            let mut freed = 0;
            let missing = |(entry, _): &(&Arc<Entry>, Instant)| {
                let still = freed < wanted;
                freed += entry.memory.load(Ordering::Relaxed);
                still
            };
            idle.iter().copied().take_while(missing).count()
        }
    };
    idle.truncate(enough);
    idle
}
