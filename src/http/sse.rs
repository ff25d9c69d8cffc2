//! One turn as the body of an answer: its lines, signs of life while it is silent, its files if asked for, its end.
//!
//! Dropping the body (the caller hung up) drops the turn, which interrupts it; the child stays warm. Nothing is read
//! from the turn before the connection can take it: a slow reader slows its own CLI.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep};

use super::wire::{DONE, PING, aborted, failed, frames};
use crate::error::TurnError;
use crate::turn::{Status, Turn};

/// The events of the files that a turn wrote; looks for them when it is first polled.
pub(super) type Gathering = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// A turn on its way out.
pub(super) struct Answer {
    stage: Stage,
    /// Lines that came before the answer was begun.
    first: Option<Bytes>,
    /// Polled once the turn has ended.
    files: Option<Gathering>,
    /// What stands right before the end: the error, if the CLI ended the turn with one.
    last: Bytes,
    heartbeat: Duration,
    silence: Pin<Box<Sleep>>,
    log: Log,
}

enum Stage {
    Lines(Box<Turn>),
    Files(Gathering),
    Ended,
}

/// What is logged about a turn, once.
struct Log {
    request_id: String,
    begin: Instant,
    outcome: &'static str,
}

impl Drop for Log {
    fn drop(&mut self) {
        let took_ms = self.begin.elapsed().as_millis();
        tracing::info!(request_id = self.request_id, outcome = self.outcome, took_ms, "turn answered");
    }
}

impl Answer {
    /// `begin` is when the request came.
    pub(super) fn new(
        turn: Turn,
        first: Option<Bytes>,
        files: Option<Gathering>,
        heartbeat: Duration,
        (request_id, begin): (String, Instant),
    ) -> Self {
        let silence = Box::pin(sleep(heartbeat));
        // What it stays if nobody reads to the end.
        let log = Log { request_id, begin, outcome: "client_gone" };
        Self {
            stage: Stage::Lines(Box::new(turn)),
            first,
            files,
            last: Bytes::new(),
            heartbeat,
            silence,
            log,
        }
    }

    /// The next frames; `None` after the last.
    fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(frames(&first)));
        }
        loop {
            match &mut self.stage {
                Stage::Lines(turn) => {
                    // A future made anew for each poll loses nothing: it holds no state of its own.
                    let polled = pin!(turn.next_lines()).poll(context);
                    match polled {
                        Poll::Ready(Some(Ok(lines))) => {
                            self.silence.as_mut().reset(Instant::now() + self.heartbeat);
                            let frames = frames(&lines);
                            if !frames.is_empty() {
                                return Poll::Ready(Some(frames));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(self.failed(&error))),
                        Poll::Ready(None) => {
                            self.log.outcome = outcome(turn);
                            self.last = ended_by_error(turn);
                            self.stage = match self.files.take() {
                                Some(files) => Stage::Files(files),
                                None => return Poll::Ready(Some(self.end(Bytes::new()))),
                            };
                        }
                        Poll::Pending => return self.poll_ping(context),
                    }
                }
                Stage::Files(gathering) => {
                    return match gathering.as_mut().poll(context) {
                        Poll::Ready(files) => Poll::Ready(Some(self.end(files))),
                        Poll::Pending => self.poll_ping(context),
                    };
                }
                Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        ready!(self.silence.as_mut().poll(context));
        self.silence.as_mut().reset(Instant::now() + self.heartbeat);
        Poll::Ready(Some(Bytes::from_static(PING)))
    }

    fn failed(&mut self, error: &TurnError) -> Bytes {
        self.log.outcome = error.code();
        self.end(aborted(error))
    }

    fn end(&mut self, frames: Bytes) -> Bytes {
        self.stage = Stage::Ended;
        if frames.is_empty() && self.last.is_empty() {
            return Bytes::from_static(DONE);
        }
        let mut all = BytesMut::from(frames);
        all.extend_from_slice(&self.last);
        all.extend_from_slice(DONE);
        all.freeze()
    }
}

impl Stream for Answer {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_frames(context).map(|frames| frames.map(Ok))
    }
}

fn ended_by_error(turn: &Turn) -> Bytes {
    match turn.outcome().map(|outcome| &outcome.status) {
        Some(Status::Failed(failure)) => failed(failure),
        _ => Bytes::new(),
    }
}

fn outcome(turn: &Turn) -> &'static str {
    match turn.outcome().map(|outcome| &outcome.status) {
        Some(Status::Completed) => "completed",
        Some(Status::Failed(_)) => "failed",
        Some(Status::Aborted(error)) => error.code(),
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::cli::claude::CLAUDE;
    use crate::ids::TurnId;
    use crate::turn::{TurnSender, turn_channel};

    /// A turn, its answer with a heartbeat of ten seconds, and whether the turn was cancelled.
    fn answer(
        first: Option<&'static [u8]>,
        files: Option<Gathering>,
    ) -> (TurnSender, Answer, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = cancelled.clone();
        let cancel = Box::new(move || seen.store(true, Ordering::Relaxed));
        let (sender, turn) = turn_channel(TurnId(1), &CLAUDE, 8, 1 << 16, cancel, Box::new(|_| {}));
        let first = first.map(Bytes::from_static);
        let log = ("id".to_owned(), Instant::now());
        (sender, Answer::new(turn, first, files, Duration::from_secs(10), log), cancelled)
    }

    async fn next(answer: &mut Answer) -> Option<String> {
        let frames = std::future::poll_fn(|context| answer.poll_frames(context)).await;
        frames.map(|frames| String::from_utf8(frames.to_vec()).unwrap())
    }

    fn put(sender: &TurnSender, lines: &'static [u8]) {
        assert!(sender.has_room(lines.len()));
        crate::turn::wake(sender.put(Bytes::from_static(lines)));
    }

    fn completed() -> crate::turn::Outcome {
        crate::turn::Outcome {
            status: Status::Completed,
            text: String::new(),
            stop_reason: None,
            usage: crate::turn::Usage::default(),
            cost_usd: 0.0,
            cli_session_id: String::new(),
            retries: 0,
            context_lost: false,
            duration: Duration::ZERO,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_go_out_and_silence_is_broken() {
        let (sender, mut answer, _) = answer(Some(b"{\"n\":0}\n"), None);
        assert_eq!(next(&mut answer).await.unwrap(), "data: {\"n\":0}\n\n");
        let begin = Instant::now();
        assert_eq!(next(&mut answer).await.unwrap(), ": ping\n\n");
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
        put(&sender, b"{\"n\":1}\n{\"n\":2}\n");
        assert_eq!(next(&mut answer).await.unwrap(), "data: {\"n\":1}\n\ndata: {\"n\":2}\n\n");
        drop(sender.finish(Bytes::new(), completed()));
        assert_eq!(next(&mut answer).await.unwrap(), "data: [DONE]\n\n");
        assert_eq!(next(&mut answer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_an_event_before_the_end() {
        let (sender, mut answer, _) =
            answer(None, Some(Box::pin(async { unreachable!("no files of a lost turn") })));
        put(&sender, b"{}\n");
        drop(sender.finish(Bytes::new(), crate::turn::aborted(TurnError::Cancelled)));
        assert_eq!(next(&mut answer).await.unwrap(), "data: {}\n\n");
        let last = next(&mut answer).await.unwrap();
        assert!(last.starts_with("data: {\"error\":{\"code\":\"cancelled\""), "{last}");
        assert!(last.ends_with("}\n\ndata: [DONE]\n\n"), "{last}");
        assert_eq!(next(&mut answer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_of_the_cli_itself_is_an_event_after_its_last_line() {
        let (sender, mut answer, _) = answer(None, None);
        let failure = crate::cli::Failure {
            kind: "rate_limit".to_owned(),
            api_status: Some(429),
            message: "too many".to_owned(),
            interrupted: false,
        };
        let outcome = crate::turn::Outcome { status: Status::Failed(failure), ..completed() };
        drop(sender.finish(Bytes::from_static(b"{\"type\":\"result\"}\n"), outcome));
        assert_eq!(next(&mut answer).await.unwrap(), "data: {\"type\":\"result\"}\n\n");
        let last = next(&mut answer).await.unwrap();
        assert!(
            last.starts_with("data: {\"error\":{\"code\":\"rate_limit\",\"message\":\"too many\"}"),
            "{last}"
        );
        assert!(last.ends_with("\n\ndata: [DONE]\n\n"), "{last}");
        assert_eq!(next(&mut answer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn files_come_last_and_may_take_their_time() {
        let files = Box::pin(async {
            sleep(Duration::from_secs(15)).await;
            Bytes::from_static(b"data: files\n\n")
        });
        let (sender, mut answer, _) = answer(None, Some(files));
        drop(sender.finish(Bytes::new(), completed()));
        assert_eq!(next(&mut answer).await.unwrap(), ": ping\n\n");
        assert_eq!(next(&mut answer).await.unwrap(), "data: files\n\ndata: [DONE]\n\n");
        assert_eq!(next(&mut answer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_up_cancels_the_turn_and_its_end_does_not() {
        let (sender, lost, cancelled) = answer(None, None);
        drop(lost);
        assert!(cancelled.load(Ordering::Relaxed) && sender.is_closed());

        let (sender, mut read, cancelled) = answer(None, None);
        drop(sender.finish(Bytes::new(), completed()));
        assert_eq!(next(&mut read).await.unwrap(), "data: [DONE]\n\n");
        drop(read);
        assert!(!cancelled.load(Ordering::Relaxed));
    }
}
