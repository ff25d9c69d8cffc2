//! Messages of a session's mailbox. A handful per turn; no line of output.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{attach::Attachment, child_events::LifecycleEvent, store::Record, store::SettingsRecord};
use crate::child::{Answer, ChildEvent, Job, KillReason, Steer};
use crate::error::TurnError;
use crate::model::ids::{Generation, TurnId};
use crate::model::{ContextUsage, McpError, McpServerStatus};
use crate::telemetry::metrics::EvictionReason;
use crate::turn::{McpServers, SteerRights};

/// Message to a session's actor.
#[derive(Debug)]
pub(crate) enum SessionMessage {
    /// A turn that was let in.
    Submit(Box<TurnSubmission>),
    /// The reader of a turn is gone.
    Cancel(TurnId),
    /// Start the child; answer when it is ready.
    Warm(oneshot::Sender<Result<(), TurnError>>),
    /// End the running turn; answer whether there was one.
    Interrupt(oneshot::Sender<bool>),
    /// Stop the child if nothing needs it and nothing has happened since.
    EvictIdle { reason: EvictionReason, quiet_since: Instant },
    /// Stop the child; answer when it is gone.
    Evict(oneshot::Sender<()>),
    /// Stop the child and refuse all turns with this error; answer when it is gone.
    ShutDown { refusal: TurnError, reply: oneshot::Sender<()> },
    /// The tree of this shim, or its files, exceed what a session may use: end it.
    Outgrown { shim: u32, reason: KillReason },
    /// Leave memory, if at rest.
    Retire,
    /// The save of this number, made to leave memory, is done.
    Written(u64),
    /// OAuth credentials of the session's own are on disk; answered once the turns to come use them.
    OwnCredentials(oneshot::Sender<()>),
    /// What is known of the session, as of now.
    Record(oneshot::Sender<Box<Record>>),
    /// What fills the context, by the CLI; dropped without one.
    Context(oneshot::Sender<ContextUsage>),
    /// How the MCP servers of the child are connected; dropped without one.
    Servers(oneshot::Sender<Vec<McpServerStatus>>),
    /// Connect to an MCP server again.
    ReconnectServer(String, oneshot::Sender<Result<(), McpError>>),
    /// Other MCP servers.
    ChangeServers(ChangeServers, oneshot::Sender<Result<Changed, McpError>>),
    /// Another conversation in the place of the session's own; `interrupt`: also while turns run or wait. Answered once it
    /// is on disk.
    Switch { to: Switch, interrupt: bool, reply: oneshot::Sender<Result<(), TurnError>> },
    /// A tool may run, or not.
    Answer(Answer),
    /// A text for the running turn, of a caller with these rights.
    Steer(Steer, SteerRights),
    /// An event of the child's connection.
    Child(Generation, ChildEvent),
    /// An event of the child's task.
    Lifecycle(Generation, LifecycleEvent),
    /// A time that was asked for has come.
    Wake,
    /// The record is due to be saved.
    Save,
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

/// A change of a session's MCP servers.
#[derive(Debug, Clone)]
pub(crate) enum ChangeServers {
    Add(McpServers),
    Remove(String),
}

/// A change of a session's MCP servers that was made.
#[derive(Debug)]
pub(crate) struct Changed {
    /// Answered by the child that runs; none for the next one.
    pub(crate) connected: Option<oneshot::Receiver<Result<(), McpError>>>,
}

/// A conversation that a session goes on with.
#[derive(Debug)]
pub(crate) struct Switch {
    /// The CLI's id of it.
    pub(crate) cli_session_id: String,
    /// The last message of its transcript.
    pub(crate) checkpoint: Option<String>,
    /// What its transcript lacks.
    pub(crate) known_gap: Option<String>,
    /// Turns that it holds.
    pub(crate) turns: u64,
}

/// A turn on its way to the session.
pub(crate) struct TurnSubmission {
    pub(crate) job: Box<Job>,
    /// Launch settings that the turn requires; each `None` keeps the present one.
    pub(crate) settings: SettingsRecord,
    /// The turn is a client that speaks to a child of its own.
    pub(crate) attachment: Option<Arc<Attachment>>,
    /// The turn is refused unless this one was the last before it, in the same conversation.
    pub(crate) follows: Option<TurnId>,
    /// The first words, if the conversation begins with it.
    pub(crate) title: Option<String>,
}

impl std::fmt::Debug for TurnSubmission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnSubmission").field("turn", &self.job.turn).finish_non_exhaustive()
    }
}
