//! The end of a child whose session this node has lost: at once, whatever the child's shim does.
//!
//! A shim ends its tree at the deadline of the node ([`pilotlight_shim::fence`]), but not while it is stopped, and a tool may
//! have stopped it. So the server acts as well: it orders the kill and lets the shim run, and soon after kills the shim itself,
//! whose tree is then killed without it.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Time between the order and the kill of the shim. The lease outlives the deadline by half a second, in which the tree of a
/// killed shim has to be found and killed too.
const SHIM_OBEYS_WITHIN: Duration = Duration::from_millis(150);

/// See the module. It keeps its state, so that a wait may be cancelled and taken up again.
#[derive(Debug)]
pub(super) enum Lost {
    /// Nothing is lost.
    Not(Pin<Box<WaitForCancellationFutureOwned>>),
    Ordered(Pin<Box<Sleep>>),
    Killed,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Order,
    KillShim,
}

impl Lost {
    /// `lost` is cancelled when the session is lost.
    pub(super) fn when(lost: CancellationToken) -> Self {
        Self::Not(Box::pin(lost.cancelled_owned()))
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self, Self::Not(_))
    }

    /// Waits until something is to be done. Each is given once.
    pub(super) async fn due(&mut self) -> Due {
        match self {
            Self::Not(lost) => {
                lost.as_mut().await;
                *self = Self::Ordered(Box::pin(sleep(SHIM_OBEYS_WITHIN)));
                Due::Order
            }
            Self::Ordered(obeys) => {
                obeys.as_mut().await;
                *self = Self::Killed;
                Due::KillShim
            }
            Self::Killed => std::future::pending().await,
        }
    }
}
