//! The start of a child and the link to it.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::SessionActorState;
use crate::child::ConnectionHandle;
use crate::model::ids::{Generation, TurnId};
use crate::session::child_events::{Mailbox, Started};
use crate::session::lifecycle::{self, Plan};
use crate::session::store::{Record, SettingsRecord};
use crate::session::{attach::Attachment, import::Offered, state::SettingsHash};

/// The link to the child of one generation.
pub(super) struct ChildLink {
    generation: Generation,
    /// The connection, once a process runs.
    connection: Option<Arc<ConnectionHandle>>,
    /// Requests the stop of the child; dropping the link does so too.
    stop: CancellationToken,
    pub(super) since: Instant,
    /// The turn whose client speaks to the child itself.
    pub(super) attached: Option<TurnId>,
}

impl Drop for ChildLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl SessionActorState {
    pub(super) fn start(&mut self, generation: Generation, settings_hash: SettingsHash, restart: bool) {
        if let Some(settings) = self.settings_by_hash.remove(&settings_hash) {
            self.record.settings = settings;
        }
        self.settings_by_hash.retain(|_, _| !self.waiting.is_empty());
        if restart {
            self.record.restarts = self.record.restarts.saturating_add(1);
            self.telemetry().restarted(&self.entry.key, self.restart_cause);
        }
        self.record.generation = generation.0;
        self.first = None;
        let stop = CancellationToken::new();
        let (attached, attachment, record) = self.attaching();
        self.child = Some(ChildLink {
            generation,
            connection: None,
            stop: stop.clone(),
            since: Instant::now(),
            attached,
        });
        let plan = Plan {
            sessions: self.sessions.clone(),
            entry: self.entry.clone(),
            workspace: self.workspace.clone(),
            generation,
            offered: self.offered(),
            attachment,
        };
        let mailbox = Mailbox::new(self.entry.actor.clone(), generation);
        let task = lifecycle::run(plan, record, self.spare.take(), stop, mailbox);
        self.sessions.env.tasks.spawn(task);
        self.save_start();
    }

    /// The client that the next child is started for, and the record that it is started with: its settings are no others'.
    fn attaching(&self) -> (Option<TurnId>, Option<Arc<Attachment>>, Box<Record>) {
        let mut record = Box::new(self.record.clone());
        let next = self.machine.next_turn().and_then(|turn| Some((turn, self.waiting.get(&turn)?)));
        let Some((turn, submission)) = next.filter(|(_, submission)| submission.attachment.is_some()) else {
            return (None, None, record);
        };
        let model_without = record.model_without(&self.sessions.env.config.cli);
        record.settings = SettingsRecord::default().with(&submission.settings, model_without);
        (Some(turn), submission.attachment.clone(), record)
    }

    /// The history of the turn that the next child is started for.
    fn offered(&self) -> Option<Offered> {
        let turn = self.machine.next_turn()?;
        let earlier = self.waiting.get(&turn)?.job.earlier.as_ref()?;
        Some(Offered { turn, conversation: earlier.conversation()?.clone() })
    }

    pub(super) fn started(&mut self, started: Started, connection: Option<Arc<ConnectionHandle>>) {
        if let Some(child) = &mut self.child {
            child.connection = connection;
            self.entry.status.child_started(started.pid, started.shim, child.since);
        }
    }

    /// Requests the stop of the child of this generation.
    pub(super) fn stop(&self, generation: Generation) {
        if let Some(child) = self.child.as_ref().filter(|child| child.generation == generation) {
            child.stop.cancel();
        }
    }

    /// The connection to the child of this generation, if it lives.
    pub(super) fn connection(&self, generation: Generation) -> Option<&Arc<ConnectionHandle>> {
        self.child.as_ref().filter(|child| child.generation == generation)?.connection.as_ref()
    }
}
