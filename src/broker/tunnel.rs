//! Bytes between a child and a host of the allow list.

use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use crate::telemetry::metrics::{EgressDirection, Metrics};

/// Buffer of each direction, per tunnel.
const BUFFER_BYTES: usize = 16 << 10;

/// The host's side of a connection, which counts its bytes.
#[derive(Debug)]
pub(super) struct Counted<S> {
    inner: S,
    total: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, total: Arc::default(), metrics }
    }

    fn count(&self, direction: EgressDirection, bytes: usize) {
        self.total.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.egress_bytes.add(direction, bytes as u64);
    }
}

impl<S> Deref for Counted<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.inner
    }
}

/// Copies in both directions until both have ended, one has failed, or both were silent for `idle`.
pub(super) async fn run<C, H>(mut child: C, mut host: Counted<H>, idle: Duration)
where
    C: AsyncRead + AsyncWrite + Unpin,
    H: AsyncRead + AsyncWrite + Unpin,
{
    let total = host.total.clone();
    let silence = async {
        let mut before = 0;
        let mut silent_halves = 0;
        while silent_halves < 2 {
            tokio::time::sleep(idle / 2).await;
            let now = total.load(Ordering::Relaxed);
            silent_halves = if now == before { silent_halves + 1 } else { 0 };
            before = now;
        }
    };
    tokio::select! {
        // A tunnel that breaks has no reader of the error.
        _ = copy_bidirectional_with_sizes(&mut child, &mut host, BUFFER_BYTES, BUFFER_BYTES) => {}
        () = silence => {}
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.count(EgressDirection::Received, buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.count(EgressDirection::Sent, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;
    use tokio_util::task::TaskTracker;

    use super::super::tests::metrics;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tunnel_ends_after_silence_only() {
        let idle = Duration::from_secs(60);
        let ((mut child, near), (far, mut host)) = (duplex(64), duplex(64));
        let tunnel = TaskTracker::new().spawn(run(near, Counted::new(far, metrics()), idle));
        let begun = Instant::now();
        for _ in 0..5 {
            tokio::time::sleep(idle / 2).await;
            child.write_all(b"a").await.unwrap();
            assert_eq!(host.read_u8().await.unwrap(), b'a');
            host.write_all(b"b").await.unwrap();
            assert_eq!(child.read_u8().await.unwrap(), b'b');
        }
        let last = begun.elapsed();
        tunnel.await.unwrap();
        let silent = begun.elapsed() - last;
        assert!(silent >= idle && silent <= 2 * idle, "{silent:?}");
        assert_eq!(child.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself() {
        let ((mut child, near), (far, mut host)) = (duplex(64), duplex(64));
        let tunnel =
            TaskTracker::new().spawn(run(near, Counted::new(far, metrics()), Duration::from_secs(60)));
        child.write_all(b"request").await.unwrap();
        child.shutdown().await.unwrap();
        let mut received = String::new();
        host.read_to_string(&mut received).await.unwrap();
        host.write_all(b"response").await.unwrap();
        drop(host);
        let mut answer = String::new();
        child.read_to_string(&mut answer).await.unwrap();
        assert_eq!((received.as_str(), answer.as_str()), ("request", "response"));
        tunnel.await.unwrap();
    }
}
