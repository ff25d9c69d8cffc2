//! The ring: order, waiting, overflow, superseded readers.

use super::*;

fn holding(capacity: usize) -> Arc<Ring> {
    Arc::new(Ring::new(capacity, ErrorForm::Own, Arc::default()))
}

fn back(ring: &Arc<Ring>, last: &str) -> Result<Attached, ApiError> {
    Attached::again(ring.clone(), Some(last), Duration::from_secs(10))
}

fn text(polled: Poll<Option<Bytes>>) -> Option<String> {
    match polled {
        Poll::Ready(Some(bytes)) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
        Poll::Ready(None) => Some("end".to_owned()),
        Poll::Pending => None,
    }
}

async fn now(attached: &mut Attached) -> Option<String> {
    poll_fn(|context| Poll::Ready(text(attached.poll_events(context)))).await
}

fn event(number: u32) -> Vec<u8> {
    format!("data: {number}\n\n").into_bytes()
}

fn numbers(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

fn last_id(text: &str) -> &str {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().unwrap()
}

#[tokio::test(start_paused = true)]
async fn reattached_reader_continues_after_its_last_event() {
    let ring = holding(1 << 20);
    let mut first = Attached::first(ring.clone(), Duration::from_secs(10));
    for number in 0..3 {
        ring.push(&event(number)).await;
    }
    let seen = now(&mut first).await.unwrap();
    assert_eq!(numbers(&seen), ["0", "1", "2"]);
    drop(first);
    ring.push(&event(3)).await;
    let mut second = back(&ring, last_id(&seen)).unwrap();
    assert_eq!(numbers(&now(&mut second).await.unwrap()), ["3"]);
    assert_eq!(now(&mut second).await, None);
    let silent = tokio::time::Instant::now();
    let ping = poll_fn(|context| second.poll_events(context)).await;
    assert_eq!((ping.as_deref(), silent.elapsed()), (Some(PING), Duration::from_secs(10)));
    ring.end();
    assert_eq!(now(&mut second).await.as_deref(), Some("end"));
}

#[tokio::test]
async fn ring_waits_for_reader_and_drops_without_one() {
    let ring = holding(200);
    let mut attached = Attached::first(ring.clone(), Duration::from_secs(10));
    let writing = async {
        for number in 0..20 {
            ring.push(&event(number)).await;
        }
        ring.end();
    };
    let reading = async {
        let mut all = String::new();
        while let Some(events) = poll_fn(|context| attached.poll_events(context)).await {
            all.push_str(std::str::from_utf8(&events).unwrap());
        }
        all
    };
    let ((), all) = tokio::join!(writing, reading);
    assert_eq!(numbers(&all).len(), 20, "{all}");

    let ring = holding(200);
    for number in 0..20 {
        ring.push(&event(number)).await;
    }
    assert!(ring.lock().first > 10 && ring.lock().bytes <= 200);
    let gone = back(&ring, &format!("{}-0", ring.turn)).err().unwrap();
    assert_eq!(gone.status(), StatusCode::GONE);
    assert_eq!(back(&ring, "other-19").err().unwrap().status(), StatusCode::GONE);
    for wrong in ["", "x", "x-y", &format!("{}-20", ring.turn)] {
        assert_eq!(back(&ring, wrong).err().unwrap().status(), StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn latest_reader_supersedes() {
    let ring = holding(1 << 20);
    let mut first = Attached::first(ring.clone(), Duration::from_secs(10));
    let mut second = Attached::first(ring.clone(), Duration::from_secs(10));
    ring.push(&event(1)).await;
    assert_eq!(now(&mut first).await.as_deref(), Some("end"));
    drop(first);
    assert_eq!(numbers(&now(&mut second).await.unwrap()), ["1"]);
}

#[tokio::test]
async fn document_longer_than_ring_is_kept_whole() {
    let ring = holding(200);
    ring.push_last(&Value::String("x".repeat(1000))).await;
    ring.end();
    let mut attached = Attached::again(ring, None, Duration::from_secs(10)).unwrap();
    let all = now(&mut attached).await.unwrap();
    assert!(all.contains("xxx") && all.ends_with("data: [DONE]\n\n"), "{all}");
}

#[tokio::test(start_paused = true)]
async fn numbered_events_are_continued_by_number() {
    let numbered = |number: u32| {
        let text =
            format!("data: {{\"delta\":\"\\\"sequence_number\\\":7\",\"sequence_number\":{number}}}\n\n");
        text.into_bytes()
    };
    let ring = holding(1 << 20);
    ring.push(&numbered(0)).await;
    ring.push(b": permission {}\n\n").await;
    ring.push(&numbered(1)).await;
    ring.push(&numbered(2)).await;
    ring.end();
    let after =
        |ring: &Arc<Ring>, last| Attached::after_sequence(ring.clone(), last, Duration::from_secs(10));
    let seen = now(&mut after(&ring, 0).unwrap()).await.unwrap();
    assert!(seen.contains("permission") && seen.contains(":2}") && !seen.contains(":0}"), "{seen}");
    assert_eq!(now(&mut after(&ring, 2).unwrap()).await.as_deref(), Some("end"));
    assert_eq!(now(&mut after(&ring, 9).unwrap()).await.as_deref(), Some("end"));
    // The ring has run over.
    let ring = holding(300);
    for number in 0..9 {
        ring.push(&numbered(number)).await;
    }
    assert_eq!(after(&ring, 0).err().unwrap().code(), "events_gone");
    assert!(now(&mut after(&ring, 7).unwrap()).await.unwrap().contains(":8}"));
}
