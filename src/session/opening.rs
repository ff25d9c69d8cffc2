//! How a conversation is taken up by a new child: begun, resumed, or given up for lost.
//!
//! The transcript on disk decides: there → resume; not there → begin under the same id. Only what the transcript holds
//! is really remembered, so it is also looked at for the last thing that was said ([`Adapter::checkpoint`]).
//!
//! [`Adapter::checkpoint`]: crate::cli::Adapter::checkpoint

use std::io;
use std::sync::Arc;

use super::child_task::{ChildNews, Plan, Tell};
use super::known;
use super::store::{ProgressFile, Record, new_cli_session_id};
use crate::child::Secrets;
use crate::cli::{Bound, Opening, Refusal};
use crate::config::CliConfig;
use crate::ids::SessionKey;
use crate::instance::Instance;
use crate::metrics::ContextLost;
use crate::user_env::Variables;
use crate::workspace::{Durability, Workspace};

/// Everything about a start that is known before it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) cli_session_id: String,
    pub(super) opening: Opening,
    pub(super) bound: Bound,
    /// What is missing of the conversation.
    pub(super) loss: Option<ContextLost>,
    /// Counts the processes of this start.
    pub(super) attempt: u32,
    /// Variables that only this user's children get.
    pub(super) variables: Variables,
    /// Not to be shown when the child writes them.
    pub(super) secrets: Secrets,
    /// What the child is started with; `None` leaves it to the CLI.
    pub(super) model: Option<String>,
    /// Where its turns are noted. Without one a loss may go unnoticed, which is told in the log.
    pub(super) progress: Option<Arc<ProgressFile>>,
    /// The conversation is more than its beginning.
    has_turns: bool,
}

/// Creates the directories, writes what the child reads at its start and looks at the transcript.
pub(super) async fn prepare(plan: &Plan, record: Box<Record>) -> io::Result<Prepared> {
    let workspace = plan.workspace.clone();
    let instance = plan.instance.clone();
    let key = plan.entry.key.clone();
    let prepare = move || {
        // For lists only.
        if let Err(error) = known::note(&instance.config.data_dir, &key) {
            tracing::warn!(%error, "a session will not be listed while it is not in memory");
        }
        prepare_now(&workspace, &record, &key, &instance)
    };
    let prepared = tokio::task::spawn_blocking(prepare).await;
    prepared.map_err(io::Error::other)?
}

fn prepare_now(
    workspace: &Workspace,
    record: &Record,
    key: &SessionKey,
    instance: &Instance,
) -> io::Result<Prepared> {
    let (adapter, cli) = (instance.adapter, &instance.config.cli);
    workspace.create()?;
    workspace.sweep(&adapter.credentials_file(workspace.dirs(), cli));
    if !workspace.record_file().exists()
        // The session's own save is on its way, but may be slower than a first answer: whoever kills this program in
        // between must not leave a conversation whose id nobody knows.
        && let Err(error) = record.save(workspace, Durability::Kernel)
    {
        tracing::warn!(%error, "the record of a new session was not written");
    }
    let mcp_config = match &record.bound.mcp_servers {
        Some(servers) => {
            workspace.write_mcp_servers(servers)?;
            Some(workspace.mcp_file())
        }
        None => None,
    };
    let transcript = adapter.transcript(workspace.dirs(), cli, &record.cli_session_id);
    let is_there = transcript.is_file();
    let loss = match &record.checkpoint {
        _ if !is_there => (record.context_turns > 0).then_some(ContextLost::Conversation),
        Some(checkpoint) if !adapter.transcript_holds(&transcript, checkpoint)? => {
            Some(ContextLost::LatestTurns)
        }
        _ => None,
    };
    let variables = instance.user_env.of(key.user());
    let progress = ProgressFile::open(workspace, record)
        .inspect_err(|error| tracing::warn!(%error, "the progress of a session cannot be written"))
        .ok();
    Ok(Prepared {
        progress: progress.map(Arc::new),
        cli_session_id: record.cli_session_id.clone(),
        opening: if is_there { Opening::Resume } else { Opening::New },
        bound: Bound {
            system_prompt: record.bound.system_prompt.clone(),
            mcp_config,
            fallback_model: record.bound.fallback_model.clone(),
        },
        loss,
        attempt: 0,
        secrets: Secrets::of(cli.env.iter().chain(variables.pairs()), record.bound.mcp_servers.as_ref()),
        variables,
        model: model(record, cli, is_there),
        has_turns: record.context_turns > 0,
    })
}

/// What the child is started with: the conversation's model, else the configured one, else, to go on with the same
/// window and system prompt, what the CLI chose for the conversation's first turn.
fn model(record: &Record, cli: &CliConfig, resumes: bool) -> Option<String> {
    let chosen = record.chosen_model.clone().filter(|_| resumes);
    record.bound.model.clone().or_else(|| cli.model.clone()).or(chosen)
}

impl Prepared {
    /// The next way to try after the CLI refused this one: the other way once, then a conversation of a new id.
    pub(super) fn after_refusal(mut self, refusal: Refusal, tell: &Tell) -> Self {
        self.attempt += 1;
        if self.attempt == 1 {
            self.opening = match refusal {
                Refusal::NoConversation => Opening::New,
                Refusal::IdInUse => Opening::Resume,
            };
            // Begun anew under the old id: what was said before is gone.
            let lost = refusal == Refusal::NoConversation && self.has_turns;
            self.loss = lost.then_some(ContextLost::Conversation);
        } else {
            self.cli_session_id = new_cli_session_id();
            self.opening = Opening::New;
            self.loss = self.has_turns.then_some(ContextLost::Conversation);
            tell(ChildNews::NewConversation(self.cli_session_id.clone()));
        }
        self
    }
}

/// So many refusals in one start mean that the CLI does not do what it says.
pub(super) const MOST_ATTEMPTS: u32 = 3;
