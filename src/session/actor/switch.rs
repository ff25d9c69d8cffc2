//! Another conversation in the place of the session's own: an empty one, or its own up to an earlier message.

use tokio::sync::oneshot;

use super::SessionActorState;
use crate::error::TurnError;
use crate::session::message::Switch;
use crate::session::state::Input;
use crate::support::atomic_file::Durability;
use crate::telemetry::metrics::EvictionReason;

/// A conversation, and who waits for it.
pub(super) type Switching = (Switch, oneshot::Sender<Result<(), TurnError>>);

impl SessionActorState {
    /// Switches once no child has the present conversation. Turns that wait go into the other one.
    pub(super) fn switch(
        &mut self,
        to: Switch,
        interrupt: bool,
        reply: oneshot::Sender<Result<(), TurnError>>,
    ) {
        let is_busy = self.machine.running().is_some() || self.machine.queue_depth() > 0;
        if is_busy && !interrupt {
            reply.send(Err(TurnError::SessionBusy)).ok();
        } else if self.child.is_some() {
            self.switching.push((to, reply));
            self.evict(EvictionReason::Admin, Input::Evict);
        } else {
            self.switch_now(to, reply);
        }
    }

    /// No child is left.
    pub(super) fn switch_waiting(&mut self) {
        for (to, reply) in std::mem::take(&mut self.switching) {
            self.switch_now(to, reply);
        }
    }

    fn switch_now(&mut self, to: Switch, reply: oneshot::Sender<Result<(), TurnError>>) {
        self.touch();
        // It is at its beginning, and belongs to another conversation.
        self.spare = None;
        let record = &mut self.record;
        record.cli_session_id = to.cli_session_id;
        (record.checkpoint, record.unanswered) = (to.checkpoint, None);
        (record.known_gap, record.unreported_context_loss) = (to.known_gap, None);
        record.context_turns = to.turns;
        if to.turns == 0 {
            record.chosen_model = None;
            record.title = None;
        }
        self.machine.set_context(to.turns > 0);
        record.context_answered = to.turns > 0 && record.context_answered;
        (self.first, self.reported_in, self.last_turn) = (None, None, None);
        let save = self.next_save(Durability::Disk);
        self.sessions.env.tasks.spawn(async move {
            save.await;
            reply.send(Ok(())).ok();
        });
    }
}
