//! The listener of one child.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::slots::ConnectionSlots;
use super::token::Token;
use super::{EndpointPlan, Shared, connection};

/// Pause after a failed accept: without file descriptors the next one fails too, and retrying at once wastes CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the connections of one endpoint share.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) shared: Arc<Shared>,
    pub(super) plan: EndpointPlan,
    pub(super) token: Token,
    pub(super) connection_slots: ConnectionSlots,
    /// Cancelled with the guard.
    pub(super) ended: CancellationToken,
}

/// An endpoint that does not listen yet.
#[derive(Debug)]
pub(crate) struct Endpoint(Arc<EndpointState>);

/// A listening endpoint. Dropping it ends the listener, all connections and the token.
#[derive(Debug)]
#[must_use = "dropping the guard ends the endpoint"]
pub(crate) struct EndpointGuard {
    _ended: DropGuard,
}

impl Endpoint {
    pub(super) fn new(shared: Arc<Shared>, plan: EndpointPlan, token: Token) -> Self {
        Self(Arc::new(EndpointState {
            token,
            connection_slots: ConnectionSlots::new(shared.connections.clone()),
            ended: shared.ended.child_token(),
            shared,
            plan,
        }))
    }

    /// The token: random, for this start of the child.
    pub(crate) fn token(&self) -> &str {
        self.0.token.as_str()
    }

    /// Serves a listener. Must be called in a runtime.
    ///
    /// # Errors
    /// The listener cannot be used without blocking.
    pub(crate) fn serve(self, listener: std::net::TcpListener) -> io::Result<EndpointGuard> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let Self(state) = self;
        let ended = state.ended.clone();
        let tasks = state.shared.tasks.clone();
        tasks.spawn(ended.clone().run_until_cancelled_owned(accept(state, listener)));
        Ok(EndpointGuard { _ended: ended.drop_guard() })
    }
}

impl EndpointState {
    /// Whether the child may still use the endpoint.
    pub(super) fn is_alive(&self) -> bool {
        !self.ended.is_cancelled()
    }
}

async fn accept(state: Arc<EndpointState>, listener: TcpListener) {
    // Connections without a slot stay in the kernel's backlog.
    while let Some(slot) = state.connection_slots.acquire().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY: small writes will be delayed");
                }
                let serve = connection::serve(state.clone(), stream, slot);
                let until = state.ended.clone();
                state.shared.tasks.spawn(until.run_until_cancelled_owned(serve));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection of a child");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
