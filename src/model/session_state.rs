//! The visible states of a session.

/// What a session does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// No child; the next message starts one.
    Dormant,
    /// A child is being started.
    Starting,
    /// A warm child waits.
    Idle,
    /// A turn runs.
    Busy,
    /// The child is being stopped.
    Stopping,
    /// A restart waits after a crash.
    Backoff,
    /// Too many crashes; see [`crate::TurnError::CircuitOpen`].
    Failed,
}

impl std::fmt::Display for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dormant => "dormant",
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
        })
    }
}
