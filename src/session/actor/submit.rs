//! Turns on their way from the mailbox to the child.

use super::SessionActorState;
use crate::child::Job;
use crate::error::TurnError;
use crate::model::ids::{Generation, TurnId};
use crate::session::state::{Input, QueuedTurn, SettingsHash};
use crate::session::{message::TurnSubmission, store::SettingsRecord};
use crate::telemetry::metrics::ContextLost;
use crate::turn::{Earlier, FirstLine, TurnSender, wake};

impl SessionActorState {
    pub(super) fn submit(&mut self, mut submission: Box<TurnSubmission>) {
        if is_abandoned(&submission.job) {
            return submission.job.abort(TurnError::Cancelled);
        }
        if let Some(attachment) = &submission.attachment
            && !attachment.means(&self.record.cli_session_id, super::has_context(&self.record))
        {
            return submission.job.abort(TurnError::NoConversation);
        }
        if submission.follows.is_some() && submission.follows != self.last_turn {
            return submission.job.abort(TurnError::Overtaken);
        }
        let turn = submission.job.turn;
        if self.record.title.is_none() {
            // On disk with the next start, or with the turn.
            self.record.title = submission.title.take();
        }
        self.last_turn = Some(turn);
        submission.settings.own_credentials = self.record.own_credentials;
        let settings_hash = match &submission.attachment {
            // It needs a child that has had no handshake, and leaves none that another turn could use.
            Some(_) => Some(fastrand::u64(..)),
            None => self.settings_hash_for(&submission.settings),
        };
        let brings_history = brings_history(&submission.job);
        self.touch();
        self.waiting.insert(turn, submission);
        self.feed(Input::Submit(QueuedTurn { turn, settings_hash, brings_history }));
    }

    /// Hash of the settings that a child needs for a turn that requests `wanted`; `None`: any child will do.
    fn settings_hash_for(&mut self, wanted: &SettingsRecord) -> Option<SettingsHash> {
        // A turn before it that still waits may change them first.
        let before = self.machine.last_wanted();
        let before = before.and_then(|settings_hash| self.settings_by_hash.get(&settings_hash));
        let before = before.unwrap_or(&self.record.settings);
        if *wanted == SettingsRecord::default() && !before.belong_to_a_turn() {
            return None;
        }
        let model_without = self.record.model_without(&self.sessions.env.config.cli);
        let settings = before.with(wanted, model_without);
        // Callers repeat theirs with each turn, and a system prompt is long: most are known.
        let known = self.settings_by_hash.iter().find(|(_, known)| **known == settings);
        if let Some((settings_hash, _)) = known {
            return Some(*settings_hash);
        }
        let settings_hash = settings.hash();
        self.settings_by_hash.insert(settings_hash, settings);
        Some(settings_hash)
    }

    /// Gives a turn to the child.
    pub(super) fn deliver(&mut self, generation: Generation, turn: TurnId) {
        let Some(submission) = self.waiting.remove(&turn) else { return };
        if submission.attachment.is_some() {
            // The child has the client already.
            self.attached = Some(submission.job);
            return;
        }
        let mut job = submission.job;
        let loss = self.record.unreported_context_loss;
        match self.first_line(&job) {
            Ok(Some(line)) => job.line = line,
            Ok(None) => {}
            Err(error) => {
                job.abort(error);
                let over = Input::TurnEnded { generation, turn, answered: false, exhausted: false };
                return self.feed(over);
            }
        }
        if let (Some(loss), Some(sender)) = (loss, &job.sender) {
            // First in the turn's stream; a turn that is given to a second child has it already.
            if !job.context_lost {
                wake(sender.put(context_lost_notice(loss, &self.record.cli_session_id)));
            }
            job.context_lost = true;
            self.reported_in = Some(turn);
        }
        let Some(connection) = self.connection(generation) else {
            return job.abort(TurnError::Internal("the child is gone"));
        };
        job.trace.given_to(generation);
        // If the child has just ended, the next one gets the turn.
        self.undelivered = connection.take_turn(job).err();
    }

    /// The line of a turn that begins the conversation; `None`: its own.
    fn first_line(&mut self, job: &Job) -> FirstLine {
        // Of another turn: it was cancelled.
        if let Some(first) = self.first.take().filter(|first| first.turn == job.turn) {
            return first.line;
        }
        match &job.earlier {
            Some(Earlier::Unanswered(line)) if !super::has_context(&self.record) => line.clone(),
            _ => Ok(None),
        }
    }

    /// Puts a turn that a child has not answered back into the queue, unless its reader is gone.
    pub(super) fn requeue(&mut self, job: Box<Job>) -> Option<QueuedTurn> {
        if is_abandoned(&job) {
            job.abort(TurnError::Cancelled);
            return None;
        }
        let (turn, brings_history) = (job.turn, brings_history(&job));
        self.waiting.insert(
            turn,
            Box::new(TurnSubmission {
                job,
                settings: SettingsRecord::default(),
                attachment: None,
                follows: None,
                title: None,
            }),
        );
        Some(QueuedTurn { turn, settings_hash: None, brings_history })
    }
}

/// Whether a child without context has to be started for this turn.
fn brings_history(job: &Job) -> bool {
    job.earlier.as_ref().is_some_and(|earlier| earlier.conversation().is_some())
}

/// Whether the turn's reader is gone.
fn is_abandoned(job: &Job) -> bool {
    job.sender.as_ref().is_none_or(TurnSender::is_closed)
}

fn context_lost_notice(loss: ContextLost, cli_session_id: &str) -> bytes::Bytes {
    let notice = serde_json::json!({
        "type": "pilotlight",
        "subtype": "context_lost",
        "lost": loss.as_str(),
        "session_id": cli_session_id,
    });
    format!("{notice}\n").into()
}
