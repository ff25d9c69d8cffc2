//! A CLI that does not start, starts late, or is not there.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Six crashes at start open the circuit and no storm follows.
#[tokio::test(flavor = "multi_thread")]
async fn fault_10_six_start_crashes_open_the_circuit() {
    // Nothing is seen of an open circuit where the crashes alone take longer than the pause.
    for pause in [Duration::from_secs(2), Duration::from_secs(10)] {
        if turns_at_an_open_circuit(pause).await > 0 {
            return;
        }
    }
    panic!("the circuit was never seen open");
}

/// Returns the number of turns that were surely sent and refused while the circuit was open.
async fn turns_at_an_open_circuit(pause: Duration) -> usize {
    let milliseconds = pause.as_millis();
    let config = format!("restart = {{ backoff = \"10ms\", circuit_pause = \"{milliseconds}ms\" }}");
    let attack = Attack::with(&config).await;
    let starts = attack.place.path().join("starts");
    attack.start_args(&format!("--fault crash-starts=6:{}", starts.display()));
    let count = || std::fs::metadata(&starts).map_or(0, |it| it.len());
    let began = Instant::now();
    let reply = attack.turn("hello").await;
    assert_eq!((reply.status, reply.code()), (503, "circuit_open"), "{reply:?}");
    assert_eq!(count(), 6, "five restarts are allowed in a minute");
    attack.state("failed").await;
    let mut refused = 0;
    // The seventh start works: half open, one turn is tried, and the circuit is closed.
    let answered = async || {
        let reply = attack.turn("hello").await;
        let started = count();
        // It opened after `began`, so it is open for the whole pause from then on, at least.
        if began.elapsed() < pause {
            assert_eq!((reply.status, reply.code()), (503, "circuit_open"));
            assert_eq!(started, 6, "nothing is started while the circuit is open");
            refused += 1;
            return None;
        }
        reply.error.is_none().then(|| reply.text())
    };
    assert_eq!(eventually_some("the circuit closes", SOON, answered).await, "echo 1: hello");
    assert_eq!(attack.site.metric("crash_loops_total", &[]).await, 1.0);
    assert_eq!(count(), 7);
    attack.over().await;
    refused
}

/// A slow start is waited for up to the limit.
#[tokio::test(flavor = "multi_thread")]
async fn fault_13_slow_start_is_awaited_up_to_limit() {
    let attack = Attack::with(
        "session = { spawn_timeout = \"3s\" }\nrestart = { circuit_pause = \"100ms\", intensity = 0 }",
    )
    .await;
    attack.start_args("--fault slow-start=2000");
    assert_eq!(attack.say("slow").await, "echo 1: slow");
    attack.evict(MALLORY).await;
    assert!(attack.entry().await["pid"].is_null());
    attack.start_args("--fault slow-start=60000");
    let began = Instant::now();
    let reply = attack.turn("too slow").await;
    assert_eq!((reply.status, reply.code()), (503, "cli_not_started"), "{reply:?}");
    assert!(reply.message().contains("spawn_timeout"), "{}", reply.message());
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(attack.site.metric("spawns_total", &["reason=\"start_timeout\""]).await, 1.0);
    attack.start_args("");
    let answered = async || attack.turn("well again").await.error.is_none().then_some(());
    eventually_some("the next start works", SOON, answered).await;
    attack.over().await;
}

/// A missing CLI is named in the error; installing it is enough.
#[tokio::test(flavor = "multi_thread")]
async fn fault_26_missing_cli_is_named_fix_suffices() {
    let attack = Attack::begin().await;
    let whole = std::fs::read(&attack.cli).unwrap();
    let replace = |content: Option<&[u8]>, mode: u32| {
        std::fs::remove_file(&attack.cli).ok();
        if let Some(content) = content {
            std::fs::write(&attack.cli, content).unwrap();
            std::fs::set_permissions(&attack.cli, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    let cases = [
        ("not_found", None, 0),
        ("eacces", Some(&whole[..]), 0o644),
        ("enoexec", Some(&b""[..]), 0o755),
        ("enoexec", Some(&b"no program"[..]), 0o755),
        // The interpreter is missing.
        ("not_found", Some(&b"#!/nonexistent\n"[..]), 0o755),
    ];
    for (number, (reason, content, mode)) in cases.into_iter().enumerate() {
        replace(content, mode);
        let label = format!("reason=\"{reason}\"");
        let before = attack.site.metric("spawns_total", &[&label]).await;
        // Each of another user, for a session pauses after such a failure.
        for _ in 0..5 {
            let reply = attack.turn_of(&format!("user {number}"), "hello").await;
            assert_eq!(reply.status, 503, "{reply:?}");
            assert!(matches!(reply.code(), "cli_not_started" | "circuit_open"), "{reply:?}");
        }
        let tried = attack.site.metric("spawns_total", &[&label]).await - before;
        assert!((1.0..=2.0).contains(&tried), "{reason}: {tried} starts for five turns");
    }
    attack::write_cli(&attack.cli);
    assert_eq!(attack.say("hello").await, "echo 1: hello");
    // Replaced by one that exits at once, while a child runs: the running one is not harmed.
    let old = attack.child().await;
    replace(Some(b"#!/bin/sh\nexit 3\n"), 0o755);
    assert_eq!(attack.say("still").await, "echo 2: still");
    assert_eq!(attack.child().await, old);
    attack::write_cli(&attack.cli);
    attack.over().await;
}
