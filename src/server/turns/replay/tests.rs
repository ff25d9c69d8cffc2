//! Detached turns: retention and reattachment.

use std::task::Poll;

use tokio_util::sync::CancellationToken;

use super::*;

fn replays() -> Replays {
    let closing = Closing { gracefully: CancellationToken::new(), now: CancellationToken::new() };
    Replays::new(1 << 20, Duration::from_secs(10), TaskTracker::new(), closing, Webhooks::none())
}

async fn read(mut attached: Attached) -> String {
    let mut all = String::new();
    while let Some(events) = poll_fn(|context| attached.poll_events(context)).await {
        all.push_str(std::str::from_utf8(&events).unwrap());
    }
    all
}

#[tokio::test(start_paused = true)]
async fn queued_turn_does_not_hide_the_running_one() {
    let (replays, alice) = (replays(), UserId::new("alice").unwrap());
    let begin = async |name: &'static str| {
        let (ring, attached) = replays.keep(&alice, "s", ErrorForm::Own);
        let (end, ended) = oneshot::channel::<()>();
        let filling = ring.clone();
        replays.run(&alice, "s", ring, async move {
            filling.push(format!("data: {name}\n\n").as_bytes()).await;
            ended.await.ok();
        });
        drop(attached);
        tokio::task::yield_now().await;
        end
    };
    let attach = |last: Option<&str>| replays.attach(&alice, "s", last);
    let first = begin("first").await;
    let second = begin("second").await;
    let mut running = attach(None).unwrap();
    let seen = poll_fn(|context| running.poll_events(context)).await.unwrap();
    assert!(seen.ends_with(b"data: first\n\n"), "{seen:?}");
    let seen = String::from_utf8(seen.to_vec()).unwrap();
    let id = seen.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    drop(running);
    drop(first);
    tokio::task::yield_now().await;
    // It has ended while the other one runs.
    assert_eq!(read(attach(Some(&id)).unwrap()).await, "");
    drop(second);
    assert!(read(attach(None).unwrap()).await.ends_with("data: second\n\n"));
    let third = begin("third").await;
    assert_eq!(replays.kept.iter().map(|rings| rings.len()).sum::<usize>(), 2, "one of the ended");
    assert_eq!(attach(Some(&id)).err().unwrap().status(), StatusCode::GONE);
    drop(third);
    tokio::time::sleep(KEPT_FOR * 2).await;
    assert!(replays.kept.is_empty());
    assert_eq!(attach(None).err().unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(replays.held.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn stop_waits_for_ends_that_are_not_reported() {
    let (replays, alice) = (Arc::new(replays()), UserId::new("alice").unwrap());
    let (ring, attached) = replays.keep(&alice, "s", ErrorForm::Own);
    let (end, ended) = oneshot::channel::<()>();
    replays.run(&alice, "s", ring, async move { drop(ended.await) });
    drop(attached);
    let mut settled = std::pin::pin!(replays.settle());
    let first = poll_fn(|context| Poll::Ready(settled.as_mut().poll(context))).await;
    assert!(first.is_pending(), "the turn's end is not reported");
    drop(end);
    let begun = tokio::time::Instant::now();
    settled.await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // One that never ends holds up no stop.
    let (ring, _attached) = replays.keep(&alice, "s", ErrorForm::Own);
    replays.run(&alice, "s", ring, std::future::pending());
    replays.settle().await;
}

#[tokio::test(start_paused = true)]
async fn reader_ends_with_a_failed_task() {
    let (replays, alice) = (replays(), UserId::new("alice").unwrap());
    let (ring, attached) = replays.keep(&alice, "s", ErrorForm::Own);
    replays.run(&alice, "s", ring, async { panic!("as a test") });
    let read = tokio::time::timeout(KEPT_FOR, read(attached)).await;
    assert_eq!(read.expect("the end"), "");
}

#[test]
fn frames_are_split_into_events() {
    let events: Vec<_> = split(b"event: a\ndata: 1\n\n: c\n\ndata: 2\n\n").collect();
    assert_eq!(events, [&b"event: a\ndata: 1\n\n"[..], b": c\n\n", b"data: 2\n\n"]);
    assert_eq!(split(b"").count(), 0);
}
