//! The MCP servers of a running child: asked about, connected again, replaced.

use tokio::time::Instant;

use super::{CONNECT_TRIES, Protocol};
use crate::adapter::{self, ControlResponse};
use crate::child::servers::AskServers;
use crate::model::McpError;

/// Requests about servers.
const ASKED: &str = "mcp-";

/// Requests that a child answers at a time. One may take as long as a server has to connect.
const MOST_ASKED: usize = 8;

/// A request that the CLI has not answered.
#[derive(Debug)]
pub(super) struct Asked {
    id: String,
    ask: AskServers,
    /// Until then it may connect to servers, and answer nothing else.
    until: Instant,
}

impl Protocol {
    /// Asks the CLI, and returns whether it did: a child that cannot be asked drops the question, which its sender notices.
    pub(in crate::child::connection) fn ask_servers(&mut self, ask: AskServers, now: Instant) -> bool {
        // A change is carried out even if nobody waits for it, and is answered.
        let is_change = |asked: &Asked| !matches!(asked.ask, AskServers::Status(_)) && asked.until > now;
        self.servers_asked.retain(|asked| !asked.ask.is_abandoned() || is_change(asked));
        let is_serving = self.handshake.complete && !self.over && !self.is_stopping();
        if !is_serving || self.servers_asked.len() >= MOST_ASKED {
            return false;
        }
        let id = self.request_id(ASKED);
        let line = match &ask {
            AskServers::Status(_) => adapter::ping(&id),
            AskServers::Reconnect(name, _) => adapter::reconnect_server(&id, name),
            AskServers::Replace { servers, .. } => {
                adapter::replace_servers(&id, servers, self.calls.are_possible())
            }
        };
        self.write(line);
        let until = now + CONNECT_TRIES * self.config.mcp.connect_timeout;
        self.servers_asked.push(Asked { id, ask, until });
        true
    }

    /// Until when the CLI may be at work on a request about servers.
    pub(super) fn asks_servers_until(&self) -> Option<Instant> {
        self.servers_asked.iter().map(|asked| asked.until).max()
    }

    /// Whether the CLI may be connecting to servers: it answers nothing else then.
    pub(super) fn connects_servers(&self, now: Instant) -> bool {
        let connects = |asked: &Asked| !matches!(asked.ask, AskServers::Status(_)) && asked.until > now;
        self.servers_asked.iter().any(connects)
    }

    /// An answer about servers goes to who asked.
    pub(super) fn report_servers(&mut self, answer: &ControlResponse, line: &[u8]) {
        let Some(at) = self.servers_asked.iter().position(|asked| asked.id == answer.request_id) else {
            return;
        };
        let done = match answer.error {
            Some(_) => Err(McpError::NotConnected),
            None => Ok(()),
        };
        // Who asked may have stopped waiting.
        match self.servers_asked.swap_remove(at).ask {
            AskServers::Status(reply) => {
                drop(adapter::server_statuses(line).map(|servers| reply.send(servers)))
            }
            AskServers::Reconnect(_, reply) => drop(reply.send(done).ok()),
            AskServers::Replace { watched, reply, .. } => {
                let failed = watched.is_some_and(|name| adapter::unconnected(line).contains(&name));
                reply.send(if failed { Err(McpError::NotConnected) } else { done }).ok();
            }
        }
    }
}
