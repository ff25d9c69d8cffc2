//! The events of a child that lives, and who receives them.

use crate::child::running_turn::TurnReport;
use crate::model::PendingPermission;

#[derive(Debug)]
pub(crate) enum ChildEvent {
    /// The child runs and answers; it may still connect to its MCP servers.
    Greeted,
    Ready,
    /// The model that the child works with, from its first turn on.
    Model(String),
    TurnEnded(TurnReport),
    /// A turn is over that the child ran of its own accord.
    OwnTurn {
        cost_usd: f64,
    },
    /// The child works of its own accord, or no longer.
    Active(bool),
    /// The tools that wait for permission have changed.
    Permissions(Vec<PendingPermission>),
}

/// Receives the events of one child, at once and in order. Must not wait and must not call back.
pub(crate) trait OnChildEvent: Send + Sync {
    fn on_child_event(&self, event: ChildEvent);
}
