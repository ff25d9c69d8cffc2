//! The events of a child that lives, and who receives them.

use crate::child::running_turn::{TurnEnd, TurnReport};
use crate::model::PendingPermission;

#[derive(Debug)]
pub(crate) enum ChildEvent {
    /// The child runs and answers; it may still connect to its MCP servers.
    Greeted,
    Ready,
    /// The model that the child works with, from its first turn on.
    Model(String),
    TurnEnded(TurnReport),
    /// What the journal is to keep besides the turns that have ended.
    Journal(Vec<u8>),
    /// A turn is over that the child ran of its own accord.
    OwnTurn {
        cost_usd: f64,
    },
    /// The child works of its own accord, or no longer.
    Active(bool),
    /// The child waits for results of the caller's tools, or no longer.
    AwaitsCaller(bool),
    /// The child was frozen, or thawed.
    Frozen(bool),
    /// The tools that wait for permission have changed.
    Permissions(Vec<PendingPermission>),
}

/// Receives the events of one child, at once and in order. Must not wait and must not call back.
pub(crate) trait OnChildEvent: Send + Sync {
    fn on_child_event(&self, event: ChildEvent);

    /// A turn has ended: as an event, with the end for its reader. Gives the end back if it can be sent now.
    fn on_turn_ended(&self, report: TurnReport, last: Option<Box<TurnEnd>>) -> Option<Box<TurnEnd>> {
        self.on_child_event(ChildEvent::TurnEnded(report));
        last
    }
}
