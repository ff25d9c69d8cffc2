//! One turn as the body of an answer: its lines, signs of life while it is silent, its files if asked for, its end.
//!
//! Dropping the body (the caller hung up) drops the turn, which interrupts it; the child stays warm. Nothing is read
//! from the turn before the connection can take it: a slow reader slows its own CLI.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep};

use super::app::App;
use super::files::Watch;
use super::wire::{DONE, PING, failure, frames};
use crate::error::TurnError;
use crate::turn::{Status, Turn};

type Gathering = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// A turn on its way out.
pub(super) struct Answer {
    app: Arc<App>,
    stage: Stage,
    /// Lines that came before the answer was begun.
    first: Option<Bytes>,
    files: Option<Watch>,
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
        app: Arc<App>,
        turn: Turn,
        first: Option<Bytes>,
        files: Option<Watch>,
        (request_id, begin): (String, Instant),
    ) -> Self {
        let heartbeat = app.pilot().config().http.heartbeat;
        let silence = Box::pin(sleep(heartbeat));
        // What it stays if nobody reads to the end.
        let log = Log { request_id, begin, outcome: "client_gone" };
        Self { app, stage: Stage::Lines(Box::new(turn)), first, files, heartbeat, silence, log }
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
                            self.stage = match self.files.take() {
                                Some(watch) => Stage::Files(Box::pin(gather(self.app.clone(), watch))),
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
        self.end(failure(error))
    }

    fn end(&mut self, last: Bytes) -> Bytes {
        self.stage = Stage::Ended;
        if last.is_empty() {
            return Bytes::from_static(DONE);
        }
        let mut all = BytesMut::from(last);
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

fn outcome(turn: &Turn) -> &'static str {
    match turn.outcome().map(|outcome| &outcome.status) {
        Some(Status::Completed) => "completed",
        Some(Status::Failed(_)) => "failed",
        Some(Status::Aborted(error)) => error.code(),
        None => "unknown",
    }
}

/// The events of the files, when it is this answer's turn to look.
async fn gather(app: Arc<App>, watch: Watch) -> Bytes {
    // Closed never.
    let _room = app.gathering().acquire().await;
    watch.events().await
}
