//! One turn as the body of an answer: its events, signs of life while it is silent, its files if asked for, its end.
//!
//! Dropping the body (the caller hung up) drops the turn, which interrupts it; the child stays warm. Nothing is read
//! from the turn before the connection can take it: a slow reader slows its own CLI.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use tokio::time::{Instant, timeout};

use super::conclusion::Conclusion;
use super::heartbeat::Silence;
use crate::server::api::error::ApiError;
use crate::server::api::ready::StartedOnce;
use crate::server::auth::limits::TurnPermit;
use crate::server::conversations::Claim;
use crate::server::dialect::{Dialect, Ending, Render};
use crate::server::files::Written;
use crate::turn::{Outcome, Turn};

/// What a turn wrote; looked for when this is first polled.
pub(super) type Gathering = Pin<Box<dyn Future<Output = Written> + Send>>;

/// What a turn writes.
pub(super) trait Files: Send {
    /// Called with each lines of the turn: what was written before its first is not its own.
    fn turn_begins(&mut self);

    /// Called when it has ended.
    fn gather(self: Box<Self>) -> Gathering;
}

/// A turn on its way out.
pub(super) struct Answer {
    stage: Stage,
    dialect: Dialect,
    render: Box<dyn Render>,
    started_once: Arc<StartedOnce>,
    claim: Option<Claim>,
    /// Events that came before the answer was begun.
    first: Option<Bytes>,
    /// Whether the caller has been told anything.
    is_begun: bool,
    files: Option<Box<dyn Files>>,
    heartbeat: Duration,
    silence: Silence,
    log: Log,
    _permit: TurnPermit,
}

enum Stage {
    Lines(Box<Turn>),
    Files(Gathering, Box<Outcome>),
    /// Ended before anything was told: the answer is a status.
    Refused(ApiError),
    Ended,
}

/// What is logged about an accepted turn, once.
pub(super) struct Log {
    request_id: String,
    begin: Instant,
    outcome: &'static str,
    is_refusal: bool,
}

impl Log {
    /// `begin` is when the request came.
    pub(super) fn new(request_id: String, begin: Instant) -> Self {
        // What it stays if nobody reads to the end.
        Self { request_id, begin, outcome: "client_gone", is_refusal: false }
    }

    /// How the turn ended.
    pub(super) fn ended(&mut self, conclusion: &Conclusion) {
        (self.outcome, self.is_refusal) = (conclusion.word, conclusion.is_refusal);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let took_ms = self.begin.elapsed().as_millis();
        if self.is_refusal {
            tracing::info!(request_id = self.request_id, code = self.outcome, took_ms, "request refused");
        } else {
            tracing::info!(request_id = self.request_id, outcome = self.outcome, took_ms, "turn answered");
        }
    }
}

impl Answer {
    pub(super) fn new(
        turn: Turn,
        (dialect, render): (Dialect, Box<dyn Render>),
        started_once: Arc<StartedOnce>,
        claim: Option<Claim>,
        permit: TurnPermit,
        heartbeat: Duration,
        log: Log,
    ) -> Self {
        Self {
            stage: Stage::Lines(Box::new(turn)),
            dialect,
            render,
            started_once,
            claim,
            first: None,
            is_begun: false,
            files: None,
            heartbeat,
            silence: Silence::new(heartbeat),
            log,
            _permit: permit,
        }
    }

    /// Waits for the first events, so that a failure before them is a status and not an event; but no longer than a
    /// heartbeat, for then the caller wants a sign of life.
    pub(super) async fn begin(&mut self) -> Result<(), ApiError> {
        // Cancelled it loses nothing: all state is in `self`.
        self.first =
            timeout(self.heartbeat, poll_fn(|context| self.poll_frames(context))).await.unwrap_or(None);
        match &self.stage {
            Stage::Refused(error) => Err(error.clone()),
            _ => {
                // From here on there is a status: an error is an event.
                self.is_begun = true;
                Ok(())
            }
        }
    }

    /// Has the files told at the end.
    pub(super) fn gather(&mut self, files: Box<dyn Files>) {
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
                    // A future made anew for each poll loses nothing: it holds no state of its own.
                    let polled = pin!(turn.next_lines()).poll(context);
                    match polled {
                        Poll::Ready(Some(Ok(lines))) => {
                            if let Some(files) = &mut self.files {
                                files.turn_begins();
                            }
                            let mut frames = BytesMut::new();
                            self.render.lines(&lines, &mut frames);
                            // What is not shown is no sign of life.
                            if !frames.is_empty() {
                                return Poll::Ready(Some(self.told(frames)));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            return Poll::Ready(self.end(Ending::Lost(&error), None));
                        }
                        Poll::Ready(None) => {
                            let outcome = turn.outcome().cloned();
                            let outcome = outcome.unwrap_or_else(|| {
                                crate::turn::aborted(crate::error::TurnError::Internal("no outcome"))
                            });
                            match self.files.take() {
                                Some(files) => self.stage = Stage::Files(files.gather(), Box::new(outcome)),
                                None => return Poll::Ready(self.end(Ending::Told(&outcome), None)),
                            }
                        }
                        Poll::Pending => return self.poll_ping(context),
                    }
                }
                Stage::Files(gathering, outcome) => {
                    let Poll::Ready(files) = gathering.as_mut().poll(context) else {
                        return self.poll_ping(context);
                    };
                    let outcome = outcome.clone();
                    return Poll::Ready(self.end(Ending::Told(&outcome), Some(&files)));
                }
                Stage::Refused(_) | Stage::Ended => return Poll::Ready(None),
            }
        }
    }

    fn poll_ping(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        ready!(self.silence.poll(context));
        self.is_begun = true;
        Poll::Ready(Some(Bytes::from_static(self.render.ping())))
    }

    fn told(&mut self, frames: BytesMut) -> Bytes {
        self.is_begun = true;
        self.silence.broken();
        frames.freeze()
    }

    fn end(&mut self, ending: Ending<'_>, files: Option<&Written>) -> Option<Bytes> {
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
                Stage::Ended
            }
        };
        conclusion.settle(self.claim.take(), || self.render.text());
        matches!(self.stage, Stage::Ended).then(|| self.told(frames))
    }
}

impl Stream for Answer {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_frames(context).map(|frames| frames.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::adapter::claude::CLAUDE;
    use crate::error::TurnError;
    use crate::model::ids::{TurnId, UserId};
    use crate::server::auth::limits::Turns;
    use crate::server::dialect::{Asked, Frame, renderer};
    use crate::turn::{Status, TurnSender, turn_channel};

    struct Stub(Gathering);

    impl Files for Stub {
        fn turn_begins(&mut self) {}

        fn gather(self: Box<Self>) -> Gathering {
            self.0
        }
    }

    /// A turn, its answer with a heartbeat of ten seconds, and whether the turn was cancelled.
    fn answer() -> (TurnSender, Answer, Arc<AtomicBool>) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let seen = cancelled.clone();
        let cancel = Box::new(move || seen.store(true, Ordering::Relaxed));
        let (sender, turn) = turn_channel(TurnId(1), &CLAUDE, 8, 1 << 16, cancel, Box::new(|_| {}));
        let log = Log::new("id".to_owned(), Instant::now());
        let frame = Frame { session: "default".to_owned(), created: 0, model: String::new() };
        let render = renderer(&Asked::default(), &frame, turn.answer_reader(true), false);
        let permit = Arc::new(Turns::default()).permit(&UserId::new("u").unwrap(), 1).unwrap();
        let render = (Dialect::Original, render);
        let answer = Answer::new(turn, render, Arc::default(), None, permit, Duration::from_secs(10), log);
        (sender, answer, cancelled)
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
            usage: crate::model::Usage::default(),
            cost_usd: 0.0,
            cli_session_id: String::new(),
            retries: 0,
            context_lost: false,
            duration: Duration::ZERO,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_go_out_and_silence_is_broken() {
        let (sender, mut answer, _) = answer();
        put(&sender, b"{\"n\":0}\n");
        answer.begin().await.unwrap();
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
        let (sender, mut answer, _) = answer();
        answer.gather(Box::new(Stub(Box::pin(async { unreachable!("no files of a lost turn") }))));
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
        let (sender, mut answer, _) = answer();
        let failure = crate::model::Failure {
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
            Written::default()
        });
        let (sender, mut answer, _) = answer();
        answer.gather(Box::new(Stub(files)));
        drop(sender.finish(Bytes::new(), completed()));
        assert_eq!(next(&mut answer).await.unwrap(), ": ping\n\n");
        assert_eq!(next(&mut answer).await.unwrap(), "data: null\n\ndata: [DONE]\n\n");
        assert_eq!(next(&mut answer).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_whose_child_saw_nothing_is_given_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let conversations = crate::server::conversations::Conversations::new(directory.path().to_owned(), 4);
        let last = serde_json::from_value(serde_json::json!({ "role": "user", "content": "a" })).unwrap();
        let digest = crate::server::conversations::HistoryDigest::of(&[], &last, None);
        let user = UserId::new("u").unwrap();
        let claim = async || conversations.claim(&user, &digest).await.unwrap();
        for (error, is_same) in
            [(TurnError::Draining, true), (TurnError::Cancelled, false), (TurnError::Draining, true)]
        {
            let mut claimed = claim().await;
            let name = claimed.conversation().to_owned();
            claimed.mark_sent();
            let (sender, mut answer, _) = answer();
            answer.claim = Some(claimed);
            drop(sender.finish(Bytes::new(), crate::turn::aborted(error)));
            // The caller of one that is refused gets a status, the other one an event.
            answer.begin().await.ok();
            while next(&mut answer).await.is_some() {}
            drop(answer);
            assert_eq!(claim().await.conversation() == name, is_same);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_a_model_names_the_one_that_was_asked_for_and_says_what_was_lost() {
        for (dialect, lost) in
            [(Dialect::Anthropic, r#""context_lost":true"#), (Dialect::OpenAi, ": context_lost\n\n")]
        {
            let (sender, mut answer, _) = answer();
            let asked = Asked { dialect, model: "sonnet".to_owned(), ..Asked::default() };
            let frame = Frame { session: "s".to_owned(), created: 0, model: asked.model.clone() };
            let reader = crate::adapter::Adapter::answer_reader(&CLAUDE, true);
            (answer.dialect, answer.render) = (dialect, renderer(&asked, &frame, reader, false));
            let outcome = crate::turn::Outcome {
                context_lost: true,
                stop_reason: Some("tool_use".to_owned()),
                text: "local".to_owned(),
                ..completed()
            };
            drop(sender.finish(Bytes::new(), outcome));
            let told = next(&mut answer).await.unwrap();
            assert!(told.contains(r#""model":"sonnet""#) && told.contains(lost), "{told}");
            assert!(told.contains("local") && !told.contains("tool_use"), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_up_cancels_the_turn_and_its_end_does_not() {
        let (sender, lost, cancelled) = answer();
        drop(lost);
        assert!(cancelled.load(Ordering::Relaxed) && sender.is_closed());

        let (sender, mut read, cancelled) = answer();
        drop(sender.finish(Bytes::new(), completed()));
        assert_eq!(next(&mut read).await.unwrap(), "data: [DONE]\n\n");
        drop(read);
        assert!(!cancelled.load(Ordering::Relaxed));
    }
}
