//! Clients that read hardly anything or are gone in mid-turn, in every dialect: their own turn ends, nothing is kept for
//! them, no child dies, and other clients are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use super::asking::{DIALECTS, Dialect, memory, nobody_was_harmed, without};
use crate::common::installed::say;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

/// What a connection's kernel buffers, the turn's channel and the allocator may hold, for all clients together.
const SLACK: u64 = 48 << 20;

/// What all turns ask for: a model is bound when a child starts.
const MODEL: &str = "claude-sonnet-4-5";

/// Sends a request for a stream and leaves its answer unread.
async fn ask(site: &Site, dialect: &Dialect, user: &str, text: &str) -> TcpStream {
    let mut body = dialect.plain(text);
    body["stream"] = true.into();
    // The header alone says whose turn it is, and what is bound is the same in each dialect: no other child is started.
    body["model"] = MODEL.into();
    let bound = ["mcp_servers", "system", "instructions", "fallback_model", "tools", "tool_choice"];
    let body = without(without(body, &["user", "metadata"]), &bound).to_string();
    let address = site.http.strip_prefix("http://").expect("http");
    let mut connection = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nx-pilotlight-user: {user}\r\n\
         x-pilotlight-session: work\r\ncontent-length: {}\r\n\r\n{body}",
        dialect.path,
        body.len()
    );
    connection.write_all(head.as_bytes()).await.expect("the request is sent");
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_byte_per_second_is_left_in_the_end() {
    let place = place();
    let (program, site) = Program::ready(&place, "[http]\nwrite_timeout = \"2s\"").await;
    nobody_was_harmed(&site).await;
    let before = memory(&program);
    let mut connections = Vec::new();
    for (number, dialect) in DIALECTS.iter().enumerate() {
        connections.push(ask(&site, dialect, &format!("slow-{number}"), "[[deltas:200000]]").await);
    }
    let begin = Instant::now();
    let mut pause = interval(Duration::from_secs(1));
    let all = connections.len() as f64;
    while site.metric("turns_total", &["outcome=\"cancelled\""]).await < all {
        pause.tick().await;
        for connection in &mut connections {
            connection.read_exact(&mut [0]).await.expect("what the kernel holds can be read");
        }
        let grown = memory(&program).saturating_sub(before);
        assert!(grown < SLACK, "{grown} bytes are held for {all} readers");
        assert!(begin.elapsed() < SOON, "they may hold their sessions for ever");
    }
    nobody_was_harmed(&site).await;
}

/// A whole turn in the same conversation.
async fn whole(site: &Site, user: &str, text: &str) -> Answer {
    let mut body = message(text);
    body["session_id"] = "work".into();
    body["model"] = MODEL.into();
    // Bound when a child starts, too.
    body["oauth_credentials"] = DIALECTS[0].plain(text)["oauth_credentials"].take();
    Answer::of(site.asking(user, &body)).await
}

/// Bob's turns, one after the other, until the signal to stop: how long each took.
async fn witness(site: Site, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let answer = site.turn("bob", "here").await.text();
        assert!(answer.ends_with("here"), "{answer}");
        took.push(begin.elapsed());
    }
    took.sort();
    took
}

fn shown(took: &[Duration]) -> String {
    let at = |share: usize| took.get((took.len() - 1) * share / 100).copied().unwrap_or_default();
    format!("{} turns, median {:?}, 99 % {:?}, longest {:?}", took.len(), at(50), at(99), at(100))
}

/// A thousand clients that vanish in mid turn harm nobody.
#[tokio::test(flavor = "multi_thread")]
async fn thousand_vanishing_clients_harm_no_other() {
    const CLIENTS: u64 = 1000;
    /// At once, each a user of its own: few enough children that two cores are not busy with their starts alone.
    const USERS: u64 = 20;
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let stop = Arc::new(AtomicBool::new(false));
    let quiet = {
        let stop = Arc::new(AtomicBool::new(false));
        let alone = witness(site.clone(), stop.clone());
        let (alone, ()) = tokio::join!(alone, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.store(true, Ordering::Relaxed);
        });
        alone
    };
    // Every user's first turn starts a child; the numbers are those of warm ones.
    for user in 0..USERS {
        assert_eq!(whole(&site, &format!("gone-{user}"), "hello").await.text(), "echo 1: hello");
    }
    let before = memory(&program);
    let mut beside = JoinSet::new();
    beside.spawn(witness(site.clone(), stop.clone()));
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for user in 0..USERS {
        let (site, next) = (site.clone(), next.clone());
        clients.spawn(async move {
            while let number @ ..CLIENTS = next.fetch_add(1, Ordering::Relaxed) {
                let dialect = &DIALECTS[number as usize % DIALECTS.len()];
                let user = format!("gone-{user}");
                let mut connection = ask(&site, dialect, &user, "[[deltas:1000]] [[delay:20]]").await;
                // Every second one is gone before the answer has begun. Fewer bytes than an answer's head.
                if number % 2 == 0 {
                    let mut head = [0; 15];
                    connection.read_exact(&mut head).await.expect("an answer begins");
                    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
                }
                drop(connection);
            }
        });
    }
    clients.join_all().await;
    let over = async || {
        let busy = site.metric("sessions", &["state=\"busy\""]).await;
        // Bob may be at work.
        (busy <= 1.0).then_some(())
    };
    eventually_some("the turns of all who are gone have ended", SOON, over).await;
    stop.store(true, Ordering::Relaxed);
    let beside = beside.join_all().await.concat();
    say(&format!("bob alone: {}; beside {CLIENTS} that vanish: {}", shown(&quiet), shown(&beside)));
    let grown = memory(&program).saturating_sub(before);
    assert!(grown < SLACK, "{grown} bytes are kept for clients that are gone");
    // Bob's child and the first of each of the others.
    assert_eq!(site.metric("spawns_total", &[]).await, USERS as f64 + 1.0, "a child was replaced");
    for user in 0..USERS {
        let answer = whole(&site, &format!("gone-{user}"), "back").await.text();
        assert!(answer.ends_with("back"), "{answer}");
    }
    nobody_was_harmed(&site).await;
}
