//! The body of a turn: order of frames, heartbeat, errors, files, cancellation.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::{Instant, sleep};

use super::*;
use crate::adapter::AnswerReader;
use crate::error::TurnError;
use crate::model::ids::{TurnId, UserId};
use crate::server::auth::limits::Turns;
use crate::server::dialect::{AnswerContext, TurnRequest, renderer};
use crate::turn::{Status, TurnSender, turn_channel};

struct Stub(Gathering);

impl TurnFiles for Stub {
    fn turn_begins(&mut self) {}

    fn gather(self: Box<Self>) -> Gathering {
        self.0
    }
}

/// A turn, its body with a heartbeat of ten seconds, and whether the turn was cancelled.
fn answer() -> (TurnSender, TurnBody, Arc<AtomicBool>) {
    let cancelled = Arc::new(AtomicBool::new(false));
    let seen = cancelled.clone();
    let cancel = Arc::new(move || seen.store(true, Ordering::Relaxed));
    let (sender, turn) = turn_channel(TurnId(1), 8, 1 << 16, cancel, Box::new(|_| {}));
    let log = TurnLog::new("id".to_owned(), Instant::now());
    let frame = AnswerContext { session: "default".to_owned(), created: 0, model: String::new() };
    let render = renderer(&TurnRequest::default(), &frame, AnswerReader::new(true), false);
    let permit = Arc::new(Turns::default()).permit(&UserId::new("u").unwrap(), 1).unwrap();
    let render = (Dialect::Legacy, render);
    let answer =
        TurnBody::new(turn, render, Arc::default(), Held::default(), permit, Duration::from_secs(10), log);
    (sender, answer, cancelled)
}

async fn next(answer: &mut TurnBody) -> Option<String> {
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
        tool_calls: Vec::new(),
        usage: crate::model::Usage::default(),
        cost_usd: 0.0,
        cli_session_id: String::new(),
        retries: 0,
        context_lost: false,
        duration: Duration::ZERO,
    }
}

#[tokio::test(start_paused = true)]
async fn lines_are_forwarded_with_heartbeats() {
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
async fn failure_is_an_event_before_the_end() {
    let (sender, mut answer, _) = answer();
    answer.send_files(Box::new(Stub(Box::pin(async { unreachable!("no files of a lost turn") }))));
    put(&sender, b"{}\n");
    drop(sender.finish(Bytes::new(), crate::turn::aborted(TurnError::Cancelled)));
    assert_eq!(next(&mut answer).await.unwrap(), "data: {}\n\n");
    let last = next(&mut answer).await.unwrap();
    assert!(last.starts_with("data: {\"error\":{\"code\":\"cancelled\""), "{last}");
    assert!(last.ends_with("}\n\ndata: [DONE]\n\n"), "{last}");
    assert_eq!(next(&mut answer).await, None);
}

#[tokio::test(start_paused = true)]
async fn cli_error_is_an_event_after_its_last_line() {
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
async fn files_come_last_with_heartbeats() {
    let files = Box::pin(async {
        sleep(Duration::from_secs(15)).await;
        ChangedFiles::default()
    });
    let (sender, mut answer, _) = answer();
    answer.send_files(Box::new(Stub(files)));
    drop(sender.finish(Bytes::new(), completed()));
    assert_eq!(next(&mut answer).await.unwrap(), ": ping\n\n");
    assert_eq!(next(&mut answer).await.unwrap(), "data: null\n\ndata: [DONE]\n\n");
    assert_eq!(next(&mut answer).await, None);
}

#[tokio::test(start_paused = true)]
async fn refused_turn_releases_its_claim_unchanged() {
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
        answer.held.claim = Some(claimed);
        drop(sender.finish(Bytes::new(), crate::turn::aborted(error)));
        // A refused caller gets a status, the other one an event.
        answer.begin().await.ok();
        while next(&mut answer).await.is_some() {}
        drop(answer);
        assert_eq!(claim().await.conversation() == name, is_same);
    }
}

#[tokio::test(start_paused = true)]
async fn answer_without_model_names_the_requested_one() {
    for (dialect, lost) in
        [(Dialect::Anthropic, r#""context_lost":true"#), (Dialect::OpenAi, ": context_lost\n\n")]
    {
        let (sender, mut answer, _) = answer();
        let asked = TurnRequest { dialect, model: "sonnet".to_owned(), ..TurnRequest::default() };
        let frame = AnswerContext { session: "s".to_owned(), created: 0, model: asked.model.clone() };
        let reader = AnswerReader::new(true);
        (answer.dialect, answer.render) = (dialect, renderer(&asked, &frame, reader, false));
        let outcome = crate::turn::Outcome {
            context_lost: true,
            stop_reason: Some("tool_use".to_owned()),
            text: "local".to_owned(),
            ..completed()
        };
        drop(sender.finish(Bytes::new(), outcome));
        let text = next(&mut answer).await.unwrap();
        assert!(text.contains(r#""model":"sonnet""#) && text.contains(lost), "{text}");
        assert!(text.contains("local") && !text.contains("tool_use"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_disconnect_cancels_the_turn() {
    let (sender, lost, cancelled) = answer();
    drop(lost);
    assert!(cancelled.load(Ordering::Relaxed) && sender.is_closed());

    let (sender, mut read, cancelled) = answer();
    drop(sender.finish(Bytes::new(), completed()));
    assert_eq!(next(&mut read).await.unwrap(), "data: [DONE]\n\n");
    drop(read);
    assert!(!cancelled.load(Ordering::Relaxed));
}
