//! The handle of one session.

#[cfg(feature = "server")]
mod attach;
mod context;
mod servers;
mod steer;
mod submit;

pub use context::Compacted;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{System, shutdown::longest_stop};
use crate::child::Answer;
#[cfg(feature = "server")]
use crate::child::{Process, single_tree};
use crate::error::TurnError;
use crate::model::ids::{InvalidName, SessionHash, SessionKey, UserId};
use crate::model::{Decision, Dirs, OauthCredentials, PendingPermission, PermissionError, Prompt};
#[cfg(feature = "server")]
use crate::session::past::Past;
use crate::session::{
    SessionMessage, SessionStatus, actor_refs::SupervisorMessage, env::Env, known, registry::Entry,
    sessions::Sessions, shelf::SpareKind, store::SettingsRecord, take_up,
};
use crate::support::blocking::Thread;
#[cfg(feature = "server")]
use crate::support::blocking::blocking_long;
use crate::support::keyed_gates::Inside;
use crate::support::keyed_locks::Held;
use crate::turn::{Turn, TurnOptions};
#[cfg(feature = "server")]
use crate::workspace::UsageLimits;
#[cfg(feature = "server")]
use crate::workspace::beneath::ChildDir;
use crate::workspace::{Deleted, Workspace};

/// How often a call looks for the session again when its actor ended in between. One look finds the ended actor, the next
/// starts another: more than two such pairs are needed only if actors keep failing.
const LOOKUPS: usize = 8;

/// How often credentials are written while starts of a child clear their directory; a start clears it once.
const CREDENTIALS_ATTEMPTS: usize = 3;

/// An actor answers at once unless something is badly wrong.
const ACTOR_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// One conversation of one user. Cheap to clone; holds no child and keeps none alive.
#[derive(Clone, Debug)]
pub struct Session {
    system: Arc<System>,
    key: Result<SessionKey, InvalidName>,
}

impl Session {
    pub(crate) fn new(system: Arc<System>, key: Result<SessionKey, InvalidName>) -> Self {
        Self { system, key }
    }

    /// Gives the session a turn. Starts, restarts or resumes the child as needed. Returns as soon as the turn is
    /// accepted; it may wait in the session's queue.
    ///
    /// # Errors
    /// [`TurnError`]s of which [`TurnError::reached_child`] is false: the child has seen nothing. Everything later
    /// comes out of the [`Turn`].
    pub async fn send(&self, prompt: impl Into<Prompt>) -> Result<Turn, TurnError> {
        self.send_held(prompt.into(), TurnOptions::default(), None).await
    }

    /// As [`Session::send`], with options.
    ///
    /// # Errors
    /// As [`Session::send`].
    pub async fn send_with(
        &self,
        prompt: impl Into<Prompt>,
        options: TurnOptions,
    ) -> Result<Turn, TurnError> {
        self.send_held(prompt.into(), options, None).await
    }

    /// Starts the child ahead of the first message, without spending tokens; returns when it is ready.
    ///
    /// # Errors
    /// [`TurnError`] if it cannot be started.
    pub async fn warm(&self) -> Result<SessionStatus, TurnError> {
        let limits = self.env().current();
        // A child that is on its way out, one that waits for admission, and its start.
        let stop = limits.session.stop_interrupt + limits.session.stop_eof + limits.session.stop_term;
        let patience =
            stop + limits.limits.queue_deadline + limits.session.spawn_timeout + ACTOR_ANSWERS_WITHIN;
        self.ask(SessionMessage::Warm, true, patience).await?.unwrap_or(Ok(()))?;
        self.status().ok_or(TurnError::Internal("the session left memory while it was warmed"))
    }

    /// Interrupts the running turn; the child stays warm. Returns whether a turn ran.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached.
    pub async fn interrupt(&self) -> Result<bool, TurnError> {
        Ok(self.ask(SessionMessage::Interrupt, false, ACTOR_ANSWERS_WITHIN).await?.unwrap_or(false))
    }

    /// Stops the child and keeps the conversation. A running turn is interrupted. Returns when nothing of the child
    /// is left.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached.
    pub async fn evict(&self) -> Result<(), TurnError> {
        self.ask(SessionMessage::Evict, false, longest_stop(&self.env().config)).await?;
        Ok(())
    }

    /// Evicts, then deletes conversation and workspace. Turns that wait, or arrive meanwhile, are refused with
    /// [`TurnError::SessionDeleted`], or begin a new session.
    ///
    /// # Errors
    /// [`TurnError`] if the session cannot be reached or its files cannot be deleted.
    pub async fn purge(&self) -> Result<(), TurnError> {
        self.purge_and_refuse(TurnError::SessionDeleted).await
    }

    /// As [`Session::purge`], with the error that turns are refused with.
    pub(super) async fn purge_and_refuse(&self, refusal: TurnError) -> Result<(), TurnError> {
        let session = self.clone();
        self.to_the_end(async move { session.purge_now(&refusal).await }).await
    }

    async fn purge_now(&self, refusal: &TurnError) -> Result<(), TurnError> {
        let (key, sessions) = (self.key()?, self.sessions());
        let longest = longest_stop(&sessions.env.config);
        // A deletion of the user waits until the files are removed. Its own purges come in through a closed gate.
        let _inside = self.enter().ok();
        // Who brings the session into memory has done so, or finds nothing of it afterwards.
        let arrival = timeout(longest, sessions.arrivals.acquire(&key.hash())).await;
        let arrival = arrival.map_err(|_| TurnError::Internal("other requests of the session do not end"))?;
        // Refuses turns from here on; one that comes before ends with the stop of the session.
        let shut_down = |reply| SessionMessage::ShutDown { refusal: refusal.clone(), reply };
        let stopped = self.ask(shut_down, false, longest).await;
        let entry = sessions.registry.get(key);
        // Held to the end: no child of the next session starts before the files of this one are removed.
        let slot = timeout(longest, sessions.slots.acquire(&key.hash())).await;
        let begun = match &slot {
            Ok(_) => self.begin_purge(key, entry.as_deref()).await,
            Err(_) => Err(TurnError::Internal("the session's child does not end")),
        };
        // In any case: an actor that refuses everything is of no use to its user.
        if let Some(entry) = entry {
            drop(sessions.registry.forget_actor(entry.actor.get_id()));
            entry.actor.stop(None);
        }
        let (deleted, listed) = begun?;
        // A record that is still in its place would bring back the session. Otherwise nobody waits for the removal of files,
        // of which a child can leave any number.
        let _arrival = if deleted.as_ref().is_some_and(|it| !it.is_hidden) {
            Some(arrival)
        } else {
            drop(arrival);
            None
        };
        let removed = blocking(move || deleted.map_or(Ok(()), Deleted::remove).and(listed)).await;
        stopped.and(removed)
    }

    /// Takes the session away; its files are removed afterwards. Also whether it is in no list any more.
    async fn begin_purge(
        &self,
        key: &SessionKey,
        entry: Option<&Entry>,
    ) -> Result<(Option<Deleted>, io::Result<()>), TurnError> {
        if let Some(entry) = entry {
            entry.writer.close().await;
        }
        let workspace = entry.map(|entry| entry.workspace.clone());
        let (sessions, key, hash) = (self.sessions().clone(), key.clone(), key.hash());
        // A request that was given up may still begin the session: before or after all of this.
        let take = move || {
            let found = || take_up::workspace(&sessions, &key);
            let workspace = workspace.map_or_else(found, |it| Ok(Some(it)))?;
            let deleted = workspace.map(|it| it.begin_deletion()).transpose()?;
            // As long as the session is there it is listed, whatever fails: else nobody would find it.
            Ok((deleted, known::forget(&sessions.env.config.data_dir, &key)))
        };
        let sessions = self.sessions().clone();
        blocking(move || sessions.records.with(&hash, take)).await
    }

    /// What the session does now; `None` if it is not in memory.
    #[must_use]
    pub fn status(&self) -> Option<SessionStatus> {
        self.entry().map(|entry| entry.status.status())
    }

    /// What the session does now, or was at when it left memory; `None` if there is no such session.
    ///
    /// # Errors
    /// [`TurnError`] if the name cannot be used or the session's record cannot be read.
    pub async fn known(&self) -> Result<Option<SessionStatus>, TurnError> {
        if let Some(status) = self.status() {
            return Ok(Some(status));
        }
        let (sessions, key) = (self.sessions().clone(), self.key()?.clone());
        let record = blocking(move || take_up::known(&sessions, &key)).await?;
        Ok(record.as_ref().map(SessionStatus::on_disk))
    }

    /// The last turns and children, as far as they are in memory.
    #[cfg(feature = "server")]
    pub(crate) fn past(&self) -> Past {
        self.entry().map(|entry| entry.status.read(|visible| visible.past.clone())).unwrap_or_default()
    }

    /// Watches the lines of its turns from now on; `None` if the session is not in memory.
    #[cfg(feature = "server")]
    pub(crate) fn watch(&self) -> Option<tokio::sync::broadcast::Receiver<bytes::Bytes>> {
        self.entry().map(|entry| entry.live.watch())
    }

    /// The processes of the child, the largest first and at most `most`, and how many there are. Blocking.
    #[cfg(feature = "server")]
    pub(crate) fn processes(&self, most: usize) -> (Vec<Process>, usize) {
        let shim = self.entry().and_then(|entry| entry.status.read(|visible| visible.shim));
        let tree = shim.and_then(|shim| single_tree(shim).ok());
        tree.map(|tree| tree.processes(most)).unwrap_or_default()
    }

    /// Tools that wait for permission (policy `ask`).
    #[must_use]
    pub fn permissions(&self) -> Vec<PendingPermission> {
        self.entry().map(|entry| entry.status.read(|visible| visible.permissions.clone())).unwrap_or_default()
    }

    /// Answers a tool that waits for permission.
    ///
    /// # Errors
    /// [`PermissionError`] if nothing waits under this id (any more).
    pub async fn answer_permission(
        &self,
        request_id: &str,
        decision: Decision,
    ) -> Result<(), PermissionError> {
        let entry = self.entry().ok_or(PermissionError::Unknown)?;
        let (reply, answered) = oneshot::channel();
        let answer = Answer { request_id: request_id.to_owned(), decision, reply };
        drop(entry.actor.cast(SessionMessage::Answer(answer)));
        match timeout(ACTOR_ANSWERS_WITHIN, answered).await {
            Ok(Ok(result)) => result,
            // The child ended meanwhile.
            _ => Err(PermissionError::Late),
        }
    }

    /// Writes the user's credentials where the CLI or the broker reads them (mode 0600), unless those there are newer. From the next
    /// turn on the session uses them and no credential of the operator's, until it is purged: a child that was started
    /// with one is restarted first.
    ///
    /// # Errors
    /// [`TurnError::Storage`], [`TurnError::TooManySessions`].
    pub async fn write_credentials(&self, credentials: &OauthCredentials) -> Result<(), TurnError> {
        let inside = self.enter()?;
        let hash = self.key()?.hash();
        // Until they are written: else a purge in between would leave them to nobody.
        let arrival = self.arrive(&hash).await?;
        let (session, credentials) = (self.clone(), credentials.clone());
        self.to_the_end(async move {
            let _held = (inside, arrival);
            let (workspace, sessions) = (session.files_at(&hash).await?, session.sessions().clone());
            // Compared and written by one request after the other, or the older token could win.
            let _one_at_a_time = sessions.credentials.acquire(&hash).await;
            blocking(move || {
                let (cli, place) = (&sessions.env.config.cli, sessions.env.credentials_place());
                let write = || workspace.write_credentials(cli, place, &credentials).map(drop);
                repeated(write, || workspace.create())
            })
            .await
        })
        .await?;
        self.ask(SessionMessage::OwnCredentials, true, ACTOR_ANSWERS_WITHIN).await?;
        Ok(())
    }

    /// The session's directories, created if they are not there yet.
    ///
    /// # Errors
    /// [`TurnError::Storage`], [`TurnError::TooManySessions`].
    pub async fn workspace(&self) -> Result<Dirs, TurnError> {
        Ok(self.files().await?.dirs().clone())
    }

    /// Checks that another file of this size stays within the limits of the session's files.
    ///
    /// # Errors
    /// [`TurnError::WorkspaceLimit`], [`TurnError::Storage`], [`TurnError::TooManySessions`].
    #[cfg(feature = "server")]
    pub(crate) async fn check_room_for(&self, bytes: u64) -> Result<(), TurnError> {
        let workspace = self.files().await?;
        let limits = UsageLimits::of_uploads(&self.env().config.limits).before_another(bytes);
        let counted = blocking_long(move || workspace.excess(limits)).await;
        match counted.map_err(|error| TurnError::Storage(error.into()))? {
            None => Ok(()),
            Some(excess) => {
                Err(TurnError::WorkspaceLimit { limit: excess.limit, what: excess.what, in_turn: false })
            }
        }
    }

    /// The session's working directory, to look into it.
    #[cfg(feature = "server")]
    pub(crate) async fn work(&self) -> Result<ChildDir, TurnError> {
        Ok(self.files().await?.work())
    }

    fn sessions(&self) -> &Arc<Sessions> {
        &self.system.sessions
    }

    fn env(&self) -> &Arc<Env> {
        &self.system.sessions.env
    }

    fn key(&self) -> Result<&SessionKey, TurnError> {
        self.key.as_ref().map_err(|error| TurnError::from(*error))
    }

    fn entry(&self) -> Option<Arc<Entry>> {
        self.sessions().registry.get(self.key.as_ref().ok()?)
    }

    /// The session's directories, created if they are not there yet; a session that does not exist begins.
    async fn files(&self) -> Result<Workspace, TurnError> {
        let inside = self.enter()?;
        let hash = self.key()?.hash();
        let arrival = self.arrive(&hash).await?;
        let session = self.clone();
        self.to_the_end(async move {
            let _held = (inside, arrival);
            session.files_at(&hash).await
        })
        .await
    }

    /// As [`Session::files`]. The caller is inside the user's gate and holds the session's place in `arrivals`, up to the end:
    /// no deletion comes in between, whose session nobody would find again.
    async fn files_at(&self, hash: &SessionHash) -> Result<Workspace, TurnError> {
        let create = |workspace: Workspace| workspace.create().map(|()| workspace);
        if let Some(entry) = self.entry() {
            return blocking(move || create(entry.workspace.clone())).await;
        }
        // Not for a turn: no child is wanted.
        let beginning = self.beginning().await?;
        let (record, _) = self.known_or_begun(beginning, None).await?;
        let (data_dir, hash) = (self.env().config.data_dir.clone(), hash.clone());
        blocking(move || create(record.workspace(&data_dir, &hash))).await
    }

    /// Asks the session's actor; `None` if the session is not in memory and `start` is false.
    async fn ask<T>(
        &self,
        question: impl Fn(oneshot::Sender<T>) -> SessionMessage,
        start: bool,
        patience: Duration,
    ) -> Result<Option<T>, TurnError> {
        let key = self.key()?;
        for _ in 0..LOOKUPS {
            if start && self.sessions().is_draining() {
                return Err(TurnError::Draining);
            }
            let Some(entry) = self.sessions().registry.get(key) else {
                if !start {
                    return Ok(None);
                }
                let (cli, settings) = (&self.env().config.cli, SettingsRecord::default());
                self.bring_into_memory(key, SpareKind::wanted(cli, &settings, false)).await?;
                continue;
            };
            let (reply, answer) = oneshot::channel();
            if entry.actor.cast(question(reply)).is_err() {
                drop(self.sessions().registry.forget_actor(entry.actor.get_id()));
                continue;
            }
            match timeout(patience, answer).await {
                Ok(Ok(answer)) => return Ok(Some(answer)),
                // The actor ended with the question in its mailbox.
                Ok(Err(_)) => {}
                Err(_) => return Err(TurnError::Internal("the session did not answer in time")),
            }
        }
        Err(TurnError::Internal("the session's actor keeps failing"))
    }

    /// Does work with what it holds up to its end: a caller that goes away in the middle leaves no half of a session, and no
    /// thread that makes one while it is deleted.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, TurnError>> + Send + 'static,
    ) -> Result<T, TurnError> {
        let (done, result) = oneshot::channel();
        self.env().tasks.spawn(async move { drop(done.send(work.await)) });
        result.await.unwrap_or(Err(TurnError::Internal("a task of a session failed")))
    }

    /// Keeps the session from being deleted meanwhile.
    async fn arrive(&self, hash: &SessionHash) -> Result<Held<SessionHash>, TurnError> {
        let arrival = timeout(ACTOR_ANSWERS_WITHIN, self.sessions().arrivals.acquire(hash)).await;
        arrival.map_err(|_| TurnError::Internal("other requests that start the session do not end"))
    }

    /// The user's place to begin a session: one at a time.
    async fn begins_alone(&self) -> Result<Held<UserId>, TurnError> {
        let alone = self.sessions().beginnings.acquire(self.key()?.user());
        let alone = timeout(ACTOR_ANSWERS_WITHIN, alone).await;
        alone.map_err(|_| TurnError::Internal("other sessions of the user do not begin"))
    }

    /// Waits for what a beginning needs. A caller that goes away meanwhile begins nothing.
    async fn beginning(&self) -> Result<Beginning, TurnError> {
        // Before the thread: those of one user would wait for each other there.
        let alone = self.begins_alone().await?;
        // Many users may come at once.
        let thread = Thread::wait().await.map_err(|error| TurnError::Storage(error.into()))?;
        Ok(Beginning { alone, thread })
    }

    async fn known_or_begun(
        &self,
        beginning: Beginning,
        wish: Option<SpareKind>,
    ) -> Result<take_up::Begun, TurnError> {
        let (sessions, owner) = (self.sessions().clone(), self.key()?.clone());
        let limit = sessions.env.current().limits.sessions_per_user;
        let Beginning { alone, thread } = beginning;
        let begin = move || {
            let _alone = alone;
            take_up::known_or_begun(&sessions, &owner, wish.as_ref())
        };
        let record = thread.run(begin).await.map_err(|error| TurnError::Storage(error.into()))?;
        record.ok_or(TurnError::TooManySessions { limit })
    }

    /// Keeps the user from being deleted until the result is dropped.
    fn enter(&self) -> Result<Inside<UserId>, TurnError> {
        self.sessions().enter(self.key()?.user())
    }

    /// Reads the session's record, or begins one, and has the supervisor start its actor. `wish`: the child that a new
    /// session will want.
    async fn bring_into_memory(&self, key: &SessionKey, wish: Option<SpareKind>) -> Result<(), TurnError> {
        let arrival = self.arrive(&key.hash()).await?;
        // Another request was faster.
        if self.sessions().registry.get(key).is_some() {
            return Ok(());
        }
        let inside = self.enter()?;
        let beginning = self.beginning().await?;
        let (session, key) = (self.clone(), key.clone());
        self.to_the_end(async move {
            let _arrival = arrival;
            session.start_actor(key, inside, beginning, wish).await
        })
        .await
    }

    async fn start_actor(
        &self,
        key: SessionKey,
        inside: Inside<UserId>,
        beginning: Beginning,
        wish: Option<SpareKind>,
    ) -> Result<(), TurnError> {
        let (record, spare) = self.known_or_begun(beginning, wish).await?;
        let supervisor = timeout(ACTOR_ANSWERS_WITHIN, self.sessions().actor_refs.supervisor()).await;
        let supervisor = supervisor.map_err(|_| TurnError::Internal("the supervisor cannot be reached"))?;
        // Without a supervisor the system has stopped since the check.
        let supervisor = supervisor.ok_or(TurnError::Draining)?;
        let (reply, started) = oneshot::channel();
        let (record, spare) = (Box::new(record), spare.map(Box::new));
        let message = SupervisorMessage::StartSession { key, record, spare, inside, reply };
        let asked = supervisor.get_id();
        drop(supervisor.cast(message));
        match timeout(ACTOR_ANSWERS_WITHIN, started).await {
            Ok(Ok(Err(error))) => Err(error),
            // It has failed. Its successor is asked in the next round, not this one again.
            Ok(Err(_)) => {
                timeout(ACTOR_ANSWERS_WITHIN, self.sessions().actor_refs.replaced(asked)).await.ok();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The right to begin a session: no other one of the user begins meanwhile.
struct Beginning {
    alone: Held<UserId>,
    thread: Thread,
}

/// Runs work on files on a thread for blocking work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, TurnError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(TurnError::Storage(error.into())),
        Err(_) => Err(TurnError::Internal("a task that works on files failed")),
    }
}

/// Writes again while a child that starts clears the CLI's directory, and with it a file that is not renamed yet.
/// `create` restores the directory.
fn repeated(write: impl Fn() -> io::Result<()>, create: impl Fn() -> io::Result<()>) -> io::Result<()> {
    for _ in 1..CREDENTIALS_ATTEMPTS {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create()?,
            written => return written,
        }
    }
    write()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn cleared_write_is_repeated_and_no_other() {
        let attempts = |kind: io::ErrorKind, failures: usize| {
            let (writes, creations) = (Cell::new(0), Cell::new(0));
            let write = || {
                writes.set(writes.get() + 1);
                if writes.get() <= failures { Err(kind.into()) } else { Ok(()) }
            };
            let create = || {
                creations.set(creations.get() + 1);
                Ok(())
            };
            let written = repeated(write, create);
            (written.is_ok(), writes.get(), creations.get())
        };
        assert_eq!(attempts(io::ErrorKind::NotFound, 0), (true, 1, 0));
        assert_eq!(attempts(io::ErrorKind::NotFound, 1), (true, 2, 1));
        assert_eq!(
            attempts(io::ErrorKind::NotFound, 9),
            (false, CREDENTIALS_ATTEMPTS, CREDENTIALS_ATTEMPTS - 1)
        );
        assert_eq!(attempts(io::ErrorKind::StorageFull, 1), (false, 1, 0));
    }
}
