//! The streamed body of a turn: events, heartbeats, requested files, end.
//!
//! Dropping the body (the caller disconnected) drops the turn, which interrupts it; the child stays warm. The turn is
//! read only when the connection can send: a slow reader slows its own CLI.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use tokio::time::timeout;

use super::conclusion::Conclusion;
use super::conversation::Held;
use super::heartbeat::Heartbeat;
use super::judge::{Judge, Judged};
use super::log::TurnLog;
use crate::server::api::error::ApiError;
use crate::server::api::ready::StartedOnce;
use crate::server::auth::limits::TurnPermit;
use crate::server::dialect::{Dialect, Render, TurnEnd};
use crate::server::files::ChangedFiles;
use crate::turn::{Outcome, Turn};

type Judging = Pin<Box<dyn Future<Output = (Judged, Box<Judge>)> + Send>>;

/// Stores an answer, once polled.
type Saving = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Collects the files that a turn wrote, once polled.
pub(super) type Gathering = Pin<Box<dyn Future<Output = ChangedFiles> + Send>>;

pub(super) trait TurnFiles: Send {
    /// Called with each batch of lines: files written before the first one belong to earlier turns.
    fn turn_begins(&mut self);

    /// Called after the end of the turn.
    fn gather(self: Box<Self>) -> Gathering;
}

pub(super) struct TurnBody {
    stage: Stage,
    dialect: Dialect,
    render: Box<dyn Render>,
    started_once: Arc<StartedOnce>,
    held: Held,
    /// Events received before the response was started.
    first: Option<Bytes>,
    /// Whether the status is sent: errors are events from then on.
    is_begun: bool,
    files: Option<Box<dyn TurnFiles>>,
    pub(super) judge: Option<Box<Judge>>,
    interval: Duration,
    heartbeat: Heartbeat,
    log: TurnLog,
    _permit: TurnPermit,
}

enum Stage {
    Lines(Box<Turn>),
    /// The answer is compared with what is expected of it.
    Judging(Judging),
    Files(Gathering, Box<Outcome>),
    /// The last events, sent once the answer is stored.
    Last(Option<Saving>, BytesMut),
    /// Ended before the first event: the response is an error status.
    Refused(ApiError),
    Ended,
}

impl TurnBody {
    pub(super) fn new(
        turn: Turn,
        (dialect, render): (Dialect, Box<dyn Render>),
        started_once: Arc<StartedOnce>,
        held: Held,
        permit: TurnPermit,
        interval: Duration,
        log: TurnLog,
    ) -> Self {
        Self {
            stage: Stage::Lines(Box::new(turn)),
            dialect,
            render,
            started_once,
            held,
            first: None,
            is_begun: false,
            files: None,
            judge: None,
            interval,
            heartbeat: Heartbeat::new(interval),
            log,
            _permit: permit,
        }
    }

    /// Waits for the first events, so that a failure before them is a status; at most for one heartbeat interval.
    pub(super) async fn begin(&mut self) -> Result<(), ApiError> {
        // Cancel-safe: all state is in `self`.
        self.first =
            timeout(self.interval, poll_fn(|context| self.poll_frames(context))).await.unwrap_or(None);
        match &self.stage {
            Stage::Refused(error) => Err(error.clone()),
            _ => {
                self.is_begun = true;
                Ok(())
            }
        }
    }

    /// Sends these files before the end.
    pub(super) fn send_files(&mut self, files: Box<dyn TurnFiles>) {
        self.files = Some(files);
    }

    /// The next events; `None` after the last.
    pub(super) fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        loop {
            match &mut self.stage {
                Stage::Lines(turn) => {
                    // A new future per poll loses nothing, because it holds no state.
                    let polled = pin!(turn.next_lines()).poll(context);
                    match polled {
                        Poll::Ready(Some(Ok(lines))) => {
                            self.log.begun();
                            if let Some(files) = &mut self.files {
                                files.turn_begins();
                            }
                            let mut frames = BytesMut::new();
                            self.render.lines(&lines, &mut frames);
                            // Hidden lines do not count as activity.
                            if !frames.is_empty() {
                                return Poll::Ready(Some(self.sent(frames)));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            let lost = match &mut self.judge {
                                Some(judge) => judge.lost(error),
                                None => Err(error),
                            };
                            match lost {
                                Ok(outcome) => self.answered(outcome),
                                Err(error) => self.end(TurnEnd::Failed(&error), None),
                            }
                        }
                        Poll::Ready(None) => {
                            let outcome = turn.outcome().cloned();
                            let outcome = outcome.unwrap_or_else(|| {
                                crate::turn::aborted(crate::error::TurnError::Internal("no outcome"))
                            });
                            match self.judge.take() {
                                Some(mut judge) => {
                                    let id = turn.id();
                                    let judging = async move { (judge.judge(id, outcome).await, judge) };
                                    self.stage = Stage::Judging(Box::pin(judging));
                                }
                                None => self.answered(outcome),
                            }
                        }
                        Poll::Pending => return self.poll_ping(context),
                    }
                }
                Stage::Judging(judging) => {
                    let Poll::Ready((judged, judge)) = judging.as_mut().poll(context) else {
                        return self.poll_ping(context);
                    };
                    match judged {
                        Judged::Again(turn) => {
                            self.judge = Some(judge);
                            self.stage = Stage::Lines(turn);
                        }
                        Judged::Done(outcome) => self.answered(*outcome),
                    }
                }
                Stage::Files(gathering, outcome) => {
                    let Poll::Ready(files) = gathering.as_mut().poll(context) else {
                        return self.poll_ping(context);
                    };
                    let outcome = outcome.clone();
                    self.end(TurnEnd::Finished(&outcome), Some(&files));
                }
                Stage::Last(saving, frames) => {
                    if saving.as_mut().is_some_and(|saving| saving.as_mut().poll(context).is_pending()) {
                        return self.poll_ping(context);
                    }
                    let frames = std::mem::take(frames);
                    self.stage = Stage::Ended;
                    return Poll::Ready(Some(self.sent(frames)));
                }
                Stage::Refused(_) | Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    /// The answer is complete. Files come before the last frames.
    fn answered(&mut self, outcome: Outcome) {
        match self.files.take() {
            Some(files) => self.stage = Stage::Files(files.gather(), Box::new(outcome)),
            None => self.end(TurnEnd::Finished(&outcome), None),
        }
    }

    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        ready!(self.heartbeat.poll(context));
        self.is_begun = true;
        Poll::Ready(Some(Bytes::from_static(self.render.ping())))
    }

    fn sent(&mut self, frames: BytesMut) -> Bytes {
        self.is_begun = true;
        self.heartbeat.reset();
        frames.freeze()
    }

    fn end(&mut self, ending: TurnEnd<'_>, files: Option<&ChangedFiles>) {
        let conclusion = Conclusion::of(self.dialect, ending);
        self.log.ended(&conclusion);
        if conclusion.has_started {
            self.started_once.open();
        }
        let mut frames = BytesMut::new();
        self.stage = match &conclusion.error {
            Some(error) if !self.is_begun => Stage::Refused(error.clone()),
            _ => {
                self.render.end(ending, files, &mut frames);
                Stage::Last(None, frames)
            }
        };
        let mut held = std::mem::take(&mut self.held);
        let text = if held.needs_text() { self.render.text() } else { String::new() };
        let recording = held.recording.take();
        conclusion.settle(held, &text);
        let calls = conclusion.calls;
        if let (Some(recording), Some(document), Stage::Last(saving, _)) =
            (recording, self.render.document(), &mut self.stage)
        {
            *saving = Some(Box::pin(async move { recording.save(document, &text, &calls).await }));
        }
    }
}

impl Stream for TurnBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_frames(context).map(|frames| frames.map(Ok))
    }
}

#[cfg(test)]
mod tests;
