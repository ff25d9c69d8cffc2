//! The session's MCP servers while its child runs: asked about, connected again, added and removed.

use tokio::sync::oneshot;

use super::SessionActorState;
use crate::child::AskServers;
use crate::config::Egress;
use crate::model::{McpError, SessionState};
use crate::session::message::{ChangeServers, Changed};
use crate::session::state::Input;
use crate::turn::McpServers;

/// Maximum servers of a session: each is a process or a connection of the child.
const MOST_SERVERS: usize = 64;

impl SessionActorState {
    pub(super) fn reconnect_server(&self, name: String, reply: oneshot::Sender<Result<(), McpError>>) {
        let has_it = self.record.settings.mcp_servers.as_ref().is_some_and(|servers| servers.has(&name));
        match self.connection(self.machine.generation()) {
            _ if !has_it => drop(reply.send(Err(McpError::NotFound))),
            Some(connection) => {
                // Where it cannot be asked, the reply is dropped.
                connection.ask_servers(AskServers::Reconnect(name, reply));
            }
            None => drop(reply.send(Err(McpError::NotRunning))),
        }
    }

    /// Changes the servers of this session: of its child, if that one can take them, and of every later one.
    pub(super) fn change_servers(&mut self, change: ChangeServers) -> Result<Changed, McpError> {
        let mut servers = self.record.settings.mcp_servers.clone().unwrap_or_default();
        let (added, watched) = match change {
            ChangeServers::Add(added) => {
                servers = servers.and(&added);
                let name = added.names().pop();
                (added, name)
            }
            ChangeServers::Remove(name) => {
                if !servers.remove(&name) {
                    return Err(McpError::NotFound);
                }
                (McpServers::default(), None)
            }
        };
        if servers.len() > MOST_SERVERS {
            return Err(McpError::TooMany { most: MOST_SERVERS });
        }
        let state = self.machine.public_state();
        let is_attached = self.child.as_ref().is_some_and(|child| child.attached.is_some());
        // The settings of a turn that waits are decided already, and would undo the change.
        let is_settled = self.machine.last_wanted().is_none();
        if is_attached || !is_settled || matches!(state, SessionState::Starting | SessionState::Stopping) {
            return Err(McpError::Busy);
        }
        let env = self.sessions.env.clone();
        // The hosts that a child reaches are decided at its start.
        let needs_restart = env.access.egress != Egress::Open
            && added.resolve(&env.config.mcp).values().any(|definition| definition.get("url").is_some());
        if needs_restart && state == SessionState::Busy {
            return Err(McpError::Busy);
        }
        let resolved = servers.resolve(&env.config.mcp);
        let running = self.connection(self.machine.generation());
        let (is_running, mut connected) = (running.is_some(), None);
        if let Some(connection) = running.filter(|_| !needs_restart) {
            let (reply, answer) = oneshot::channel();
            // Otherwise the settings would name servers that the child does not have.
            if !connection.ask_servers(AskServers::Replace { servers: resolved, watched, reply }) {
                return Err(McpError::Busy);
            }
            connected = Some(answer);
        }
        self.record.settings.mcp_servers = (!servers.is_empty()).then_some(servers);
        self.machine.set_settings(self.record.settings.hash());
        self.save_now();
        if is_running && connected.is_none() {
            self.feed(Input::EvictIfIdle);
        }
        Ok(Changed { connected })
    }
}
