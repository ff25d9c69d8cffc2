//! The way of a turn from the handle into the mailbox of its session.

use std::sync::Arc;

use ractor::MessagingErr;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::encode::{self, EncodedTurn};
use super::{LOOKUPS, Session};
use crate::child::Job;
use crate::error::TurnError;
use crate::model::Prompt;
use crate::session::SessionMessage;
use crate::session::message::TurnSubmission;
use crate::session::registry::{Entry, NotAdmitted};
use crate::session::status::Visible;
use crate::telemetry::metrics::{AdmissionRejected, FirstOutput};
use crate::turn::{Hold, Outcome, Turn, TurnOptions, TurnTrace, turn_channel};

impl Session {
    /// As [`Session::send_with`]. `hold` is kept as long as what the caller sent.
    pub(crate) async fn send_held(
        &self,
        prompt: Prompt,
        options: TurnOptions,
        hold: Option<Hold>,
    ) -> Result<Turn, TurnError> {
        let accepted = Instant::now();
        let result = self.submit(prompt, options, hold, accepted).await;
        if let Err(error) = &result {
            let telemetry = &self.env().telemetry;
            if matches!(error, TurnError::QueueFull { .. } | TurnError::TooManySessions { .. }) {
                telemetry.metrics.admission_rejected.increment(AdmissionRejected::PerUser);
            }
            telemetry.turn_refused(self.key.as_ref().ok(), error, accepted.elapsed());
        }
        result
    }

    async fn submit(
        &self,
        prompt: Prompt,
        options: TurnOptions,
        hold: Option<Hold>,
        accepted: Instant,
    ) -> Result<Turn, TurnError> {
        let key = self.key()?;
        let mut encoded = encode::encode(self.env(), prompt, options, hold).await?;
        for _ in 0..LOOKUPS {
            if self.sessions().is_draining() {
                self.env().telemetry.metrics.admission_rejected.increment(AdmissionRejected::Draining);
                return Err(TurnError::Draining);
            }
            match self.sessions().registry.admit(key) {
                Ok((entry, permit)) => match self.post(&entry, permit, encoded, accepted)? {
                    Ok(turn) => return Ok(turn),
                    Err(unsent) => encoded = unsent,
                },
                Err(NotAdmitted::Full { limit }) => return Err(TurnError::QueueFull { limit }),
                Err(NotAdmitted::Absent) => self.bring_into_memory(key).await?,
            }
        }
        Err(TurnError::Internal("the session's actor keeps failing"))
    }

    /// Sends the turn to the session's actor; returns it if the actor has ended.
    fn post(
        &self,
        entry: &Arc<Entry>,
        permit: OwnedSemaphorePermit,
        encoded: EncodedTurn,
        accepted: Instant,
    ) -> Result<Result<Turn, EncodedTurn>, TurnError> {
        let sessions = self.sessions();
        let is_warm = entry.status.read(Visible::is_warm);
        if !is_warm {
            sessions.admission.check_memory()?;
        }
        let id = sessions.next_turn();
        let limits = &sessions.env.config.session;
        let (telemetry, running) = (sessions.env.telemetry.clone(), sessions.open_turns.token());
        let key = entry.key.clone();
        let trace = TurnTrace::begin(&entry.hash, id, is_warm, accepted);
        let traced = trace.clone();
        let on_end = Box::new(move |outcome: &Outcome| {
            traced.ended(outcome);
            let status = &outcome.status;
            telemetry.turn_ended(&key, status.into(), status.error(), accepted.elapsed());
            drop((permit, running));
        });
        let actor = entry.actor.clone();
        let cancel = Box::new(move || drop(actor.cast(SessionMessage::Cancel(id))));
        let channel = turn_channel(
            id,
            sessions.env.adapter,
            limits.event_buffer,
            limits.event_buffer_bytes,
            cancel,
            on_end,
        );
        let (sender, turn) = channel;
        let kept = encoded.clone();
        let job = Box::new(Job {
            turn: id,
            sender: Some(sender),
            line: encoded.line,
            earlier: encoded.earlier,
            hold: encoded.hold,
            accepted,
            start: if is_warm { FirstOutput::Warm } else { FirstOutput::Cold },
            retries: 0,
            context_lost: false,
            trace,
        });
        let submission = Box::new(TurnSubmission { job, settings: encoded.settings });
        Ok(match entry.actor.cast(SessionMessage::Submit(submission)) {
            Ok(()) => Ok(turn),
            Err(refused) => {
                // This turn goes to the next actor as a new one: here it has had no end.
                if let MessagingErr::SendErr(SessionMessage::Submit(mut unsent)) = refused
                    && let Some(sender) = unsent.job.sender.take()
                {
                    sender.disown();
                }
                drop(sessions.registry.forget_actor(entry.actor.get_id()));
                Err(kept)
            }
        })
    }
}
