//! MCP servers of a running child.

/// An MCP server, as the CLI reports it. No definition is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct McpServerStatus {
    /// Its name.
    pub name: String,
    /// The CLI's word for how it is connected: `connected`, `pending`, `failed`, `needs-auth`, `disabled`. `None`: no child runs
    /// that could be asked.
    pub status: Option<String>,
    /// Why it is not connected, in the CLI's words. Empty for servers of the configuration: it may hold an address.
    pub error: Option<String>,
    /// The names of its tools.
    pub tools: Vec<String>,
}

/// When a change of a session's MCP servers takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum McpApplied {
    /// The running child has them.
    Now,
    /// The next child gets them.
    NextStart,
}

/// A change of a session's MCP servers that was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum McpError {
    /// The session has no such server.
    #[error("the session has no MCP server of this name")]
    NotFound,
    /// No child runs.
    #[error("no child of the session runs; its servers are connected when it starts")]
    NotRunning,
    /// A child is being started, or a client speaks to it itself, or a turn runs and the server needs another child.
    #[error("the session is starting or busy; repeat it when the turn is over")]
    Busy,
    /// The session has as many servers as one may have.
    #[error("the session has {most} MCP servers; remove one first")]
    TooMany {
        /// How many one may have.
        most: usize,
    },
    /// The definition, or the name, cannot be used.
    #[error("{0}")]
    Invalid(&'static str),
    /// The CLI could not connect to the server.
    #[error("the server could not be connected; its command or address does not answer")]
    NotConnected,
    /// The child did not answer in time.
    #[error("the child did not answer in time")]
    TimedOut,
}
