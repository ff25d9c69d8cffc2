//! Children that are started ahead for users who are not known yet.

use std::path::{Path, PathBuf};

use super::*;
use crate::common::bench::signal;

/// As many spares as this are kept.
pub(super) fn spares(min: usize) -> impl FnOnce(&mut Config) {
    move |config| {
        config.spares.min = min;
        config.limits.starts_in_flight = 4;
    }
}

pub(super) async fn ready(bench: &Bench, count: usize) {
    eventually(&format!("{count} spares are ready"), || bench.pilot.spares_ready() == count).await;
}

/// The directories that are marked as those of spares.
pub(super) fn marked(data: &Path) -> Vec<PathBuf> {
    let marks = std::fs::read_dir(data.join("records/.spares")).into_iter().flatten().flatten();
    marks.map(|mark| data.join("sessions").join(mark.file_name())).collect()
}

/// The CLIs of spares, by the directories that are marked.
pub(super) fn spare_clis(data: &Path) -> Vec<u32> {
    let names: Vec<String> = marked(data)
        .iter()
        .map(|path| format!("PILOTLIGHT_SESSION={}", path.file_name().unwrap().to_str().unwrap()))
        .collect();
    let is_spare = |pid: &u32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let environ = String::from_utf8_lossy(&read("environ")).into_owned();
        command.contains("--output-format")
            && !command.contains("--term-grace-ms")
            && names.iter().any(|name| environ.contains(name.as_str()))
    };
    processes_in(data).into_iter().filter(is_spare).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomer_gets_a_process_that_was_there() {
    let template = tempfile::tempdir().unwrap();
    std::fs::write(template.path().join("notes"), "from the template").unwrap();
    let bench = Bench::with(|config| {
        spares(2)(config);
        config.workspace.template = Some(template.path().to_owned());
    })
    .await;
    ready(&bench, 2).await;
    let before = spare_clis(bench.data.path());
    assert_eq!(before.len(), 2);
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    assert_eq!(say(&alice, "[[env:PILOTLIGHT_SESSION]]").await.len(), 32);
    say(&bob, "the word is heliotrope").await;
    let (of_alice, of_bob) = (pid(&alice), pid(&bob));
    assert!(before.contains(&of_alice) && before.contains(&of_bob) && of_alice != of_bob);
    let work = bob.workspace().await.unwrap().work;
    assert_eq!(std::fs::read_to_string(work.join("notes")).unwrap(), "from the template");
    // Its files are its user's: another process resumes the conversation.
    bob.evict().await.unwrap();
    assert_eq!(say(&bob, "[[recall]]").await, "the word is heliotrope");
    assert_ne!(pid(&bob), of_bob);
    ready(&bench, 2).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_newcomers_takes_spares_first() {
    const NEWCOMERS: usize = 50;
    let bench = Bench::with(spares(4)).await;
    ready(&bench, 4).await;
    let before = spare_clis(bench.data.path());
    let asked: Vec<_> = (0..NEWCOMERS)
        .map(|number| {
            let session = bench.pilot.session(format!("user {number}"));
            tokio::spawn(async move {
                say(&session, &format!("the word of {number}")).await;
                (say(&session, "[[recall]]").await, pid(&session), session.workspace().await.unwrap().work)
            })
        })
        .collect();
    let (mut pids, mut works) = (Vec::new(), Vec::new());
    for (number, asked) in asked.into_iter().enumerate() {
        let (recalled, pid, work) = asked.await.unwrap();
        assert_eq!(recalled, format!("the word of {number}"), "another user's word");
        pids.push(pid);
        works.push(work);
    }
    let on_spares = before.iter().filter(|pid| pids.contains(pid)).count();
    assert_eq!(on_spares, 4, "all spares serve");
    pids.sort_unstable();
    pids.dedup();
    works.sort();
    works.dedup();
    assert_eq!((pids.len(), works.len()), (NEWCOMERS, NEWCOMERS), "each has its own");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_or_hung_spare_is_not_given_out() {
    let bench = Bench::with(spares(1)).await;
    ready(&bench, 1).await;
    let killed = spare_clis(bench.data.path())[0];
    signal(killed, rustix::process::Signal::KILL);
    let replacement = || {
        let now = spare_clis(bench.data.path());
        (bench.pilot.spares_ready() == 1).then(|| now.first().copied()).flatten()
    };
    eventually("the dead one is replaced", || replacement().is_some_and(|pid| pid != killed)).await;
    let stopped = replacement().expect("it is there");
    signal(stopped, rustix::process::Signal::STOP);
    let alice = bench.pilot.session("alice");
    say(&alice, "the word is heliotrope").await;
    assert_ne!(pid(&alice), stopped, "a stopped process answers no turn");
    eventually("the stopped one is gone", || !is_alive(stopped)).await;
    assert_eq!(say(&alice, "[[recall]]").await, "the word is heliotrope");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spare_gives_way_to_a_start_that_waits() {
    let bench = Bench::with(|config| {
        spares(1)(config);
        config.limits.max_children = 2;
        config.limits.queue_deadline = Duration::from_secs(8);
    })
    .await;
    ready(&bench, 1).await;
    let (alice, bob) = (bench.pilot.session("alice"), bench.pilot.session("bob"));
    say(&alice, "hello").await;
    let of_alice = pid(&alice);
    ready(&bench, 1).await;
    let spare = spare_clis(bench.data.path())[0];
    // Of another kind than the spare.
    let options = TurnOptions::default().model("another");
    let turn = bob.send_with("hello", options).await.unwrap();
    assert!(turn.finish().await.is_ok());
    assert_ne!(pid(&bob), spare);
    eventually("the spare is gone", || !is_alive(spare)).await;
    assert_eq!(pid(&alice), of_alice, "no session gave up its child for it");
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_follow_what_newcomers_want() {
    let bench = Bench::with(spares(1)).await;
    ready(&bench, 1).await;
    let ask_for = async |user: &str| {
        let session = bench.pilot.session(user);
        let turn = session.send_with("hello", TurnOptions::default().model("another")).await.unwrap();
        assert!(turn.finish().await.is_ok());
        pid(&session)
    };
    // Three in a minute: the spares may be as many as the minimum, and one of the kind that is wanted takes the place of the
    // first once that has waited for a minute. Taken by a user of its own kind it makes room at once.
    ask_for("alice").await;
    ask_for("bob").await;
    say(&bench.pilot.session("carol"), "hello").await;
    ready(&bench, 1).await;
    let spare = spare_clis(bench.data.path())[0];
    assert_eq!(ask_for("dave").await, spare);
    bench.end().await;
}

/// A CLI that ends at once is started again ever more seldom, and never given out.
#[tokio::test(flavor = "multi_thread")]
async fn broken_cli_is_not_started_in_a_loop() {
    let scripts = tempfile::tempdir().unwrap();
    let (script, starts) = (scripts.path().join("cli"), scripts.path().join("starts"));
    // Not where it is asked for its version.
    let line =
        format!("#!/bin/sh\ncase \"$*\" in *--print*) echo start >> {};; esac\nexit 1\n", starts.display());
    std::fs::write(&script, line).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let bench = Bench::with(|config| {
        spares(2)(config);
        config.cli.program = script.display().to_string();
        config.isolation.rungs = Vec::new();
    })
    .await;
    let count = || std::fs::read_to_string(&starts).unwrap_or_default().lines().count();
    let began = Instant::now();
    eventually("it was tried again", || count() >= 3).await;
    // After pauses of a second and of two.
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(bench.pilot.spares_ready(), 0);
    let data = bench.data.path();
    eventually("its directory is removed", || marked(data).is_empty()).await;
    bench.end().await;
}
