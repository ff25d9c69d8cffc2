//! Connections: served up to a number with limits on headers and on waiting, refused beyond it, closed in two steps.
//!
//! Owned by [`super::Server`]; knows nothing of what the router does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stall::StallGuard;

/// Header lines per request. Callers send ten; proxies add as many.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head (and of one read of its body); the last read may go beyond by as much again. Room for a few
/// long cookies.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Connections beyond the limit that are told so at the same time. Those beyond this wait with the kernel.
const MAX_REFUSALS: usize = 64;
/// How long one of them may take to ask.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept: without descriptors the next one fails as well, and a busy loop helps nobody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The two steps of closing.
#[derive(Debug, Clone)]
pub(super) struct Closing {
    /// Accept nothing more; answers under way are sent to their end.
    pub(super) gracefully: CancellationToken,
    /// Drop everything.
    pub(super) now: CancellationToken,
}

impl Closing {
    /// Runs `task` until it ends or the first step of closing.
    pub(super) async fn or(self, task: impl Future<Output = ()>) {
        tokio::select! {
            () = task => {}
            () = self.gracefully.cancelled() => {}
        }
    }
}

/// One listener with its limits.
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) router: Router,
    /// For connections beyond `most`.
    pub(super) crowded: Router,
    pub(super) most: usize,
    /// How long a caller may take to send the headers of a request; also how long an idle connection is kept open for
    /// the next one.
    pub(super) header_timeout: Duration,
    /// A caller that takes nothing at all of a waiting answer for so long is gone, whatever its TCP says.
    pub(super) write_timeout: Duration,
    pub(super) tasks: TaskTracker,
    pub(super) closing: Closing,
}

impl Acceptor {
    /// Accepts until closing begins.
    pub(super) async fn run(self) {
        let closing = self.closing.clone();
        closing.or(self.accept_all()).await;
    }

    async fn accept_all(self) {
        let room = Arc::new(Semaphore::new(self.most));
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        // Closed never: an error here cannot happen, and would only end the loop.
        while let Ok(refusal) = refusals.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "small writes to this connection will be late");
                    }
                    let stream = StallGuard::new(stream, self.write_timeout);
                    let (served, permit) = match room.clone().try_acquire_owned() {
                        Ok(permit) => ((self.router.clone(), self.header_timeout), permit),
                        Err(_) => ((self.crowded.clone(), REFUSAL_TIMEOUT), refusal),
                    };
                    self.tasks.spawn(serve(stream, served, self.closing.clone(), permit));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves one connection to its end. Its failures are the caller's doing and not worth a line above `debug`.
async fn serve(
    stream: StallGuard<TcpStream>,
    (router, header_timeout): (Router, Duration),
    closing: Closing,
    _room: OwnedSemaphorePermit,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.now.cancelled() => return,
        () = closing.gracefully.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = closing.now.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
