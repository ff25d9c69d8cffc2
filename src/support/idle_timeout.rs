//! I/O with an idle timeout on writes and a lingering close.
//!
//! A client that keeps the connection open and reads nothing would hold its turn and session; a write without progress
//! times out. A request refused before its body was read would lose the refusal, because closing with unread bytes
//! resets the connection; so the rest is read for a while.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Maximum time to read from a client that still sends after the response: without data, and in total.
const LINGER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
const THROWN_AWAY: usize = 8 << 10;

/// A stream whose writes fail after `limit` without progress.
pub(crate) struct IdleTimeoutIo<S> {
    inner: S,
    limit: Duration,
    is_waiting: Arc<AtomicBool>,
    /// Runs only while a write is pending.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs from the server's shutdown of the stream until the client ends its side.
    linger: Option<Linger>,
}

struct Linger {
    silence: Pin<Box<Sleep>>,
    until: Instant,
}

impl<S> IdleTimeoutIo<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, is_waiting: Arc::default(), deadline: None, linger: None }
    }

    /// Whether written bytes are still pending.
    #[cfg(feature = "server")]
    pub(crate) fn is_waiting(&self) -> Arc<AtomicBool> {
        self.is_waiting.clone()
    }

    fn guarded<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.is_waiting.store(written.is_pending(), Ordering::Release);
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        if deadline.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        // The timer would complete again after the error.
        deadline.as_mut().reset(Instant::now() + limit);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> IdleTimeoutIo<S> {
    /// Discards input until the client ends its side or a limit expires.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (silence, total) = LINGER;
        let linger = self.linger.get_or_insert_with(|| Linger {
            silence: Box::pin(sleep(silence)),
            until: Instant::now() + total,
        });
        let mut thrown_away = [0; THROWN_AWAY];
        loop {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut self.inner).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && Instant::now() < linger.until => {
                    linger.silence.as_mut().reset(Instant::now() + silence);
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.silence.as_mut().poll(context),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for IdleTimeoutIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for IdleTimeoutIo<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.guarded(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(context, pieces);
        this.guarded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(context);
        this.guarded(context, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.inner).poll_shutdown(context);
            ready!(this.guarded(context, shut))?;
        }
        ready!(this.poll_linger(context));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalled_reader_is_cut_off() {
        let (ours, _theirs) = duplex(8);
        let mut ours = IdleTimeoutIo::new(ours, Duration::from_secs(60));
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_is_served() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = IdleTimeoutIo::new(ours, Duration::from_secs(60));
        let reading = async {
            for _ in 0..64 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(&[0; 64]), reading);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn sending_client_is_drained_for_a_while() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = IdleTimeoutIo::new(ours, Duration::from_secs(60));
        let begin = Instant::now();
        let sending = async {
            theirs.write_all(&[0; 1000]).await.unwrap();
            begin.elapsed()
        };
        let (shut, sent_after) = tokio::join!(ours.shutdown(), sending);
        shut.unwrap();
        assert_eq!(sent_after, Duration::ZERO);
        assert_eq!(begin.elapsed(), LINGER.0, "then the silence limit ends it");
    }

    #[tokio::test(start_paused = true)]
    async fn endless_client_is_cut_off() {
        let (ours, mut theirs) = duplex(8);
        let mut ours = IdleTimeoutIo::new(ours, Duration::from_secs(60));
        let begin = Instant::now();
        let sending = async {
            loop {
                sleep(LINGER.0 / 2).await;
                theirs.write_all(&[0; 8]).await.unwrap();
            }
        };
        tokio::select! {
            shut = ours.shutdown() => shut.unwrap(),
            () = sending => {}
        }
        assert_eq!(begin.elapsed(), LINGER.1);
    }
}
