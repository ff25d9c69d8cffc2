//! Connections: served up to a number with limits on headers and on waiting; beyond it the idlest makes way for a new
//! one, which is refused only while all are in use; closed in two steps.
//!
//! Owned by [`crate::server::Server`]; knows nothing of what the router does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::server::net::idle_timeout::IdleTimeoutIo;

use super::slots::{ConnectionSlot, ConnectionSlots, TrackedBody};

/// Header lines per request. Callers send ten; proxies add as many.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head (and of one read of its body); the last read may go beyond by as much again. ConnectionSlots for a few
/// long cookies.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Connections beyond the limit that are told so at the same time. Those beyond this wait with the kernel.
const MAX_REFUSALS: usize = 64;
/// How long one of them may take to ask.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept: without descriptors the next one fails as well, and a busy loop helps nobody.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often failed accepts are logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The two steps of closing.
#[derive(Debug, Clone)]
pub(crate) struct Closing {
    /// Accept nothing more; answers under way are sent to their end.
    pub(crate) gracefully: CancellationToken,
    /// Drop everything.
    pub(crate) now: CancellationToken,
}

impl Closing {
    /// Runs `task` until it ends or the first step of closing.
    pub(crate) async fn or(self, task: impl Future<Output = ()>) {
        tokio::select! {
            () = task => {}
            () = self.gracefully.cancelled() => {}
        }
    }
}

/// One listener with its limits.
pub(crate) struct Acceptor {
    pub(crate) listener: TcpListener,
    pub(crate) handler: ConnectionHandler,
    /// Connections at once.
    pub(crate) most: usize,
    pub(crate) tasks: TaskTracker,
}

/// What a connection meets.
#[derive(Clone)]
pub(crate) struct ConnectionHandler {
    pub(crate) router: Router,
    /// For connections that find every slot in use.
    pub(crate) overloaded: Router,
    /// How long a caller may take to send the headers of a request; also how long an idle connection is kept open for
    /// the next one.
    pub(crate) header_timeout: Duration,
    /// A caller that takes nothing at all of a waiting answer for so long is gone, whatever its TCP says.
    pub(crate) write_timeout: Duration,
    pub(crate) closing: Closing,
}

impl Acceptor {
    /// Accepts until closing begins.
    pub(crate) async fn run(self) {
        let closing = self.handler.closing.clone();
        closing.or(self.accept_all()).await;
    }

    async fn accept_all(self) {
        let slots = ConnectionSlots::new(self.most);
        let newcomers = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut complained: Option<Instant> = None;
        // Closed never: an error here cannot happen, and would only end the loop.
        while let Ok(newcomer) = newcomers.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "small writes to this connection will be late");
                    }
                    self.tasks.spawn(self.handler.clone().admit(stream, slots.clone(), newcomer));
                }
                Err(error) => {
                    // Its cause may be that no descriptor is left, and one that is idle can be had back.
                    let evicted = slots.evict_idlest();
                    if complained.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
                        complained = Some(Instant::now());
                        tracing::warn!(%error, evicted, "a connection could not be accepted");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl ConnectionHandler {
    /// Finds the connection a slot, or tells it that there is none. So many wait for that at a time.
    async fn admit(self, stream: TcpStream, slots: Arc<ConnectionSlots>, newcomer: OwnedSemaphorePermit) {
        let stream = IdleTimeoutIo::new(stream, self.write_timeout);
        match slots.acquire().await {
            Some(slot) => {
                drop(newcomer);
                self.serve(stream, slot).await;
            }
            None => self.refuse(stream).await,
        }
    }

    /// Serves one connection to its end, or until it makes way.
    async fn serve(self, stream: IdleTimeoutIo<TcpStream>, slot: Arc<ConnectionSlot>) {
        let (router, serving) = (TowerToHyperService::new(self.router), slot.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (in_use, answering) = (serving.serve(), router.call(request));
            async move { Ok::<_, Infallible>(answering.await?.map(|body| TrackedBody::new(body, in_use))) }
        });
        let is_waiting = stream.is_waiting();
        let mut connection =
            std::pin::pin!(builder(self.header_timeout).serve_connection(TokioIo::new(stream), service));
        let closing = self.closing;
        let ended = loop {
            tokio::select! {
                // First: a request that has just come is served.
                biased;
                ended = connection.as_mut() => break ended,
                () = closing.now.cancelled() => return,
                () = slot.evicted() => {
                    if !slot.is_in_use() && !is_waiting.load(Ordering::Acquire) {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                }
                () = closing.gracefully.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection => break ended,
                        () = closing.now.cancelled() => return,
                    }
                }
            }
        };
        log(ended);
    }

    /// Tells one connection that there is no slots.
    async fn refuse(self, stream: IdleTimeoutIo<TcpStream>) {
        let service = TowerToHyperService::new(self.overloaded);
        let connection = builder(REFUSAL_TIMEOUT).serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            ended = connection => log(ended),
            () = self.closing.gracefully.cancelled() => {}
        }
    }
}

fn builder(header_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
}

/// A connection's failures are the caller's doing and not worth a line above `debug`.
fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
