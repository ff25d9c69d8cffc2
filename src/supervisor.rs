//! The supervisor: starts one [`SessionActor`] per session and the two actors that look after all of them, and puts
//! things right when one of them fails.
//!
//! A handful of messages per session's life pass here, none per turn. Nothing in it waits for a process: a session's
//! `pre_start` only builds state. Should the supervisor itself fail, ractor ends its actors with it, their children's
//! tasks notice and stop the children in order, and [`run`] starts a new one.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::TurnError;
use crate::model::{SessionState, ids::SessionKey};
use crate::session::{
    Record, SessionActor, SessionArgs, SessionMessage, actor_refs::SupervisorMessage, registry::Entry,
    sessions::Sessions, shelf::Reserved,
};
use crate::telemetry::metrics::{ActorKind, AdmissionRejected};

/// When to try again where nothing rests: a turn is likely to have ended by then.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Time in which a session that was asked leaves memory: its record is written first.
const LEAVES_WITHIN: Duration = Duration::from_secs(10);
/// Time in which a session that has come into memory for a turn gets it.
const USED_WITHIN: Duration = Duration::from_secs(2);

mod idle;
pub(crate) mod retention;
mod sampler;

use idle::IdleEvictor;
use sampler::MetricsSampler;

struct Supervisor;

struct SupervisorState {
    sessions: Arc<Sessions>,
    evictor: Option<ActorId>,
    sampler: Option<ActorId>,
}

/// Runs a supervisor, and a new one after each failure, until the stop. `ready` is answered once, when the first
/// one can be reached.
pub(crate) async fn run(sessions: Arc<Sessions>, ready: oneshot::Sender<Result<(), SpawnErr>>) {
    let _ended = sessions.env.ended.clone().drop_guard();
    let mut ready = Some(ready);
    loop {
        let (address, handle) = match Actor::spawn(None, Supervisor, sessions.clone()).await {
            Ok(started) => started,
            Err(error) => {
                if let Some(ready) = ready.take() {
                    drop(ready.send(Err(error)));
                }
                return;
            }
        };
        sessions.actor_refs.set_supervisor(Some(address));
        if let Some(ready) = ready.take() {
            drop(ready.send(Ok(())));
        }
        drop(handle.await);
        sessions.actor_refs.set_supervisor(None);
        // Its sessions ended with it.
        for entry in sessions.registry.entries() {
            sessions.registry.forget_actor(entry.actor.get_id());
        }
        if sessions.is_draining() {
            // Nothing is started any more; a session that had slipped in while the stop began is gone as well.
            return;
        }
        sessions.env.telemetry.metrics.actor_panics.increment(ActorKind::Supervisor);
        tracing::error!("the supervisor failed and is started again; sessions resume with their next turn");
    }
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = Arc<Sessions>;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        sessions: Arc<Sessions>,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let mut state = SupervisorState { sessions, evictor: None, sampler: None };
        state.start_evictor(&myself).await?;
        state.start_sampler(&myself).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::StartSession { key, record, spare, inside, reply } => {
                let result = start_session(&myself, state, key, *record, spare.map(|it| *it)).await;
                drop(inside);
                drop(reply.send(result));
            }
            SupervisorMessage::Stop => myself.stop(None),
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SupervisorMessage::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, _) => {
                let kind = state.kind_of(actor.get_id());
                state.sessions.env.telemetry.metrics.actor_panics.increment(kind);
                tracing::error!(actor = kind.as_str(), "an actor failed and is replaced");
                match kind {
                    ActorKind::Idle => state.start_evictor(&myself).await?,
                    ActorKind::Sampler => state.start_sampler(&myself).await?,
                    // Its child's task finds that no actor gives orders any more and stops the child; the next turn
                    // gets a new actor, which waits for the child's slot.
                    ActorKind::Session | ActorKind::Supervisor => {
                        drop(state.sessions.registry.forget_actor(actor.get_id()));
                    }
                }
            }
            // A session that was killed from outside has the same consequences as one that failed.
            SupervisionEvent::ActorTerminated(actor, _, _) => {
                state.sessions.registry.forget_actor(actor.get_id());
            }
            _ => {}
        }
        Ok(())
    }
}

impl SupervisorState {
    fn kind_of(&self, actor: ActorId) -> ActorKind {
        if Some(actor) == self.evictor {
            ActorKind::Idle
        } else if Some(actor) == self.sampler {
            ActorKind::Sampler
        } else {
            ActorKind::Session
        }
    }

    async fn start_evictor(&mut self, myself: &ActorRef<SupervisorMessage>) -> Result<(), SpawnErr> {
        let (evictor, _) =
            Actor::spawn_linked(None, IdleEvictor, self.sessions.clone(), myself.get_cell()).await?;
        self.evictor = Some(evictor.get_id());
        self.sessions.actor_refs.set_evictor(evictor);
        Ok(())
    }

    async fn start_sampler(&mut self, myself: &ActorRef<SupervisorMessage>) -> Result<(), SpawnErr> {
        let (sampler, _) =
            Actor::spawn_linked(None, MetricsSampler, self.sessions.clone(), myself.get_cell()).await?;
        self.sampler = Some(sampler.get_id());
        self.sessions.actor_refs.set_sampler(sampler);
        Ok(())
    }
}

async fn start_session(
    myself: &ActorRef<SupervisorMessage>,
    state: &SupervisorState,
    key: SessionKey,
    record: Record,
    spare: Option<Reserved>,
) -> Result<(), TurnError> {
    let sessions = &state.sessions;
    if sessions.registry.get(&key).is_some() {
        return Ok(());
    }
    if sessions.is_draining() {
        return Err(TurnError::Draining);
    }
    if sessions.registry.len() >= sessions.env.current().limits.max_sessions && !make_way(sessions) {
        sessions.env.telemetry.metrics.admission_rejected.increment(AdmissionRejected::QueueFull);
        let reason = "as many sessions as may be are in memory and in use (limits.max_sessions)";
        return Err(TurnError::Overloaded { reason, retry_after: RETRY_AFTER });
    }
    let workspace = record.workspace(&sessions.env.config.data_dir, &key.hash());
    let args = SessionArgs { sessions: sessions.clone(), workspace, record, spare, key };
    let started = Actor::spawn_linked(None, SessionActor, args, myself.get_cell()).await;
    started.map(drop).map_err(|problem| {
        tracing::error!(%problem, "a session's actor did not start");
        TurnError::Internal("the session's actor did not start")
    })
}

/// Asks the session that has rested longest to leave memory, and one that has failed only after the others; false if none is on its way out by that. The limit may be passed
/// by those few.
fn make_way(sessions: &Sessions) -> bool {
    let now = Instant::now();
    let is_within = |at: Option<Instant>, time| at.is_some_and(|at| now.duration_since(at) < time);
    let resting = |entry: &Arc<Entry>| {
        entry.status.read(|visible| {
            let rests = visible.is_at_rest(now) && entry.is_unused();
            let is_awaited =
                is_within(visible.unused_since, USED_WITHIN) || is_within(visible.makes_way, LEAVES_WITHIN);
            // What is known of a failed session's circuit leaves memory with it: they come last.
            let has_failed = visible.status.state == SessionState::Failed;
            (rests && !is_awaited).then_some((visible.makes_way.is_some(), has_failed, visible.quiet_since))
        })
    };
    let entries = sessions.registry.entries().into_iter();
    let mut resting: Vec<_> = entries.filter_map(|entry| Some((resting(&entry)?, entry))).collect();
    resting.sort_unstable_by_key(|(rank, _)| *rank);
    for ((was_asked, ..), entry) in resting {
        entry.status.makes_way();
        if entry.actor.cast(SessionMessage::Retire).is_ok() {
            // What holds one up may do so again: there is room once it has left.
            return !was_asked;
        }
    }
    false
}
