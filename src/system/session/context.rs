//! The conversation of a session as a whole: read, compacted, replaced, continued elsewhere, taken back.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::submit::EncodedTurn;
use super::{ACTOR_ANSWERS_WITHIN, Session, blocking, longest_stop};
use crate::adapter::{self, CompactionNote, Cut};
use crate::error::TurnError;
use crate::model::ids::SessionKey;
use crate::model::{ContextUsage, MessagePage, SessionState};
use crate::session::fork::{Forked, fork};
use crate::session::message::Switch;
use crate::session::spoken::{Known, transcript};
use crate::session::store::new_cli_session_id;
use crate::session::{SessionMessage, take_up};
use crate::turn::{Outcome, Status, TurnOptions};

/// The CLI has the API count tokens, several times; without an answer the last turn tells enough.
const CLI_COUNTS_WITHIN: Duration = Duration::from_secs(5);

/// A compaction that was done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Compacted {
    /// Tokens of the conversation before, as the CLI counts them.
    pub tokens_before: Option<u64>,
    /// Tokens of what it was replaced by.
    pub tokens_after: Option<u64>,
    /// What the compaction has cost, in US dollars. It is in the totals of session and user as well.
    pub cost_usd: f64,
}

impl Session {
    /// What was said in the conversation, oldest first: at most `limit` messages after the one that `after` names. A page
    /// is also bounded to some megabytes. Works while a turn runs, and starts no child. A session that does not exist has
    /// no messages.
    ///
    /// # Errors
    /// [`TurnError::MessageNotFound`] if the conversation does not have the message `after`; [`TurnError::Storage`].
    pub async fn messages(&self, after: Option<&str>, limit: usize) -> Result<MessagePage, TurnError> {
        let Some(known) = self.known_conversation().await? else { return Ok(MessagePage::default()) };
        let (env, after) = (self.env().clone(), after.map(str::to_owned));
        let page = blocking(move || match transcript(&env, &known)? {
            Some(mut transcript) => adapter::messages(&mut transcript, after.as_deref(), limit),
            None => Ok(after.is_none().then(MessagePage::default)),
        });
        page.await?.ok_or(TurnError::MessageNotFound)
    }

    /// What fills the model's context. A child that runs is asked; without one, it is what the last answer's request has used.
    /// `None` if neither is known.
    ///
    /// # Errors
    /// [`TurnError::Storage`].
    pub async fn context(&self) -> Result<Option<ContextUsage>, TurnError> {
        let asked = self.entry().filter(|entry| entry.status.read(|now| now.is_warm() && !now.status.frozen));
        if let Some(entry) = asked {
            let (reply, reported) = oneshot::channel();
            drop(entry.actor.cast(SessionMessage::Context(reply)));
            if let Ok(Ok(usage)) = timeout(CLI_COUNTS_WITHIN, reported).await {
                return Ok(Some(usage));
            }
        }
        let Some(known) = self.known_conversation().await? else { return Ok(None) };
        let env = self.env().clone();
        let used = move || transcript(&env, &known)?.map_or(Ok(None), |mut it| adapter::last_usage(&mut it));
        blocking(used).await
    }

    /// Has the CLI replace the conversation by its summary. A turn of its own: it waits in the session's queue, and its cost
    /// counts. The conversation goes on with the next turn.
    ///
    /// # Errors
    /// [`TurnError::NothingToCompact`], [`TurnError::CompactFailed`], and as [`Session::send`].
    pub async fn compact(&self) -> Result<Compacted, TurnError> {
        self.compact_with(TurnOptions::default()).await
    }

    /// As [`Session::compact`], with the model and the restrictions that a turn of the caller would have.
    pub(crate) async fn compact_with(&self, options: TurnOptions) -> Result<Compacted, TurnError> {
        let has_context = self.known_conversation().await?.is_some_and(|it| it.record.context_turns > 0);
        let is_busy = self.status().is_some_and(|now| now.state == SessionState::Busy || now.queue_depth > 0);
        if !has_context && !is_busy {
            return Err(TurnError::NothingToCompact);
        }
        let encoded = EncodedTurn::plain(adapter::compaction_request()?.into(), options);
        let mut turn = self.send_encoded(encoded).await?;
        let mut last = None;
        while let Some(event) = turn.next().await {
            let note = adapter::compaction_note(event?.as_bytes());
            // A failure is reported twice, and nothing undoes a compaction.
            if !matches!(last, Some(CompactionNote::Done { .. })) {
                last = note.or(last);
            }
        }
        let outcome = turn.outcome().ok_or(TurnError::Internal("the turn ended without an outcome"))?;
        compacted(outcome, last)
    }

    /// Begins a new conversation in the same workspace: files, `HOME`, settings and totals stay. `interrupt`: also while a
    /// turn runs, which is interrupted. Turns that wait go into the new conversation. Returns when it is on disk.
    ///
    /// # Errors
    /// [`TurnError::SessionBusy`] while a turn runs or waits, without `interrupt`.
    pub async fn reset(&self, interrupt: bool) -> Result<(), TurnError> {
        if self.known().await?.is_none() {
            return Ok(());
        }
        let cli_session_id = new_cli_session_id();
        self.switch(Switch { cli_session_id, checkpoint: None, known_gap: None, turns: 0 }, interrupt).await
    }

    /// Takes the conversation back to the message `at`, the last one that stays. Files are not taken back. The next turn
    /// resumes the shortened conversation. `interrupt` as for [`Session::reset`].
    ///
    /// # Errors
    /// [`TurnError::MessageNotFound`], [`TurnError::SessionBusy`], [`TurnError::Storage`].
    pub async fn rewind(&self, at: &str, interrupt: bool) -> Result<(), TurnError> {
        let inside = self.enter()?;
        let known = self.known_conversation().await?.ok_or(TurnError::MessageNotFound)?;
        let (env, at, workspace) = (self.env().clone(), at.to_owned(), known.workspace.clone());
        let written = blocking(move || {
            let _inside = inside;
            let (cli, dirs) = (&env.config.cli, known.workspace.dirs());
            let Some(mut transcript) = transcript(&env, &known)? else { return Ok(None) };
            let id = new_cli_session_id();
            let Some(cut) = adapter::cut(&mut transcript, Some(&at), &id, dirs)? else { return Ok(None) };
            let path = adapter::transcript_path(dirs, cli, &id);
            known.workspace.write_cli_file(cli, &path, &cut.import.transcript)?;
            Ok(Some((id, path, cut)))
        });
        let (cli_session_id, path, Cut { import, turns, known_gap }) =
            written.await?.ok_or(TurnError::MessageNotFound)?;
        let to = Switch { cli_session_id, checkpoint: Some(import.last), known_gap, turns };
        let switched = self.switch(to, interrupt).await;
        if matches!(switched, Err(TurnError::SessionBusy)) {
            let env = self.env().clone();
            blocking(move || workspace.remove_cli_file(&env.config.cli, &path)).await?;
        }
        switched
    }

    /// Begins another session of the same user, `name`, with this conversation up to the message `at`, or with all of it.
    /// Its workspace begins as that of any new session, without the files of this one; settings such as the model are taken
    /// over. Works while a turn runs.
    ///
    /// # Errors
    /// [`TurnError::SessionExists`], [`TurnError::MessageNotFound`], [`TurnError::TooManySessions`],
    /// [`TurnError::InvalidName`], [`TurnError::Storage`].
    pub async fn fork(&self, name: &str, at: Option<&str>) -> Result<Self, TurnError> {
        let key = SessionKey::new(self.key()?.user().clone(), name)?;
        let other = Self::new(self.system.clone(), Ok(key.clone()));
        if self.sessions().is_draining() {
            return Err(TurnError::Draining);
        }
        let inside = self.enter()?;
        let from = self.known_conversation().await?.ok_or(TurnError::MessageNotFound)?;
        let arrival = other.arrive(&key.hash()).await?;
        let sessions = self.sessions().clone();
        let alone = self.begins_alone().await?;
        let limit = sessions.env.current().limits.sessions_per_user;
        let at = at.map(str::to_owned);
        let forked = blocking(move || {
            let _held = (inside, arrival, alone);
            fork(&sessions, &from, &key, at.as_deref())
        });
        match forked.await? {
            Forked::Begun => Ok(other),
            Forked::Exists => Err(TurnError::SessionExists),
            Forked::NoRoom => Err(TurnError::TooManySessions { limit }),
            Forked::NoSuchMessage => Err(TurnError::MessageNotFound),
        }
    }

    async fn switch(&self, to: Switch, interrupt: bool) -> Result<(), TurnError> {
        let Switch { cli_session_id, checkpoint, known_gap, turns } = to;
        let question = |reply| {
            let (cli_session_id, checkpoint) = (cli_session_id.clone(), checkpoint.clone());
            let to = Switch { cli_session_id, checkpoint, known_gap: known_gap.clone(), turns };
            SessionMessage::Switch { to, interrupt, reply }
        };
        let patience: Duration = longest_stop(&self.env().config) + ACTOR_ANSWERS_WITHIN;
        self.ask(question, true, patience).await?.unwrap_or(Ok(()))
    }

    /// The session's conversation; `None` if there is no such session.
    pub(super) async fn known_conversation(&self) -> Result<Option<Known>, TurnError> {
        if let Some(entry) = self.entry()
            && let Some(record) = self.ask(SessionMessage::Record, false, ACTOR_ANSWERS_WITHIN).await?
        {
            let (workspace, journal) = (entry.workspace.clone(), entry.open_journal());
            return Ok(Some(Known { record, workspace, journal }));
        }
        let (sessions, key) = (self.sessions().clone(), self.key()?.clone());
        let data_dir = self.env().config.data_dir.clone();
        let record = blocking(move || take_up::known(&sessions, &key)).await?;
        let hash = self.key()?.hash();
        Ok(record.map(|record| {
            let workspace = record.workspace(&data_dir, &hash);
            Known { record: Box::new(record), workspace, journal: None }
        }))
    }
}

/// What became of a compaction, from the end of its turn and the last note about it.
fn compacted(outcome: &Outcome, last: Option<CompactionNote>) -> Result<Compacted, TurnError> {
    match (&outcome.status, last) {
        (Status::Aborted(error), _) => Err(error.clone()),
        (Status::Failed(failure), _) if failure.interrupted => Err(TurnError::Cancelled),
        (Status::Failed(failure), _) => Err(TurnError::CompactFailed { reason: failure.message.clone() }),
        (Status::Completed, Some(CompactionNote::Done { tokens_before, tokens_after })) => {
            Ok(Compacted { tokens_before, tokens_after, cost_usd: outcome.cost_usd })
        }
        (Status::Completed, Some(CompactionNote::NothingToDo)) => Err(TurnError::NothingToCompact),
        (Status::Completed, Some(CompactionNote::Failed(reason))) => Err(TurnError::CompactFailed { reason }),
        (Status::Completed, None) => {
            Err(TurnError::CompactFailed { reason: "nothing about a compaction".to_owned() })
        }
    }
}
