//! A client that speaks to a child of the session itself, on its way to that child.
//!
//! To the session it is one turn: it waits behind others, others wait behind it, and nothing evicts the session
//! meanwhile. It always gets a child of its own, which has had no handshake, and the child ends with it.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};

use crate::adapter::RawFlags;
use crate::child::RawClient;
use crate::support::lock::MutexExt;

/// See the module.
pub(crate) struct Attachment {
    /// Additions to the command line of the child.
    pub(crate) flags: RawFlags,
    /// Definitions of MCP servers that the client sends to the child: they may hold secrets.
    pub(crate) servers: Map<String, Value>,
    /// The conversation that the client means, by the CLI's id; `None`: that of the session.
    conversation: Option<String>,
    /// Until a child has it.
    client: Mutex<Option<RawClient>>,
}

impl Attachment {
    pub(crate) fn new(
        flags: RawFlags,
        conversation: Option<String>,
        servers: Map<String, Value>,
        client: RawClient,
    ) -> Arc<Self> {
        Arc::new(Self { flags, servers, conversation, client: Mutex::new(Some(client)) })
    }

    /// The client, for the one child that answers.
    pub(super) fn take(&self) -> Option<RawClient> {
        self.client.lock_unpoisoned().take()
    }

    /// Whether the client means this conversation. `has_context`: there is something to be resumed.
    pub(super) fn means(&self, cli_session_id: &str, has_context: bool) -> bool {
        self.conversation.as_ref().is_none_or(|id| id == cli_session_id && has_context)
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Definitions of servers may hold secrets.
        f.debug_struct("Attachment").field("flags", &self.flags).finish_non_exhaustive()
    }
}
