//! Requests about the MCP servers of a running child, and who asks.

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::model::{McpError, McpServerStatus};

/// A request.
#[derive(Debug)]
pub(crate) enum AskServers {
    /// How they are connected.
    Status(oneshot::Sender<Vec<McpServerStatus>>),
    /// Connect to this one again.
    Reconnect(String, oneshot::Sender<Result<(), McpError>>),
    /// These in the place of all; `watched`: who asks wants to know of this one whether it is connected.
    Replace {
        servers: Map<String, Value>,
        watched: Option<String>,
        reply: oneshot::Sender<Result<(), McpError>>,
    },
}

impl AskServers {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Status(reply) => reply.is_closed(),
            Self::Reconnect(_, reply) | Self::Replace { reply, .. } => reply.is_closed(),
        }
    }
}
