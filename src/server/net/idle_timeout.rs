//! A connection with patience of both kinds: it fails when its reader takes nothing for too long, and it does not close
//! in the face of a caller that is still sending.
//!
//! A stream of events waits for its reader without a clock of its own: the turn, and with it the session, would be held
//! by a caller that keeps the connection open and reads nothing. And a request that is refused before its body was read
//! would lose the refusal: closing with unread bytes resets the connection. Knows nothing of HTTP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a caller that is still sending is listened to after the end of our answer: in silence, and in all.
const LINGER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// What is thrown away at a time meanwhile.
const THROWN_AWAY: usize = 8 << 10;

/// Reads as the inner stream does; a write that makes no progress within `limit` is an error.
pub(crate) struct IdleTimeoutIo<S> {
    inner: S,
    limit: Duration,
    /// A write waits for its reader.
    is_waiting: Arc<AtomicBool>,
    /// Runs only while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Runs from the end of our side until the caller ends its own.
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

    /// Whether something that was written has not gone out yet.
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
        // Polled again after the error it would complete twice.
        deadline.as_mut().reset(Instant::now() + limit);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> IdleTimeoutIo<S> {
    /// Throws away what still comes, until the caller has ended or patience has.
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
    async fn a_reader_that_takes_nothing_is_cut_off() {
        let (ours, _theirs) = duplex(8);
        let mut ours = IdleTimeoutIo::new(ours, Duration::from_secs(60));
        let error = ours.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_served() {
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
    async fn a_caller_that_still_sends_is_listened_to_for_a_while() {
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
        assert_eq!(begin.elapsed(), LINGER.0, "then silence ends it");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_caller_is_not_listened_to_for_ever() {
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
