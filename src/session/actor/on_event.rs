//! Events of the child: what they change in the record, and the input they are to the machine.

use tokio::time::Instant;

use super::SessionActorState;
use crate::child::{ChildEvent, TurnReport};
use crate::error::TurnError;
use crate::journal::advance;
use crate::model::{SessionState, Usage, ids::Generation};
use crate::session::quota;
use crate::session::{child_events::LifecycleEvent, conclude::Conclusion, state::Input};
use crate::telemetry::metrics::{ContextLost, ModelClass};

impl SessionActorState {
    pub(super) fn on_lifecycle_event(&mut self, generation: Generation, event: LifecycleEvent) {
        if generation != self.machine.generation() {
            return;
        }
        match event {
            LifecycleEvent::Started(started, connection) => self.started(started, connection),
            LifecycleEvent::ContextLost(loss, gap) => self.context_lost(loss, gap),
            LifecycleEvent::Forgotten { begins_again } => {
                self.record.unanswered = None;
                if begins_again {
                    self.begin_conversation();
                }
                self.save_now();
            }
            LifecycleEvent::First(first) => self.first = Some(first),
            LifecycleEvent::Imported(imported) => {
                // From here on it can be lost like any other conversation.
                self.record.context_turns = self.record.context_turns.max(1);
                (self.record.checkpoint, self.record.unanswered) = (Some(imported.last), None);
                self.machine.set_context(true);
                self.save_now();
            }
            LifecycleEvent::NewConversation(cli_session_id) => {
                self.record.cli_session_id = cli_session_id;
                self.record.chosen_model = None;
                self.save_now();
            }
            LifecycleEvent::Ended(conclusion) => self.child_ended(generation, *conclusion),
        }
    }

    fn context_lost(&mut self, loss: ContextLost, gap: Option<String>) {
        if self.record.unreported_context_loss != Some(loss) {
            // Each start finds it until a turn reports it; it is one loss.
            self.telemetry().context_lost(&self.entry.key, loss);
        }
        self.record.unreported_context_loss = Some(loss);
        self.record.known_gap = gap;
        (self.record.checkpoint, self.record.unanswered) = (None, None);
        if loss == ContextLost::Conversation {
            self.begin_conversation();
        }
        // The next process reports it, if this one does not.
        self.save_now();
    }

    /// Another conversation begins in the place of the one before.
    fn begin_conversation(&mut self) {
        self.record.context_turns = 0;
        self.record.context_answered = false;
        self.record.chosen_model = None;
        self.machine.set_context(false);
    }

    pub(super) fn on_child_event(&mut self, generation: Generation, event: ChildEvent) {
        if generation != self.machine.generation() {
            return;
        }
        match event {
            ChildEvent::Ready => {
                if let Some(crashed_at) = self.crashed_at.take() {
                    self.sessions.env.telemetry.metrics.recovery_duration.record(crashed_at.elapsed());
                }
                if !self.warm_waiters.is_empty() {
                    self.touch();
                }
                let attached = self.child.as_ref().and_then(|child| child.attached);
                // If the client is gone, no other turn may have its child.
                let is_of_use = attached.is_none_or(|turn| self.machine.next_turn() == Some(turn));
                self.feed(if is_of_use { Input::Ready(generation) } else { Input::Evict });
            }
            ChildEvent::TurnEnded(ended) => self.turn_ended(generation, ended),
            ChildEvent::OwnTurn { cost_usd } => {
                self.record.cost_usd += cost_usd;
                self.save_counters();
            }
            ChildEvent::Active(active) => {
                self.touch();
                self.feed(Input::Active(generation, active));
            }
            ChildEvent::Model(model) => {
                // The first one counts: a conversation is to end as it began.
                if self.record.chosen_model.is_none() {
                    self.record.chosen_model = Some(model);
                    self.save_start();
                }
            }
            // Shown already, and nothing that changes what happens next.
            ChildEvent::Greeted
            | ChildEvent::Frozen(_)
            | ChildEvent::AwaitsCaller(_)
            | ChildEvent::Permissions(_)
            | ChildEvent::Journal(_) => {}
        }
    }

    fn turn_ended(&mut self, generation: Generation, ended: TurnReport) {
        self.touch();
        // A transcript that is lost later is missed, and a user with an answer is kept.
        let is_first = self.record.turns == 0 || (ended.answered && !self.record.context_answered);
        let mut save_at_once = false;
        if self.reported_in.take_if(|turn| *turn == ended.turn).is_some() {
            self.record.unreported_context_loss = None;
            save_at_once = true;
        }
        let record = &mut self.record;
        record.answered |= ended.answered;
        record.context_answered |= ended.answered;
        record.turns = record.turns.saturating_add(1);
        record.context_turns = record.context_turns.saturating_add(1);
        self.machine.set_context(true);
        record.cost_usd += ended.cost_usd;
        record.input_tokens = record.input_tokens.saturating_add(ended.usage.all_input());
        record.output_tokens = record.output_tokens.saturating_add(ended.usage.output_tokens);
        if let Some(id) = ended.cli_session_id.filter(|id| *id != record.cli_session_id) {
            // A command in the text began another conversation: that is the one to resume.
            record.cli_session_id = id;
            (record.checkpoint, record.unanswered) = (None, None);
            save_at_once = true;
        }
        advance((&mut record.checkpoint, &mut record.unanswered), ended.checkpoint, ended.answered);
        match (save_at_once, is_first) {
            (true, _) => self.save_now(),
            (false, true) => self.save_start(),
            (false, false) => self.save_counters(),
        }
        quota::look_soon(&self.sessions, &self.entry);
        self.feed(Input::TurnEnded {
            generation,
            turn: ended.turn,
            answered: ended.answered,
            exhausted: ended.exhausted,
        });
    }

    /// Counts what the broker has seen of a turn that had no end.
    fn count_unreported(&mut self) {
        let env = &self.sessions.env;
        let cost_usd = env.spend.child_ended(self.entry.key.user(), &self.entry.hash);
        if cost_usd > 0.0 {
            let record = &mut self.record;
            record.cost_usd += cost_usd;
            self.entry.status.spent(cost_usd);
            let model = record.chosen_model.as_deref().or(record.settings.model.as_deref());
            env.telemetry.metrics.count_usage(ModelClass::of(model), &Usage::default(), cost_usd);
        }
    }

    fn child_ended(&mut self, generation: Generation, ended: Conclusion) {
        self.entry.status.child_ended();
        self.count_unreported();
        let link = self.child.take();
        if ended.was_ready
            && let Some(link) = link
        {
            self.sessions.env.telemetry.metrics.session_lifetime.record(link.since.elapsed());
        }
        if let Some(attached) = self.attached.take() {
            attached.abort(TurnError::Cancelled);
        }
        let eviction = self.eviction.take();
        if ended.was_requested() {
            if let Some(reason) = eviction {
                self.telemetry().evicted(&self.entry.key, reason);
            }
        } else {
            self.crashed_at.get_or_insert_with(Instant::now);
            self.restart_cause = ended.restart;
        }
        let is_at_rest = ended.was_requested() || self.sessions.is_draining();
        let retry = ended.retry.or(self.undelivered.take()).and_then(|job| self.requeue(job));
        if self.reported_in.take().is_some() && retry.is_none() {
            // The turn that reported the loss is lost with the child.
            self.record.unreported_context_loss = None;
        }
        self.switch_waiting();
        if is_at_rest {
            self.save_now();
        } else {
            // With the start that follows.
            self.save_start();
        }
        self.feed(Input::Exited { generation, kind: ended.kind, retry });
        if matches!(self.machine.public_state(), SessionState::Dormant | SessionState::Failed) {
            // Nothing is being recovered.
            self.crashed_at = None;
        }
    }
}
