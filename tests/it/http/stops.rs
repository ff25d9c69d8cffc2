//! Signals: the first lets running turns end, the second does not.

use std::time::Duration;

use futures_util::StreamExt;
use rustix::process::Signal;

use crate::common::layout::session_dir;
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, UNTIL_GO, eventually, eventually_some};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_signal_drains() {
    let place = place();
    let config = "drain_timeout = \"60s\"\npermissions = { policy = \"allow\" }";
    let (mut program, site) = Program::ready(&place, config).await;
    let running =
        site.asking("alice", &message(&format!("{UNTIL_GO}[[say:to the very end]]"))).send().await.unwrap();
    assert_eq!(running.status(), 200);
    let work = || session_dir(&place.data_dir(), "alice", "default").join("work");
    eventually("the tool runs", SOON, || work().join("began").exists()).await;
    program.signal(Signal::TERM);
    let not_ready = async || Some(site.get("/readyz").await).filter(|answer| answer.status == 503);
    let answer = eventually_some("/readyz says 503", SOON, not_ready).await;
    assert!(answer.json()["reasons"][0].as_str().unwrap().contains("stopping"), "{answer:?}");
    assert_eq!(site.get("/livez").await.status, 200);
    let refused = site.turn("bob", "too late").await;
    let error = refused.error();
    assert_eq!((error.0, error.1.as_str()), (503, "draining"));
    assert!(!refused.header("retry-after").is_empty());
    for path in ["/v1/messages", "/v1/chat/completions"] {
        let refused = Answer::of(site.of("POST", path, "bob").json(&message("too late"))).await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &"draining".into()), "{path}");
    }
    assert!(program.is_running());
    std::fs::write(work().join("go"), "").unwrap();
    let whole = running.text().await.unwrap();
    assert!(whole.contains("to the very end") && whole.ends_with("data: [DONE]\n\n"), "{whole}");
    assert_eq!(program.code().await, Some(0));
    assert!(place.leftovers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn turn_outlasting_the_drain_gets_its_end() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "drain_timeout = \"300ms\"").await;
    let running = site.asking("alice", &message("[[deltas:1000]] [[delay:100]]")).send().await.unwrap();
    program.signal(Signal::INT);
    let whole = running.text().await.unwrap();
    assert!(whole.ends_with("data: [DONE]\n\n"), "{whole}");
    assert_eq!(program.code().await, Some(0));
    assert!(place.leftovers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_signal_ends_at_once() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "drain_timeout = \"60s\"").await;
    let running = site.asking("alice", &message("[[deltas:1000]] [[delay:1000]]")).send().await.unwrap();
    let mut pieces = running.bytes_stream();
    pieces.next().await.unwrap().unwrap();
    program.signal(Signal::TERM);
    let draining = async || (site.get("/readyz").await.status == 503).then_some(());
    eventually_some("the drain has begun", SOON, draining).await;
    program.signal(Signal::TERM);
    let begin = tokio::time::Instant::now();
    assert_eq!(program.code().await, Some(1));
    assert!(begin.elapsed() < Duration::from_secs(5));
    eventually("every child is gone", SOON, || place.processes().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_stops_at_once() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    assert_eq!(program.out().lines().count(), 1, "one line on standard output: {}", program.out());
    assert!(!program.err().contains("alice") && !program.err().contains("hello"), "{}", program.err());
    assert!(place.leftovers().is_empty());
}
