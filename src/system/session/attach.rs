//! The way of a client that speaks to a child itself into the mailbox of its session.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{LOOKUPS, Session};
use crate::adapter::RawFlags;
use crate::child::Job;
use crate::error::TurnError;
use crate::session::attach::Attachment;
use crate::session::{SessionMessage, message::TurnSubmission};
use crate::session::{shelf::SpareKind, store::SettingsRecord};
use crate::telemetry::metrics::FirstOutput;
use crate::turn::{Turn, TurnOptions, TurnTrace, turn_channel};

/// Reads and bytes that may wait for the reader: there are none.
const NO_LINES: (usize, usize) = (1, 1);

impl Session {
    /// Gives the session a client that speaks to a child itself. The turn ends with the child, and has no lines.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub(crate) async fn attach(
        &self,
        options: TurnOptions,
        attachment: Arc<Attachment>,
    ) -> Result<Turn, TurnError> {
        let key = self.key()?;
        let of_caller = options.restrictions.as_ref().and_then(|restrictions| restrictions.usd_per_day);
        let allowed = self.env().spend.check(key.user(), of_caller).await;
        if let Err(spent) = allowed.map_err(|error| TurnError::Storage(error.into()))? {
            return Err(TurnError::SpendLimit { limit_usd: spent.limit_usd, retry_after: spent.resets_in });
        }
        let settings = SettingsRecord {
            model: options.model,
            fallback_model: options.fallback_model,
            restrictions: options.restrictions.unwrap_or_default(),
            ..SettingsRecord::default()
        };
        #[cfg(feature = "cluster")]
        let stay = self.sessions().stay(key.user()).await?;
        #[cfg(not(feature = "cluster"))]
        let stay = super::submit::Alone;
        for _ in 0..LOOKUPS {
            if self.sessions().is_draining() {
                return Err(TurnError::Draining);
            }
            let Some((entry, permit)) = self.sessions().registry.admit(key)? else {
                let wish = SpareKind::wanted(&self.env().config.cli, &settings, false);
                let fits =
                    attachment.flags == RawFlags { partial: attachment.flags.partial, ..RawFlags::default() };
                self.bring_into_memory(key, wish.filter(|_| fits)).await?;
                continue;
            };
            let sessions = self.sessions();
            // Whatever child there is, this needs another one.
            sessions.admission.check_memory()?;
            let (id, running) = (sessions.next_turn(), sessions.open_turns.token());
            let actor = entry.actor.clone();
            let cancel = Arc::new(move || drop(actor.cast(SessionMessage::Cancel(id))));
            let stay = stay.clone();
            let on_end = Box::new(move |_: &_| drop((permit, running, stay)));
            let (sender, turn) = turn_channel(id, NO_LINES.0, NO_LINES.1, cancel, on_end);
            let accepted = Instant::now();
            let job = Box::new(Job {
                turn: id,
                sender: Some(sender),
                line: Bytes::new(),
                earlier: None,
                hold: None,
                accepted,
                start: FirstOutput::Cold,
                retries: 0,
                context_lost: false,
                trace: TurnTrace::begin(&entry.hash, id, false, accepted),
                results: Arc::default(),
            });
            let submission = TurnSubmission {
                job,
                settings: settings.clone(),
                attachment: Some(attachment.clone()),
                follows: None,
                title: None,
            };
            if entry.actor.cast(SessionMessage::Submit(Box::new(submission))).is_ok() {
                return Ok(turn);
            }
            drop(sessions.registry.forget_actor(entry.actor.get_id()));
        }
        Err(TurnError::Internal("the session's actor keeps failing"))
    }
}
