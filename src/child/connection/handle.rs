//! The handle on a child's connection, for its session and the reader of the running turn.
//!
//! Every call does its work at once, under a lock that is never held across a wait.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Connection, Protocol};
use crate::child::connection::handoff::Shared;
use crate::child::exit::KillReason;
use crate::child::permissions::Answer;
use crate::child::running_turn::Job;
use crate::child::servers::AskServers;
use crate::child::steering::Steer;
use crate::model::{ContextUsage, ids::TurnId};
use crate::turn::{Pulled, Source};

/// See the module. Refuses everything once the child is gone.
pub(crate) type ConnectionHandle = Shared<Connection>;

impl ConnectionHandle {
    /// An order of the session. The child's task is called if it has something to do.
    fn order<T>(&self, order: impl FnOnce(&mut Protocol, Instant) -> T) -> Option<T> {
        self.with(|connection| {
            let now = Instant::now();
            let result = connection.order(now, order);
            connection.settle(now);
            result
        })
    }

    /// Gives the child a turn; gives it back if there is no child any more.
    pub(crate) fn take_turn(self: &Arc<Self>, job: Box<Job>) -> Result<(), Box<Job>> {
        if let Some(sender) = &job.sender {
            sender.attach(self.clone());
        }
        let mut job = Some(job);
        let taken = self.with(|connection| {
            let now = Instant::now();
            let taken = job.take().map_or(Ok(()), |job| connection.take_turn(job, now));
            connection.settle(now);
            taken
        });
        taken.unwrap_or_else(|| job.map_or(Ok(()), Err))
    }

    /// Ends the turn, if it is still this one; its reader gets the end.
    pub(crate) fn interrupt(&self, turn: TurnId) {
        self.order(|protocol, now| protocol.interrupt_turn(turn, now));
    }

    /// Ends the wait for results of the caller's tools. Whether there was one.
    pub(crate) fn interrupt_wait(&self) -> bool {
        self.order(|protocol, now| protocol.interrupt_wait(now)).unwrap_or(false)
    }

    /// Ends the turn, if it is still this one; its reader is gone.
    pub(crate) fn cancel(&self, turn: TurnId) {
        self.order(|protocol, now| protocol.cancel_turn(turn, now));
    }

    pub(crate) fn kill(&self, reason: KillReason) {
        self.order(|protocol, now| protocol.declare_dead(reason, now));
    }

    /// Asks the CLI what fills the context. The question is dropped if the child cannot be asked.
    pub(crate) fn ask_context(&self, reply: oneshot::Sender<ContextUsage>) {
        self.order(|protocol, _| protocol.ask_context(reply));
    }

    /// Asks the CLI about its MCP servers, or replaces them. Returns whether it was asked.
    pub(crate) fn ask_servers(&self, ask: AskServers) -> bool {
        if let AskServers::Replace { servers, .. } = &ask {
            // Before the child has them: it may print them at once.
            self.with(|connection| connection.context.secrets.learn(servers));
        }
        self.order(|protocol, now| protocol.ask_servers(ask, now)).unwrap_or(false)
    }

    /// Puts a text into the running turn.
    pub(crate) fn steer(&self, steer: Steer) {
        // Without a connection it is dropped, which its sender notices.
        self.order(|protocol, _| protocol.steer(steer));
    }

    pub(crate) fn answer(&self, answer: Answer) {
        // Without a connection the answer is dropped, which its sender notices.
        self.order(|protocol, _| protocol.answer(answer));
    }
}

impl Source for ConnectionHandle {
    fn poll_lines(&self, turn: TurnId, context: &mut Context<'_>) -> Poll<Pulled> {
        self.with(|connection| connection.poll_for_reader(turn, context)).unwrap_or(Poll::Pending)
    }
}

impl std::fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConnectionHandle")
    }
}
