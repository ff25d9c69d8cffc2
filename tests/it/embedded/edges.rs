//! Edges that were wrong once.

use super::*;

/// Of credentials that arrive concurrently, each is written as a whole and the newest remains.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_credentials_newest_is_written_whole() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    let writers: Vec<_> = (1..=40)
        .map(|number| {
            let alice = alice.clone();
            let credentials = OauthCredentials::new(format!("access-{number}"), "refresh", number);
            tokio::spawn(async move { alice.write_credentials(&credentials).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    let home = alice.workspace().await.unwrap().home.join(".claude");
    let written = std::fs::read_to_string(home.join(".credentials.json")).unwrap();
    assert!(written.contains("access-40"), "{written}");
    assert_eq!(std::fs::read_dir(home).unwrap().count(), 1, "temporary files are left");
    bench.end().await;
}

/// A start clears the CLI's directory while credentials are written into it.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_written_while_a_child_starts() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    for number in 1..=3 {
        let outcome = ask(&alice, "[[deltas:3]][[fault:crash-mid]]").await;
        assert!(!outcome.is_ok(), "{outcome:?}");
        // The next child starts by now, or a moment later.
        for write in 0..20 {
            let access = format!("access-{number}-{write}");
            let credentials = OauthCredentials::new(access, "refresh", i64::from(number * 100 + write));
            alice.write_credentials(&credentials).await.unwrap();
        }
        assert!(ask(&alice, "hello").await.is_ok());
    }
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_is_given_up_locks_nobody_out() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    tokio::time::timeout(Duration::from_millis(1), alice.purge()).await.ok();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Ok(turn) = alice.send("again").await
            && turn.finish().await.is_ok()
        {
            break;
        }
        assert!(Instant::now() < deadline, "locked out");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.end().await;
}

/// A context loss that no turn reported yet survives the session's removal from memory and is reported once.
#[tokio::test(flavor = "multi_thread")]
async fn unreported_loss_survives_unload_reported_once() {
    // Without a journal a loss is possible.
    let off = |config: &mut Config| config.session.journal = JournalMode::Off;
    let bench = Bench::with(off).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "first").await;
    written_down(&alice, "first").await;
    // Answered, but never written down; the child that follows finds it out, without a caller to report to.
    say(&alice, "second [[fault:crash-after]]").await;
    eventually("a new child", || {
        alice.status().is_some_and(|s| s.generation == 2 && state(&alice) == SessionState::Idle)
    })
    .await;
    let Bench { pilot, data } = bench;
    drop(alice);
    pilot.shutdown(Duration::from_secs(5)).await;

    let bench = Bench { pilot: start(data.path(), off).await, data };
    let alice = bench.pilot.session("alice");
    let outcome = ask(&alice, "[[recall]]").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("first", true));
    assert!(!ask(&alice, "third").await.context_lost, "reported twice");
    bench.end().await;
}

/// The record of a session is there before its first child.
#[tokio::test(flavor = "multi_thread")]
async fn record_exists_before_first_child() {
    use std::os::unix::fs::PermissionsExt;
    let scripts = tempfile::tempdir().unwrap();
    let script = scripts.path().join("cli");
    std::fs::write(
        &script,
        "#!/bin/sh\ngrep -l $PILOTLIGHT_SESSION ../../../records/*/session.json && : > known\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).unwrap();
    let bench = Bench::with(|config| {
        config.cli.program = script.display().to_string();
        config.restart.intensity = 0;
        config.limits.starts_in_flight = 30;
    })
    .await;
    // Many at once, so that saving them takes its time.
    let asked: Vec<_> = (0..30)
        .map(|number| {
            let session = bench.pilot.session(format!("user {number}"));
            tokio::spawn(async move {
                session.warm().await.unwrap_err();
                session.workspace().await.unwrap().work.join("known").exists()
            })
        })
        .collect();
    for known in asked {
        assert!(known.await.unwrap(), "a child ran, and no record has it");
    }
    bench.end().await;
}

/// A purge in the instant a session leaves memory deletes it for good.
#[tokio::test(flavor = "multi_thread")]
async fn purge_during_unload_deletes_session() {
    let bench = Bench::with(|config| config.session.idle_timeout = Duration::from_millis(20)).await;
    let rounds: Vec<_> = (0..30)
        .map(|number| {
            let session = bench.pilot.session(format!("user {number}"));
            tokio::spawn(async move {
                say(&session, "hello").await;
                while session.status().is_some() {
                    tokio::task::yield_now().await;
                }
                session.purge().await
            })
        })
        .collect();
    for round in rounds {
        round.await.unwrap().unwrap();
    }
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    assert_eq!(crate::common::layout::session_dirs(bench.data.path()).len(), 0, "something came back");
}

/// A first message in the instant of a shutdown is answered at once.
#[tokio::test(flavor = "multi_thread")]
async fn first_message_during_shutdown_is_rejected_fast() {
    for round in 0..20 {
        let bench = Bench::new().await;
        let began = Instant::now();
        let asked: Vec<_> = (0..40)
            .map(|number| {
                let session = bench.pilot.session(format!("user {number}"));
                tokio::spawn(async move { session.send("hello").await.map(drop) })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(150 * round)).await;
        bench.pilot.shutdown(Duration::ZERO).await;
        for answer in asked {
            let answer = answer.await.unwrap();
            assert!(matches!(answer, Ok(()) | Err(TurnError::Draining)), "{answer:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        bench.end().await;
    }
}

/// A turn that arrives with a purge comes before it, and ends with the session, or after it, and begins another one: no
/// session comes back that was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn turn_beside_a_purge_finds_all_or_nothing() {
    let data = tempfile::tempdir().unwrap();
    let names = || (0..40).map(|number| format!("user {number}"));
    let pilot = start(data.path(), |_| {}).await;
    for name in names() {
        say(&pilot.session(name), "before").await;
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    for _ in 0..3 {
        let pilot = start(data.path(), |config| config.limits.starts_in_flight = 8).await;
        let rounds: Vec<_> = names()
            .map(|name| {
                let (purged, asked) = (pilot.session(&name), pilot.session(&name));
                tokio::spawn(async move {
                    let (purge, turn) = tokio::join!(purged.purge(), asked.send("meanwhile"));
                    purge.unwrap();
                    match turn {
                        Ok(turn) => {
                            let outcome = turn.finish().await;
                            assert!(!outcome.context_lost, "{outcome:?}");
                        }
                        Err(error) => assert_eq!(error, TurnError::SessionDeleted),
                    }
                    assert!(!ask(&asked, "after").await.context_lost);
                })
            })
            .collect();
        for round in rounds {
            round.await.unwrap();
        }
        pilot.shutdown(Duration::from_secs(5)).await;
    }
    assert!(crate::common::layout::session_dirs(data.path()).len() <= names().count());
}
