//! What every handler shares. Owned by [`super::Server`]; holds no session.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::body::BodyBudget;
use super::error::ApiError;
use super::exporter::Exporter;
use super::history::Conversations;
use super::identity::Identities;
use super::ready::StartedOnce;
use super::turns::replay::Replays;
use crate::error::TurnError;
use crate::pilotlight::Pilotlight;

/// Where digests of tokens are kept, below the data directory.
const IDENTITIES: &str = "identities";
/// Where is kept what conversations of clients that name none know, below the data directory.
const CONVERSATIONS: &str = "conversations";
/// Answers that gather a workspace's files at the same time: each may hold some 50 MB while it does.
const GATHERING: usize = 4;

/// The state behind both routers.
#[derive(Debug)]
pub(super) struct App {
    pilot: Pilotlight,
    exporter: Exporter,
    identities: Identities,
    conversations: Conversations,
    bodies: BodyBudget,
    gathering: Semaphore,
    started_once: StartedOnce,
    replays: Replays,
    draining: AtomicBool,
    since: Instant,
}

impl App {
    pub(super) async fn new(pilot: Pilotlight, exporter: Exporter, replays: Replays) -> Self {
        let identities = Identities::load(pilot.config().data_dir.join(IDENTITIES)).await;
        let keep = pilot.config().http.conversations_per_user;
        let conversations = Conversations::new(pilot.config().data_dir.join(CONVERSATIONS), keep);
        let bodies = BodyBudget::new(pilot.config().http.body_limit);
        Self {
            pilot,
            exporter,
            identities,
            conversations,
            bodies,
            gathering: Semaphore::new(GATHERING),
            started_once: StartedOnce::default(),
            replays,
            draining: AtomicBool::new(false),
            since: Instant::now(),
        }
    }

    pub(super) fn pilot(&self) -> &Pilotlight {
        &self.pilot
    }

    pub(super) fn exporter(&self) -> &Exporter {
        &self.exporter
    }

    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    pub(super) fn conversations(&self) -> &Conversations {
        &self.conversations
    }

    pub(super) fn bodies(&self) -> &BodyBudget {
        &self.bodies
    }

    pub(super) fn gathering(&self) -> &Semaphore {
        &self.gathering
    }

    pub(super) fn started_once(&self) -> &StartedOnce {
        &self.started_once
    }

    pub(super) fn replays(&self) -> &Replays {
        &self.replays
    }

    pub(super) fn uptime(&self) -> std::time::Duration {
        self.since.elapsed()
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.pilot.drain();
    }

    /// Refuses early, before a body is read.
    pub(super) fn refuse_when_draining(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::Acquire) { Err(TurnError::Draining.into()) } else { Ok(()) }
    }

    /// Why no turn would be taken now; empty when one would.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.pilot.readiness().reasons;
        reasons.extend(self.started_once.missing());
        reasons
    }
}

/// A user's share of the turns that may run at once.
#[derive(Debug, Default)]
pub(super) struct TurnPermit;

impl App {
    pub(super) fn turn_permit(
        &self,
        _user: &crate::ids::UserId,
        _caller: &super::caller::Caller,
    ) -> Result<TurnPermit, ApiError> {
        Ok(TurnPermit)
    }
}
