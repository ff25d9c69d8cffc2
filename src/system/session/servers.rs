//! The MCP servers of a session, also while its child runs.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{ACTOR_ANSWERS_WITHIN, Session};
use crate::adapter;
use crate::error::TurnError;
use crate::model::{McpApplied, McpError, McpServerStatus};
use crate::session::SessionMessage;
use crate::session::message::{ChangeServers, Changed};
use crate::turn::McpServers;

impl Session {
    /// The session's MCP servers. A child that runs is asked; without one their status is unknown. Starts no child.
    ///
    /// # Errors
    /// [`TurnError`] if the session's record cannot be read.
    pub async fn mcp_servers(&self) -> Result<Vec<McpServerStatus>, TurnError> {
        let Some(known) = self.known_conversation().await? else { return Ok(Vec::new()) };
        let selected = known.record.settings.mcp_servers.clone().unwrap_or_default();
        let warm = self.entry().filter(|entry| entry.status.read(|now| now.is_warm() && !now.status.frozen));
        if let Some(entry) = warm {
            let (reply, reported) = oneshot::channel();
            drop(entry.actor.cast(SessionMessage::Servers(reply)));
            if let Ok(Ok(servers)) = timeout(ACTOR_ANSWERS_WITHIN, reported).await {
                // The reason may hold the address or the command of the operator's server.
                let shown = servers.into_iter().map(|server| match selected.is_configured(&server.name) {
                    true => McpServerStatus { error: None, ..server },
                    false => server,
                });
                return Ok(shown.collect());
            }
        }
        let unknown = |name| McpServerStatus { name, status: None, error: None, tools: Vec::new() };
        Ok(selected.names().into_iter().map(unknown).collect())
    }

    /// Adds MCP servers to those of the session, or replaces those of the same names. A child that runs connects to them;
    /// later children have them as well, until a turn selects others ([`crate::TurnOptions::mcp_servers`]).
    ///
    /// # Errors
    /// [`McpError`]. After [`McpError::NotConnected`] the session has the servers all the same.
    pub async fn add_mcp_servers(&self, servers: McpServers) -> Result<McpApplied, McpError> {
        if let Some(problem) = servers.problem(&self.env().config.mcp) {
            return Err(McpError::Invalid(problem));
        }
        if servers.has(adapter::CALLER_SERVER) {
            return Err(McpError::Invalid("the name \"caller\" belongs to the caller's own tools"));
        }
        self.change_servers(ChangeServers::Add(servers)).await
    }

    /// Removes an MCP server from those of the session.
    ///
    /// # Errors
    /// [`McpError`].
    pub async fn remove_mcp_server(&self, name: &str) -> Result<McpApplied, McpError> {
        self.change_servers(ChangeServers::Remove(name.to_owned())).await
    }

    /// Connects to an MCP server of the running child again.
    ///
    /// # Errors
    /// [`McpError`].
    pub async fn reconnect_mcp_server(&self, name: &str) -> Result<(), McpError> {
        let entry = self.entry().ok_or(McpError::NotRunning)?;
        let (reply, done) = oneshot::channel();
        drop(entry.actor.cast(SessionMessage::ReconnectServer(name.to_owned(), reply)));
        answered(timeout(self.connects_within(), done).await)
    }

    async fn change_servers(&self, change: ChangeServers) -> Result<McpApplied, McpError> {
        let ask = |reply| SessionMessage::ChangeServers(change.clone(), reply);
        let changed = self.ask(ask, true, ACTOR_ANSWERS_WITHIN).await.map_err(|_| McpError::Busy)?;
        let Changed { connected } = changed.ok_or(McpError::Busy)??;
        let Some(connected) = connected else { return Ok(McpApplied::NextStart) };
        answered(timeout(self.connects_within(), connected).await)?;
        Ok(McpApplied::Now)
    }

    /// The CLI tries some transports one after the other.
    fn connects_within(&self) -> Duration {
        2 * self.env().config.mcp.connect_timeout + ACTOR_ANSWERS_WITHIN
    }
}

fn answered<E>(
    answer: Result<Result<Result<(), McpError>, oneshot::error::RecvError>, E>,
) -> Result<(), McpError> {
    match answer {
        Ok(Ok(done)) => done,
        // The child ended meanwhile, or answers too many already.
        Ok(Err(_)) => Err(McpError::NotRunning),
        Err(_) => Err(McpError::TimedOut),
    }
}
