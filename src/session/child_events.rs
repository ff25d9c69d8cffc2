//! The way of a child's events into the mailbox of its session.
//!
//! The connection calls [`ChildEvents`] at once and in order. What a reader may look at when it receives an event is
//! updated first; then the event goes into the mailbox.

use std::sync::{Arc, Mutex};

use ractor::ActorRef;
use tokio::time::Instant;

use super::conclude::Conclusion;
use super::import::{First, Imported};
use super::journaling;
use super::lifecycle::Plan;
use super::message::SessionMessage;
use super::shelf::SpareKind;
use crate::admission::StartPermit;
use crate::child::{ChildEvent, ConnectionHandle, OnChildEvent, TurnEnd, TurnReport};
use crate::config::JournalMode;
use crate::installation::versions::Chosen;
use crate::journal::{Journal, Noted};
use crate::model::{Usage, ids::Generation};
use crate::spend::EndedTurn;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::ContextLost;

/// An event in the life of a child that its task reports, not its connection.
#[derive(Debug)]
pub(crate) enum LifecycleEvent {
    /// Without a connection if a client speaks to it itself.
    Started(Started, Option<Arc<ConnectionHandle>>),
    /// Part of the conversation is not on disk; which, where that is known ([`crate::adapter::transcript_gap`]).
    ContextLost(ContextLost, Option<String>),
    /// The conversation goes on without its last messages, of turns that were not answered.
    Forgotten {
        /// There were no others.
        begins_again: bool,
    },
    /// How the turn that follows a history is sent, before the child is ready.
    First(First),
    /// The CLI has taken up the history that was offered.
    Imported(Imported),
    /// The conversation goes on under another id, because neither opening it nor beginning it worked under the old.
    NewConversation(String),
    /// There is no child any more. Always the last event.
    Ended(Box<Conclusion>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    pub(crate) shim: u32,
}

/// The session's mailbox, for the child of one generation.
#[derive(Clone)]
pub(crate) struct Mailbox {
    session: ActorRef<SessionMessage>,
    generation: Generation,
}

impl Mailbox {
    pub(super) fn new(session: ActorRef<SessionMessage>, generation: Generation) -> Self {
        Self { session, generation }
    }

    pub(super) fn send(&self, event: LifecycleEvent) {
        self.cast(SessionMessage::Lifecycle(self.generation, event));
    }

    fn cast(&self, message: SessionMessage) {
        // The actor may have failed; the child is stopped then, because its link is dropped.
        drop(self.session.cast(message));
    }
}

pub(super) struct ChildEvents {
    pub(super) plan: Plan,
    pub(super) mailbox: Mailbox,
    pub(super) chosen: Chosen,
    pub(super) begun: Instant,
    /// Taken at the greeting, or dropped with the child.
    pub(super) start_permit: Arc<Mutex<Option<StartPermit>>>,
    /// It was a spare of this kind.
    pub(super) spare: Option<SpareKind>,
    pub(super) journal: Option<Arc<Journal>>,
    pub(super) imported: Option<Imported>,
}

impl ChildEvents {
    fn ready(&self) {
        let env = self.plan.env();
        env.telemetry.ready(&self.plan.entry.key, self.begun.elapsed());
        if let Some(kind) = &self.spare {
            self.plan.sessions.shelf.served(kind);
        }
        if !env.installed.is_proven(&self.chosen) {
            let (installed, chosen) = (env.installed.clone(), self.chosen.clone());
            tokio::task::spawn_blocking(move || installed.worked(&chosen));
        }
        if let Some(mut imported) = self.imported.clone() {
            imported.program.take().into_iter().for_each(|it| env.import_ability.accepted(it));
            self.mailbox.send(LifecycleEvent::Imported(imported));
        }
    }

    /// Charges the user for a turn.
    fn charge(&self, cost_usd: f64, usage: Usage, is_part: bool) {
        let (entry, env) = (&self.plan.entry, self.plan.env());
        let turn = EndedTurn { cost_usd, usage, is_metered: env.is_metered(), is_part };
        env.spend.turn_ended(entry.key.user(), &entry.hash, turn);
    }
}

impl OnChildEvent for ChildEvents {
    fn on_child_event(&self, event: ChildEvent) {
        let entry = &self.plan.entry;
        match &event {
            ChildEvent::Permissions(pending) => {
                for request in entry.status.permissions_changed(pending) {
                    let (id, tool) = (&request.request_id, &request.tool_name);
                    self.plan.env().telemetry.permission_needed(&entry.key, id, tool);
                }
                return;
            }
            ChildEvent::Frozen(frozen) => return entry.status.frozen_changed(*frozen),
            ChildEvent::AwaitsCaller(awaits) => return entry.status.wait_changed(*awaits),
            ChildEvent::Active(active) => entry.status.activity_changed(*active),
            // The work of a start is done. How long servers take to connect, which a caller may have chosen, holds up
            // their own session alone.
            ChildEvent::Greeted => return drop(self.start_permit.lock_unpoisoned().take()),
            ChildEvent::Ready => self.ready(),
            ChildEvent::OwnTurn { cost_usd } => {
                entry.status.spent(*cost_usd);
                self.charge(*cost_usd, Usage::default(), false);
                self.plan.env().telemetry.own_turn(&entry.key, *cost_usd);
            }
            ChildEvent::Model(_) | ChildEvent::TurnEnded(_) => {}
            ChildEvent::Journal(records) => {
                if let Some(journal) = self.journal.as_ref().filter(|_| !records.is_empty()) {
                    journaling::count(&self.plan, journal.add(records));
                }
                return;
            }
        }
        self.mailbox.cast(SessionMessage::Child(self.mailbox.generation, event));
    }

    /// A reader may receive the end before the session's actor does. The journal has the turn before: who kills all
    /// processes in the instant after must not take the answer away.
    fn on_turn_ended(&self, mut ended: TurnReport, last: Option<Box<TurnEnd>>) -> Option<Box<TurnEnd>> {
        let turns = self.plan.entry.status.turn_ended(ended.turn, ended.cost_usd, &ended.usage);
        // Also before the reader's next turn is checked.
        self.charge(ended.cost_usd, ended.usage, ended.is_part);
        let records = std::mem::take(&mut ended.journal);
        let noted = self.journal.as_ref().map(|journal| {
            let conversation = ended.cli_session_id.as_deref();
            let noted =
                journal.end_turn(turns, (ended.checkpoint.as_ref(), ended.answered), conversation, &records);
            journaling::count(&self.plan, noted);
            (journal, noted)
        });
        self.on_child_event(ChildEvent::TurnEnded(ended));
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.plan.env().cluster.clone() {
            let is_written = matches!(noted, Some((_, Noted::Written | Noted::WrittenAgain)));
            return journaling::send_replicated(&self.plan, cluster, is_written, last);
        }
        let is_synced = self.plan.env().config.session.journal == JournalMode::Synced;
        match (noted, last) {
            (Some((journal, Noted::Written | Noted::WrittenAgain)), Some(last)) if is_synced => {
                journaling::send_synced(&self.plan, journal, last);
                None
            }
            (_, last) => last,
        }
    }
}
