//! Accept loop and connections: a maximum count, limits on headers and waiting, shutdown in two steps.
//!
//! Beyond the maximum, the connection idle longest is evicted. A new one is refused only while all are in use.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
#[cfg(feature = "cluster")]
use tokio::time::timeout;
use tokio::time::{Instant, sleep_until};
#[cfg(feature = "cluster")]
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::slots::{ConnectionSlot, ConnectionSlots, TrackedBody};
use crate::support::idle_timeout::IdleTimeoutIo;
use crate::support::lock::MutexExt;

/// Maximum header lines per request. Clients send ten; proxies add as many.
const MAX_HEADERS: usize = 64;
/// Maximum size of a request's head, and of one read of its body; the last read may exceed it by the same amount. Fits
/// a few long cookies.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// What a node may add to the headers of a client: caller, signature, digest, ids.
#[cfg(feature = "cluster")]
const NODE_HEADERS: usize = 16;
#[cfg(feature = "cluster")]
const NODE_HEAD_BYTES: usize = 16 << 10;
/// Maximum connections that wait for a slot or are being refused. Further ones wait in the kernel's backlog.
const MAX_REFUSALS: usize = 64;
/// Maximum time to receive the request of a refused connection.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that wait to be accepted: what the runtime asks of the kernel.
const BACKLOG: usize = 1024;
/// Pause after a failed accept: without file descriptors the next one fails too, and retrying at once wastes CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Time after its connection in which a client sends its first request. A server that closes waits for it.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about failed accepts.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(crate) struct Closing {
    /// First step: accept no more connections, finish responses in progress.
    pub(crate) gracefully: CancellationToken,
    /// Second step: drop all connections.
    pub(crate) now: CancellationToken,
}

impl Closing {
    /// Runs `task` until it ends or shutdown begins.
    pub(crate) async fn or(self, task: impl Future<Output = ()>) {
        tokio::select! {
            () = task => {}
            () = self.gracefully.cancelled() => {}
        }
    }
}

pub(crate) struct Acceptor {
    pub(crate) listener: TcpListener,
    pub(crate) handler: ConnectionHandler,
    pub(crate) most: usize,
    pub(crate) tasks: TaskTracker,
}

/// The router of each request that begins now: open connections follow a change.
#[derive(Clone)]
pub(crate) struct CurrentRouter(Arc<Mutex<Router>>);

impl CurrentRouter {
    pub(crate) fn new(router: Router) -> Self {
        Self(Arc::new(Mutex::new(router)))
    }

    pub(crate) fn put(&self, router: Router) {
        *self.0.lock_unpoisoned() = router;
    }

    fn now(&self) -> Router {
        self.0.lock_unpoisoned().clone()
    }
}

/// Limits on the heads of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadLimits {
    lines: usize,
    bytes: usize,
}

impl HeadLimits {
    pub(crate) const OF_CLIENT: Self = Self { lines: MAX_HEADERS, bytes: MAX_HEAD_BYTES };
    /// A request that a node passes on.
    #[cfg(feature = "cluster")]
    pub(crate) const OF_NODE: Self =
        Self { lines: MAX_HEADERS + NODE_HEADERS, bytes: MAX_HEAD_BYTES + NODE_HEAD_BYTES };
}

#[derive(Clone)]
pub(crate) struct ConnectionHandler {
    pub(crate) router: CurrentRouter,
    /// Router for connections that get no slot.
    pub(crate) overloaded: Router,
    /// Maximum time to receive the headers of a request; also the keep-alive timeout of an idle connection.
    pub(crate) header_timeout: Duration,
    pub(crate) head: HeadLimits,
    /// Maximum time without progress of a write. Such a client is gone, whatever its TCP stack reports.
    pub(crate) write_timeout: Duration,
    pub(crate) closing: Closing,
    /// For a listener that speaks TLS.
    #[cfg(feature = "cluster")]
    pub(crate) tls: Option<TlsAcceptor>,
}

impl Acceptor {
    pub(crate) async fn run(self) {
        let slots = ConnectionSlots::new(self.most);
        let admissions = Arc::new(Semaphore::new(MAX_REFUSALS));
        self.handler.closing.clone().or(self.accept_all(&slots, &admissions)).await;
        self.accept_waiting(&slots, &admissions).await;
    }

    async fn accept_all(&self, slots: &Arc<ConnectionSlots>, admissions: &Arc<Semaphore>) {
        let mut logged: Option<Instant> = None;
        // The semaphore is never closed, so this never fails.
        while let Ok(admission) = admissions.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => self.admit(stream, slots, admission),
                Err(error) => {
                    // File descriptors may be exhausted; evicting an idle connection frees one.
                    let evicted = slots.evict_idlest();
                    if logged.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
                        logged = Some(Instant::now());
                        tracing::warn!(%error, evicted, "cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts what was connected before the listener closes: its clients would see a reset, and not know what became of their
    /// requests.
    async fn accept_waiting(self, slots: &Arc<ConnectionSlots>, admissions: &Arc<Semaphore>) {
        for _ in 0..BACKLOG {
            let Ok(admission) = admissions.clone().acquire_owned().await else { return };
            // Does not wait: listeners of the runtime never do.
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(stream) => {
                    if let Ok(stream) = TcpStream::from_std(stream.into()) {
                        self.admit(stream, slots, admission);
                    }
                }
                Err(Errno::AGAIN) => return,
                // One that was given up, or is not to be had: the next may be.
                Err(_) => {}
            }
        }
    }

    fn admit(&self, stream: TcpStream, slots: &Arc<ConnectionSlots>, admission: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY: small writes will be delayed");
        }
        self.tasks.spawn(self.handler.clone().admit(stream, slots.clone(), admission));
    }
}

impl ConnectionHandler {
    /// Acquires a slot and serves the connection, or refuses it.
    async fn admit(self, stream: TcpStream, slots: Arc<ConnectionSlots>, admission: OwnedSemaphorePermit) {
        let stream = IdleTimeoutIo::new(stream, self.write_timeout);
        match slots.acquire().await {
            Some(slot) => {
                drop(admission);
                let is_waiting = stream.is_waiting();
                #[cfg(feature = "cluster")]
                if let Some(tls) = self.tls.clone() {
                    if let Some(stream) = self.shake_hands(&tls, stream, &slot).await {
                        self.serve(stream, is_waiting, slot).await;
                    }
                    return;
                }
                self.serve(stream, is_waiting, slot).await;
            }
            #[cfg(feature = "cluster")]
            // Another node sees that it was not heard.
            None if self.tls.is_some() => {}
            None => self.refuse(stream).await,
        }
    }

    /// The stream inside of TLS; `None` if the other side has no valid certificate, is too slow, or its slot is needed.
    #[cfg(feature = "cluster")]
    async fn shake_hands(
        &self,
        tls: &TlsAcceptor,
        stream: IdleTimeoutIo<TcpStream>,
        slot: &ConnectionSlot,
    ) -> Option<TlsStream<IdleTimeoutIo<TcpStream>>> {
        let done = tokio::select! {
            done = timeout(self.header_timeout, tls.accept(stream)) => done.ok()?,
            () = slot.evicted() => return None,
            () = self.closing.gracefully.cancelled() => return None,
        };
        done.inspect_err(|error| tracing::debug!(%error, "a connection has no TLS")).ok()
    }

    /// Serves one connection until it ends or is evicted.
    async fn serve<S>(self, stream: S, is_waiting: Arc<AtomicBool>, slot: Arc<ConnectionSlot>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, serving, opened) = (self.router, slot.clone(), Instant::now());
        let first_request = CancellationToken::new();
        let begun = first_request.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            begun.cancel();
            let answering = TowerToHyperService::new(router.now()).call(request);
            let in_use = serving.serve();
            async move { Ok::<_, Infallible>(answering.await?.map(|body| TrackedBody::new(body, in_use))) }
        });
        let builder = builder(self.header_timeout, self.head);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let closing = self.closing;
        let ended = loop {
            tokio::select! {
                // Biased, so that a request that has just arrived is served.
                biased;
                ended = connection.as_mut() => break ended,
                () = slot.evicted() => {
                    if !slot.is_in_use() && !is_waiting.load(Ordering::Acquire) {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                }
                // Also cancelled with `now`: each wait here is polled with every piece of every response.
                () = closing.gracefully.cancelled() => {
                    // Without a request yet it would be closed at once, with the request that is on its way.
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => break ended,
                        () = first_request.cancelled() => {}
                        () = sleep_until(opened + FIRST_REQUEST_WITHIN) => {}
                        () = closing.now.cancelled() => return,
                    }
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

    async fn refuse(self, stream: IdleTimeoutIo<TcpStream>) {
        let service = TowerToHyperService::new(self.overloaded);
        let builder = builder(REFUSAL_TIMEOUT, self.head);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            ended = connection => log(ended),
            () = self.closing.gracefully.cancelled() => {}
        }
    }
}

fn builder(header_timeout: Duration, head: HeadLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(head.lines)
        .max_buf_size(head.bytes);
    builder
}

/// Connection failures are the client's doing, so they are logged at `debug` only.
fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as Client;

    use axum::routing::get;

    use super::*;

    fn acceptor(listener: TcpListener) -> Acceptor {
        let handler = ConnectionHandler {
            router: CurrentRouter::new(Router::new().route("/", get(async || "answered"))),
            overloaded: Router::new(),
            header_timeout: Duration::from_secs(20),
            head: HeadLimits::OF_CLIENT,
            write_timeout: Duration::from_secs(20),
            closing: Closing { gracefully: CancellationToken::new(), now: CancellationToken::new() },
            #[cfg(feature = "cluster")]
            tls: None,
        };
        Acceptor { listener, handler, most: 1000, tasks: TaskTracker::new() }
    }

    fn ask(mut client: Client) -> String {
        let mut answer = String::new();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The listener closes with connections that it has not accepted, and with requests that have not come.
    #[tokio::test]
    async fn connections_made_before_the_close_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Vec<_> = (0..2 * MAX_REFUSALS).map(|_| Client::connect(address).unwrap()).collect();
        let acceptor = acceptor(listener);
        let tasks = acceptor.tasks.clone();
        acceptor.handler.closing.gracefully.cancel();
        acceptor.run().await;
        assert!(Client::connect(address).is_err(), "it is closed");
        let answers = clients.into_iter().map(|client| tokio::task::spawn_blocking(|| ask(client)));
        for answer in futures_util::future::join_all(answers).await {
            let answer = answer.unwrap();
            assert!(answer.ends_with("answered"), "{answer}");
        }
        tasks.close();
        tasks.wait().await;
    }
}
