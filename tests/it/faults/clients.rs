//! Clients that hang up, hardly read, or come twice.

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Hanging up ends the turn and keeps the child.
#[tokio::test(flavor = "multi_thread")]
async fn fault_38_hang_up_ends_turn_keeps_child() {
    let attack = Attack::begin().await;
    attack.say("hello").await;
    let old = attack.child().await;
    for _ in 0..3 {
        attack.note_turn();
        let body = message("[[deltas:1000]] [[delay:100]]");
        let answer = attack.site.asking(MALLORY, &body).send().await.unwrap();
        let (mut pieces, mut seen) = (answer.bytes_stream(), Vec::new());
        while !String::from_utf8_lossy(&seen).contains("text_delta") {
            seen.extend(pieces.next().await.expect("a delta comes").unwrap());
        }
        drop(pieces);
        attack.state("idle").await;
        let next = attack.turn("next").await;
        assert!(next.text().ends_with("next"), "{}", next.text());
        assert_eq!(attack.child().await, old);
    }
    assert_eq!(attack.site.metric("turns_total", &["outcome=\"cancelled\""]).await, 3.0);
    attack.over().await;
}

/// A reader of one byte per second holds no memory and is disconnected in the end.
#[tokio::test(flavor = "multi_thread")]
async fn fault_39_slow_reader_is_bounded_and_cut_off() {
    let attack = Attack::with("http = { write_timeout = \"2s\" }").await;
    attack.say("hello").await;
    let body = message("[[deltas:200000]]").to_string();
    let mut connection =
        tokio::net::TcpStream::connect(attack.site.http.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /v1/messages/keepalive HTTP/1.1\r\nhost: localhost\r\nx-pilotlight-user: {MALLORY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    attack.note_turn();
    connection.write_all(head.as_bytes()).await.unwrap();
    let begin = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_secs(1));
    loop {
        pause.tick().await;
        // What the kernel holds for it is read a byte at a time; the answer is 40 MB.
        connection.read_exact(&mut [0]).await.unwrap();
        let grown = attack.resources().memory.saturating_sub(attack.before().memory);
        assert!(grown < 16 << 20, "{grown} bytes are held for it");
        // Only bob may be at work then.
        if attack.site.metric("turns_total", &["outcome=\"cancelled\""]).await == 1.0 {
            break;
        }
        assert!(begin.elapsed() < SOON, "it may hold its session for ever");
    }
    // The whole of it never came.
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).await.ok();
    assert!(!rest.ends_with(b"[DONE]\n\n\r\n0\r\n\r\n"), "it was served to the end");
    assert!(attack.say("next").await.ends_with("next"));
    attack.over().await;
}

/// Many connections of one user have one child.
#[tokio::test(flavor = "multi_thread")]
async fn fault_41_many_connections_share_one_child() {
    const CONNECTIONS: usize = 40;
    let attack = Attack::with("session = { turn_queue = 40 }").await;
    let watched = attack.place.clone();
    let server = attack.program.process();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let data = attack.place.data_dir();
    let watch = std::thread::spawn(move || {
        let mut most = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let session = crate::common::layout::variable(&data, MALLORY);
            let is_cli = |it: &&Process| {
                let arguments = it.arguments();
                it.was_given(&session)
                    && arguments.iter().any(|word| word == "--output-format")
                    && !arguments.iter().any(|word| word == "--term-grace-ms")
            };
            let family = crate::common::process::descendants(server.pid);
            most = most.max(family.iter().filter(is_cli).count());
        }
        drop(watched);
        most
    });
    let turns: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            attack.note_turn();
            let site = attack.site.clone();
            tokio::spawn(async move {
                (number, site.turn(MALLORY, &format!("[[sleep:5]]message {number}")).await)
            })
        })
        .collect();
    for turn in turns {
        let (number, answer) = turn.await.unwrap();
        let text = Reply::of(&answer).text();
        assert!(text.ends_with(&format!("message {number}")), "{number} got {text}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(watch.join().unwrap(), 1, "children at once");
    assert_eq!(attack.entry().await["generation"], 1);
    attack.over().await;
}
