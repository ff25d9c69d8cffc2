//! How a conversation is taken up by a new child: begun, resumed, or given up for lost.
//!
//! The transcript on disk decides: there → resume; not there → begin under the same id. Only what the transcript holds
//! is remembered, so it is also searched for the last message of the record ([`adapter::checkpoint`]).
//!
//! [`adapter::checkpoint`]: crate::adapter::checkpoint

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::child_events::{LifecycleEvent, Mailbox};
use super::import::{First, Imported, Offered, first_line};
use super::journaling::{self, Begin};
use super::known;
use super::lifecycle::Plan;
use super::missing::{self, Missing};
use super::recovery::{self, Lost};
use super::store::{Record, new_cli_session_id};
use crate::adapter::{self, Import, LaunchMode, LaunchRefusal, LaunchSettings};
use crate::child::Secrets;
use crate::config::{CliConfig, JournalMode};
use crate::journal::Journal;
use crate::session::env::Env;
use crate::support::blocking::{blocking, blocking_long};
use crate::support::secret_file::FileId;
use crate::telemetry::metrics::ContextLost;
#[cfg(feature = "broker")]
use crate::turn::Restrictions;
use crate::workspace::beneath::ReadError;
use crate::workspace::user_env::Variables;
use crate::workspace::{Owner, RemovalLimit, Workspace};

#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) cli_session_id: String,
    /// The session does not know it yet.
    is_new_id: bool,
    pub(super) mode: LaunchMode,
    pub(super) settings: LaunchSettings,
    /// What its requests to the model's API may use.
    #[cfg(feature = "broker")]
    pub(super) restrictions: Restrictions,
    /// What is missing of the conversation.
    pub(super) loss: Option<ContextLost>,
    /// Where, in a transcript that is there.
    gap: Option<String>,
    /// The last messages are missing, and no loss: of turns that were not answered. Whether there were no others.
    forgotten: Option<bool>,
    /// Counts the processes of this start.
    pub(super) attempt: u32,
    /// Counts those that would not open the conversation.
    refusals: u32,
    /// Variables that only this user's children get.
    pub(super) variables: Variables,
    pub(super) own_credentials: bool,
    pub(super) secrets: Secrets,
    /// The user that the child runs as, if it is not this process's.
    pub(super) owner: Option<Owner>,
    /// What the child is started with; `None` leaves it to the CLI.
    pub(super) model: Option<String>,
    /// The journal of its turns. Without one a loss may go unnoticed, which is logged.
    pub(super) journal: Option<Arc<Journal>>,
    /// The history that its transcript was written from.
    pub(super) imported: Option<Imported>,
    /// What the conversation begins with, if it has no context.
    offered: Option<Offered>,
    /// The first turn, and the session has not heard of it yet.
    first: Option<First>,
    /// The conversation is more than its beginning.
    has_turns: bool,
    /// Something of it was answered.
    is_owed: bool,
    /// The last messages with which it would be whole enough, the best first.
    wanted: Vec<Option<String>>,
    /// Turns of the session.
    turns: u64,
    /// The transcript was restored from the journal alone.
    is_from_journal: bool,
}

/// What is removed, or looked at, before a start: a plugin cache has some ten thousand files. A child can leave
/// millions, and what it left running can refill them.
const CLEARED: RemovalLimit = RemovalLimit { entries: 2_000_000, time: Duration::from_secs(5) };
/// The same on a thread that others need: what an ordinary CLI leaves.
const CLEARED_BRIEFLY: RemovalLimit = RemovalLimit { entries: 5_000, time: Duration::from_millis(100) };
/// The same while others wait for the permit to start: normally nothing is left to be removed.
pub(super) const CLEARED_AGAIN: RemovalLimit =
    RemovalLimit { entries: 500_000, time: Duration::from_secs(1) };

/// Removes what the child before left that the next one would obey. Runs before the session requests the permit to start.
pub(super) async fn clear(plan: &Plan) -> io::Result<()> {
    let (workspace, env, user) = (plan.workspace.clone(), plan.env().clone(), plan.entry.key.user().clone());
    let clear = move |limit| {
        let owner = env.isolation.owner(&user)?;
        workspace.give_to(owner, env.isolation.range(), limit)?;
        workspace.clear_home(&env.config.cli, limit)
    };
    let briefly = clear.clone();
    let cleared = match blocking(move || briefly(CLEARED_BRIEFLY)).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => blocking_long(move || clear(CLEARED)).await,
        cleared => cleared,
    };
    match cleared {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
        // Whatever else there is shows itself in the preparation, which makes directories that are missing first.
        _ => Ok(()),
    }
}

/// Removes what the conversation does not need while no child runs. What cannot be removed now is before the next start.
pub(super) async fn tidy(plan: &Plan) {
    let (workspace, env) = (plan.workspace.clone(), plan.env().clone());
    let tidied = blocking_long(move || workspace.tidy(&env.config.cli, CLEARED_AGAIN)).await;
    if let Err(error) = tidied {
        tracing::debug!(session = %plan.entry.hash, %error, "a session at rest is not tidied");
    }
}

/// What is prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// A child is about to start.
    OfStart,
    /// One runs, and has served no session: there is nothing to clear, and its files are in use.
    OfSpare,
}

/// Creates the directories, writes what the child reads at its start and looks at the transcript.
pub(super) async fn prepare(plan: &Plan, record: Box<Record>, opening: Opening) -> io::Result<Prepared> {
    let plan = plan.clone();
    // Under the permit to start.
    let prepare = move || {
        let (mut prepared, later) = prepare_now(&plan, *record, opening)?;
        prepared.open_journal(&plan, &later);
        Ok(prepared)
    };
    tokio::task::spawn_blocking(prepare).await.map_err(io::Error::other)?
}

/// Prepares a start and then starts a child, both by the same thread: each hand-over is a wait for a processor. The
/// journal of a conversation that begins is begun while the shim starts.
pub(super) async fn prepare_and<T: Send + 'static>(
    plan: &Plan,
    record: Box<Record>,
    start: impl FnOnce(&Plan, &Prepared) -> T + Send + 'static,
) -> io::Result<(Prepared, T)> {
    let plan = plan.clone();
    // Under the permit to start.
    let work = move || {
        let (mut prepared, later) = prepare_now(&plan, *record, Opening::OfStart)?;
        let can_wait = later.can_wait(plan.env());
        if !can_wait {
            prepared.open_journal(&plan, &later);
        }
        let started = start(&plan, &prepared);
        if can_wait {
            prepared.open_journal(&plan, &later);
        }
        Ok((prepared, started))
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// What the journal of the next child begins with.
struct Later {
    checkpoint: Option<String>,
    unanswered: Option<String>,
    written: Option<Vec<u8>>,
    transcript: Option<File>,
}

impl Later {
    /// Whether the journal may be opened beside the child's start: a child writes to a transcript that is there, and
    /// `journal = "synced"` has the disk know of a conversation before it begins.
    fn can_wait(&self, env: &Env) -> bool {
        self.written.is_none()
            && self.transcript.is_none()
            && env.config.session.journal != JournalMode::Synced
    }
}

/// All but the journal.
fn prepare_now(plan: &Plan, mut record: Record, opening: Opening) -> io::Result<(Prepared, Later)> {
    let (env, workspace, key) = (plan.env(), &plan.workspace, &plan.entry.key);
    let cli = &env.config.cli;
    // For lists only.
    if let Err(error) = known::note(&env.config.data_dir, key) {
        tracing::warn!(%error, "a session will not be listed while it is not in memory");
    }
    // Nothing has been in a new directory: there is nothing to be given away or cleared.
    let is_new = workspace.create_if_missing()?;
    let owner = env.isolation.owner(key.user())?;
    if !is_new || owner.is_some() {
        workspace.give_to(owner, env.isolation.range(), CLEARED_AGAIN)?;
    }
    #[cfg(feature = "broker")]
    if env.access.is_brokered {
        workspace.withdraw_credentials(cli)?;
    }
    #[cfg(feature = "server")]
    if record.own_credentials {
        crate::workspace::TokenIndex::of(&env.config.data_dir).mark_renewing(&plan.entry.hash)?;
    }
    if !is_new {
        workspace.remove_abandoned_files(cli);
    }
    if !is_new && opening == Opening::OfStart {
        workspace.clear_home(cli, CLEARED_AGAIN)?;
    }
    let mcp_servers = match &record.settings.mcp_servers {
        Some(servers) => {
            let found = servers.resolve(&env.config.mcp);
            if found.len() < servers.len() {
                tracing::warn!(session = %key.hash(), "MCP servers of a session are no longer configured or allowed");
            }
            found
        }
        None => serde_json::Map::new(),
    };
    let transcript = adapter::transcript_path(workspace.dirs(), cli, &record.cli_session_id);
    let (transcript, mut is_usable) = match found(workspace, cli, &transcript) {
        Ok(file) => (Some(file), true),
        Err(refused) if refused.is_shortage() => return Err(refused.into()),
        Err(refused) if refused.is_absent() => (None, true),
        // It would delay or bloat its reader; the CLI's reaction must not decide about it.
        Err(refused) => {
            tracing::warn!(session = %key.hash(), %refused, "a transcript is not used");
            (None, false)
        }
    };
    let gap = transcript.as_ref().map(|file| |message: &str| adapter::transcript_gap(file, message));
    let end = transcript.as_ref().map_or(Ok(None), adapter::transcript_end)?;
    let mut missing = Missing::from(&record, gap, end.as_deref())?;
    let restored = if missing.is_any() || !is_usable {
        let wanted = missing::wanted(&record, missing.loss.is_some() || !is_usable);
        let lost = Lost { conversation: &record.cli_session_id, wanted: &wanted, left: transcript.as_ref() };
        recovery::restore(plan, &lost)?
    } else {
        None
    };
    if let Some((place, _)) = &restored {
        // Behind the best one are those without the last message.
        missing = Missing { unanswered: record.unanswered.is_some() && *place > 0, ..Missing::default() };
        is_usable = true;
    }
    let Missing { loss, gap, unanswered: is_forgotten } = missing;
    let is_owed = missing::is_owed(&record);
    let begins_again = transcript.is_none() && restored.is_none();
    let forgotten = (is_forgotten && loss.is_none()).then_some(begins_again);
    if loss.is_some() || is_forgotten {
        record.unanswered = None;
    }
    let cli_session_id = if is_usable { record.cli_session_id.clone() } else { new_cli_session_id() };
    let is_gone = loss == Some(ContextLost::Conversation) || forgotten == Some(true);
    let has_context = record.context_turns > 0 && !is_gone;
    let offered = plan.offered.as_ref().filter(|_| !has_context);
    let imported = offered.and_then(|offered| {
        let imported = import(offered, &cli_session_id, plan);
        imported.unwrap_or_else(|error| {
            tracing::warn!(%error, "a history was not written; it goes into the first message");
            None
        })
    });
    let (imported, written) = match imported {
        Some((imported, written)) => (Some(imported), Some(written)),
        None => (None, restored.map(|(_, restored)| restored.transcript)),
    };
    if let Some(imported) = &imported {
        (record.checkpoint, record.unanswered) = (Some(imported.last.clone()), None);
    }
    let resumes = transcript.is_some() || written.is_some();
    let variables = env.user_env.of(key.user());
    let tokens = if record.settings.own_credentials {
        workspace.tokens(cli, env.credentials_place())
    } else {
        Vec::new()
    };
    // An attached child gets those of its client alone.
    let sent_servers = plan.attachment.as_ref().map_or(&mcp_servers, |attachment| &attachment.servers);
    let later = Later {
        checkpoint: record.checkpoint.clone().filter(|_| loss.is_none()),
        unanswered: record.unanswered.clone(),
        written,
        transcript,
    };
    let prepared = Prepared {
        journal: None,
        is_owed,
        wanted: missing::wanted(&record, true).into_iter().map(|last| last.map(str::to_owned)).collect(),
        turns: record.turns,
        is_from_journal: false,
        cli_session_id,
        is_new_id: !is_usable,
        mode: if resumes { LaunchMode::Resume } else { LaunchMode::New },
        own_credentials: record.settings.own_credentials,
        owner,
        secrets: Secrets::of(cli.env.iter().chain(variables.pairs()), sent_servers, &tokens),
        settings: LaunchSettings {
            system_prompt: record.settings.system_prompt.clone(),
            mcp_servers,
            fallback_model: record.settings.fallback_model.clone(),
            policy: record.settings.restrictions.policy,
            tools: record.settings.restrictions.tools.clone(),
            caller_tools: record.settings.caller_tools.clone(),
            output_schema: record.settings.output_schema.clone(),
            raw: plan.attachment.as_ref().map(|attachment| attachment.flags.clone()).unwrap_or_default(),
        },
        #[cfg(feature = "broker")]
        restrictions: record.settings.restrictions.clone(),
        loss,
        gap,
        forgotten,
        attempt: 0,
        refusals: 0,
        variables,
        model: model(&record, cli, resumes && imported.is_none()),
        has_turns: record.context_turns > 0,
        first: offered.map(|offered| first(offered, imported.is_some(), env)),
        offered: offered.cloned(),
        imported,
    };
    Ok((prepared, later))
}

fn first(offered: &Offered, imported: bool, env: &Env) -> First {
    First { turn: offered.turn, line: first_line(env, &offered.conversation, imported) }
}

/// What the child is started with: the conversation's model, else the configured one, else, where it resumes, the one
/// that the CLI chose.
fn model(record: &Record, cli: &CliConfig, resumes: bool) -> Option<String> {
    let without = if resumes { record.model_without(cli) } else { cli.model.as_deref() };
    record.settings.model.as_deref().or(without).map(str::to_owned)
}

/// Longest transcript that a child is started on: one of months has some hundred megabytes. The CLI reads it all.
const MAX_TRANSCRIPT_BYTES: u64 = 1 << 30;

/// The transcript, opened as what lies in a child's reach is.
pub(super) fn found(workspace: &Workspace, cli: &CliConfig, transcript: &Path) -> Result<File, ReadError> {
    let (own, path) = workspace.cli_file(cli, transcript)?;
    let file = own.file(&path)?;
    let (size, limit) = (file.metadata()?.len(), MAX_TRANSCRIPT_BYTES);
    if size > limit { Err(ReadError::TooLarge { size, limit }) } else { Ok(file) }
}

/// Writes the history as the transcript of the conversation of this id. `None`: nothing in it needs one, or the CLI is
/// known to refuse it.
fn import(offered: &Offered, cli_session_id: &str, plan: &Plan) -> io::Result<Option<(Imported, Vec<u8>)>> {
    let (env, workspace, user) = (plan.env(), &plan.workspace, plan.entry.key.user());
    let cli = &env.config.cli;
    let program = env.program.find().ok().and_then(|found| FileId::at(&found.path).ok());
    if program.as_ref().is_some_and(|program| !env.import_ability.is_worth_trying(program, user)) {
        return Ok(None);
    }
    let dirs = workspace.dirs();
    let import = adapter::import(&offered.conversation.history, cli_session_id, dirs, SystemTime::now());
    let Some(Import { transcript, last }) = import else { return Ok(None) };
    workspace.write_cli_file(cli, &adapter::transcript_path(dirs, cli, cli_session_id), &transcript)?;
    Ok(Some((Imported { last, program }, transcript)))
}

impl Prepared {
    fn open_journal(&mut self, plan: &Plan, later: &Later) {
        let begin = Begin {
            turns: self.turns,
            conversation: &self.cli_session_id,
            checkpoint: later.checkpoint.clone(),
            unanswered: later.unanswered.clone(),
            written: later.written.as_deref(),
            transcript: later.transcript.as_ref(),
        };
        self.journal = journaling::open(plan, &begin)
            .inspect_err(|error| tracing::warn!(%error, "the journal of a session cannot be written"))
            .ok();
    }

    /// Sends what the session does not know of its conversation, each thing once.
    pub(super) fn send_news(&mut self, mailbox: &Mailbox) {
        if let Some(loss) = self.loss.take() {
            mailbox.send(LifecycleEvent::ContextLost(loss, self.gap.take()));
        }
        if let Some(begins_again) = self.forgotten.take() {
            mailbox.send(LifecycleEvent::Forgotten { begins_again });
        }
        if std::mem::take(&mut self.is_new_id) {
            mailbox.send(LifecycleEvent::NewConversation(self.cli_session_id.clone()));
        }
        if let Some(first) = self.first.take() {
            mailbox.send(LifecycleEvent::First(first));
        }
    }

    /// The next way to try after the CLI refused this one: the other way once, then a conversation of a new id.
    ///
    /// Blocks.
    pub(super) fn after_refusal(mut self, refusal: LaunchRefusal, plan: &Plan) -> Self {
        self.attempt += 1;
        if refusal == LaunchRefusal::NoMirror {
            // Its turns are kept as their lines have come.
            return self;
        }
        self.refusals += 1;
        if let Some(imported) = self.imported.take() {
            // The history goes into the first message.
            tracing::warn!(session = %plan.entry.key.hash(), "the CLI does not resume an imported conversation");
            if let Some(program) = imported.program {
                plan.env().import_ability.refused(program, plan.entry.key.user());
            }
            let cli = &plan.env().config.cli;
            let written = adapter::transcript_path(plan.workspace.dirs(), cli, &self.cli_session_id);
            if let Err(error) = plan.workspace.remove_cli_file(cli, &written) {
                tracing::warn!(%error, "a transcript that is of no use is left behind");
            }
            self.first = self.offered.as_ref().map(|offered| first(offered, false, plan.env()));
            self.begin_again(plan);
            return self;
        }
        if refusal == LaunchRefusal::NoConversation && self.restore_from_journal(plan) {
            return self;
        }
        if self.refusals == 1 {
            self.mode = match refusal {
                LaunchRefusal::NoConversation => LaunchMode::New,
                LaunchRefusal::IdInUse | LaunchRefusal::NoMirror => LaunchMode::Resume,
            };
            if self.mode == LaunchMode::New {
                // Under the old id: the earlier messages are gone.
                self.begin_again(plan);
                self.miss_all();
            }
        } else {
            self.cli_session_id = new_cli_session_id();
            self.begin_again(plan);
            self.miss_all();
            self.is_new_id = true;
        }
        self
    }
}

impl Prepared {
    /// A conversation begins, with a journal of its own.
    fn begin_again(&mut self, plan: &Plan) {
        self.mode = LaunchMode::New;
        let nothing = Later { checkpoint: None, unanswered: None, written: None, transcript: None };
        self.open_journal(plan, &nothing);
    }

    /// Nothing of the conversation goes on, which is a loss if something of it was answered.
    fn miss_all(&mut self) {
        self.loss = self.is_owed.then_some(ContextLost::Conversation);
        self.forgotten = (self.has_turns && !self.is_owed).then_some(true);
    }

    /// The CLI finds nothing in the transcript: once more with the journal alone.
    fn restore_from_journal(&mut self, plan: &Plan) -> bool {
        if !self.has_turns || std::mem::replace(&mut self.is_from_journal, true) {
            return false;
        }
        let wanted: Vec<_> = self.wanted.iter().map(Option::as_deref).collect();
        let lost = Lost { conversation: &self.cli_session_id, wanted: &wanted, left: None };
        match recovery::restore(plan, &lost) {
            Ok(Some((place, _))) => {
                self.mode = LaunchMode::Resume;
                // Behind the best one are those without the last message.
                self.forgotten = (place > 0).then_some(false);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "a conversation was not restored");
                false
            }
        }
    }
}

/// Maximum number of attempts in one start. More refusals mean that the CLI contradicts itself.
pub(super) const MOST_ATTEMPTS: u32 = 5;
