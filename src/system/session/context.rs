//! The conversation of a session as a whole.

use super::{ACTOR_ANSWERS_WITHIN, Session, blocking};
use crate::adapter;
use crate::error::TurnError;
use crate::model::MessagePage;
use crate::session::spoken::{Known, transcript};
use crate::session::{SessionMessage, take_up};

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

    /// The session's conversation; `None` if there is no such session.
    async fn known_conversation(&self) -> Result<Option<Known>, TurnError> {
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
