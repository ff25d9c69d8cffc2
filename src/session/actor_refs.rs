//! Addresses of the supervisor and its two helper actors, and the messages that sessions send to them.

use std::sync::Mutex;

use ractor::{ActorId, ActorRef};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::error::TurnError;
use crate::model::ids::{SessionKey, UserId};
use crate::session::{Record, shelf::Reserved};
use crate::support::keyed_gates::Inside;
use crate::support::lock::MutexExt;

/// Message to the supervisor.
#[derive(Debug)]
pub(crate) enum SupervisorMessage {
    /// Give a session an actor, unless it has one.
    StartSession {
        key: SessionKey,
        record: Box<Record>,
        /// Of a session that has just begun.
        spare: Option<Box<Reserved>>,
        /// Until the actor is there its user is not deleted.
        inside: Inside<UserId>,
        reply: oneshot::Sender<Result<(), TurnError>>,
    },
    /// End the actors; their children are gone already.
    Stop,
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

/// Message to the idle evictor.
#[derive(Debug, Clone)]
pub(crate) enum IdleMessage {
    /// Look for sessions that are due.
    Look,
    /// Stop idle children for the starts that wait by then, see [`crate::admission::room`].
    MakeRoom,
    /// Stop idle children that use this many bytes.
    FreeBytes(u64),
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

/// Message to the metrics sampler.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SamplerMessage {
    /// Measure.
    Tick,
    /// Look at the trees that are near their limit.
    Near,
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

/// Current addresses; each changes when its actor is replaced.
#[derive(Debug)]
pub(crate) struct ActorRefs {
    supervisor: watch::Sender<Option<ActorRef<SupervisorMessage>>>,
    /// Cancelled when the last supervisor has ended.
    ended: CancellationToken,
    evictor: Mutex<Option<ActorRef<IdleMessage>>>,
    sampler: Mutex<Option<ActorRef<SamplerMessage>>>,
}

impl ActorRefs {
    pub(crate) fn new(ended: CancellationToken) -> Self {
        Self {
            supervisor: watch::Sender::new(None),
            ended,
            evictor: Mutex::default(),
            sampler: Mutex::default(),
        }
    }

    pub(crate) fn set_supervisor(&self, supervisor: Option<ActorRef<SupervisorMessage>>) {
        self.supervisor.send_replace(supervisor);
    }

    pub(crate) fn set_evictor(&self, evictor: ActorRef<IdleMessage>) {
        *self.evictor.lock_unpoisoned() = Some(evictor);
    }

    pub(crate) fn set_sampler(&self, sampler: ActorRef<SamplerMessage>) {
        *self.sampler.lock_unpoisoned() = Some(sampler);
    }

    /// Waits for a running supervisor; `None` if the last one has ended.
    pub(crate) async fn supervisor(&self) -> Option<ActorRef<SupervisorMessage>> {
        let mut address = self.supervisor.subscribe();
        tokio::select! {
            address = address.wait_for(Option::is_some) => address.ok()?.clone(),
            () = self.ended.cancelled() => None,
        }
    }

    /// Waits until this supervisor, which has failed, is not the current one.
    pub(crate) async fn replaced(&self, failed: ActorId) {
        let mut address = self.supervisor.subscribe();
        let is_other = |address: &Option<ActorRef<SupervisorMessage>>| {
            address.as_ref().is_none_or(|address| address.get_id() != failed)
        };
        tokio::select! {
            _ = address.wait_for(is_other) => {}
            () = self.ended.cancelled() => {}
        }
    }

    /// Sends to the idle evictor, if one runs.
    pub(crate) fn cast_evictor(&self, message: IdleMessage) {
        if let Some(evictor) = self.evictor.lock_unpoisoned().as_ref() {
            // A stopped evictor is replaced, and its successor looks by itself.
            evictor.cast(message).ok();
        }
    }

    /// Sends to the metrics sampler, if one runs.
    #[cfg(feature = "failpoints")]
    pub(crate) fn cast_sampler(&self, message: SamplerMessage) {
        if let Some(sampler) = self.sampler.lock_unpoisoned().as_ref() {
            // A stopped sampler has nothing to fail.
            sampler.cast(message).ok();
        }
    }
}
