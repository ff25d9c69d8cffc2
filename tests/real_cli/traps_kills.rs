//! Ends of the process at the worst instants. What was said is known afterwards, or its loss is said.

use std::path::PathBuf;
use std::time::Duration;

use pilotlight::model::SessionState;
use pilotlight::{Session, TurnError};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;

use super::bench::Bench;
use super::embedded::{aborted, ask, child, finish, read, say, send, until, until_state, until_text};
use crate::common::{SOON, eventually};

/// The file of the session's conversation.
async fn transcript(session: &Session) -> PathBuf {
    let projects = session.workspace().await.expect("directories").home.join(".claude/projects");
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries(projects).flat_map(|project| entries(project.path())).map(|entry| entry.path());
    let is_one = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "jsonl");
    match files.filter(is_one).collect::<Vec<_>>().as_slice() {
        [only] => only.clone(),
        other => panic!("not one transcript but {other:?}"),
    }
}

fn tells_a_loss(event: &Value) -> bool {
    event["type"] == "pilotlight" && event["subtype"] == "context_lost"
}

/// Without a journal the loss is said when the CLI is killed right after the very first answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_kill_after_first_answer_reports_loss() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(without_journal).await;
    let mut losses = 0;
    for delay in [0, 5, 10, 20, 30, 50] {
        let user = system.pilot.session(format!("user {delay}"));
        let mut turn = send(&user, "the word is heliotrope").await;
        let cli = child_of_turn(&user, &mut turn).await;
        until(&mut turn, "the result", |event| event["type"] == "result").await;
        sleep(Duration::from_millis(delay)).await;
        cli.kill();
        assert!(finish(turn).await.is_ok());
        let (events, next) = read(send(&user, "[[recall]]").await).await;
        assert!(next.is_ok(), "after {delay} ms: {next:?}");
        // The prompt may be on disk without its answer: then there is something to recall, and something lost.
        assert!(next.text.contains("heliotrope") || next.context_lost, "after {delay} ms: {next:?}");
        assert_eq!(events.first().is_some_and(tells_a_loss), next.context_lost, "after {delay} ms");
        losses += u32::from(next.context_lost);
    }
    // 2.1.332 writes before it answers.
    assert!(losses > 0 || super::is_since_332(), "the trap is not there: all was on disk at once");
    system.end().await;
}

async fn child_of_turn(session: &Session, turn: &mut pilotlight::Turn) -> crate::common::process::Process {
    until(turn, "the announcement", |event| event["subtype"] == "init").await;
    child(session)
}

/// Killed before the first turn nothing is missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_kill_before_first_turn_loses_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    alice.warm().await.expect("it starts");
    let cli = child(&alice);
    cli.kill();
    // Whether the death or the message is noticed first is left to chance.
    let first = ask(&alice, "the word is heliotrope").await;
    assert!(first.is_ok() && !first.context_lost, "{first:?}");
    assert_eq!(say(&alice, "[[recall]]").await, "the word is heliotrope");
    assert_eq!(bench.conversations().len(), 1);
    system.end().await;
}

/// What the CLI does by itself.
fn without_journal(config: &mut pilotlight::Config) {
    config.session.journal = pilotlight::config::JournalMode::Off;
}

/// Without a journal a conversation that the CLI refuses to resume starts again and reports the loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_05_refused_resume_starts_new_and_reports() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(without_journal).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    alice.evict().await.expect("it is stopped");
    std::fs::write(transcript(&alice).await, "nothing that the CLI can read\n").expect("written");
    // It refuses to resume what it cannot read, and to begin what is there.
    let (events, next) = read(send(&alice, "[[recall]]").await).await;
    assert!(next.is_ok() && next.context_lost, "{next:?}");
    let notice = events.first().expect("an event");
    assert!(tells_a_loss(notice) && notice["lost"] == "conversation", "{notice}");
    assert_eq!(next.text, "nothing was said");
    assert_eq!(bench.conversations().len(), 2, "it has a new id");
    // The new one is whole.
    say(&alice, "the herb is marjoram").await;
    alice.evict().await.expect("it is stopped");
    let recalled = ask(&alice, "[[recall]]").await;
    assert!(recalled.text.contains("marjoram") && !recalled.context_lost, "{recalled:?}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_a_session_id_that_is_in_use_is_no_end() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(without_journal).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    alice.evict().await.expect("it is stopped");
    let file = transcript(&alice).await;
    // Nothing to resume, and still enough for the CLI to call the id taken.
    std::fs::remove_file(&file).expect("removed");
    std::fs::create_dir(&file).expect("created");
    let next = ask(&alice, "[[recall]]").await;
    assert!(next.is_ok() && next.context_lost, "{next:?}");
    assert_eq!(next.text, "nothing was said");
    assert_eq!(alice.status().expect("in memory").restarts, 0, "refusals are no crashes");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_07_a_stop_right_after_an_answer_loses_nothing() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    for word in ["heliotrope", "marjoram", "bergamot"] {
        say(&alice, &format!("a word is {word}")).await;
        alice.evict().await.expect("it is stopped");
        assert!(bench.clis().is_empty());
    }
    let recalled = ask(&alice, "[[recall]]").await;
    assert_eq!(recalled.text, "a word is heliotrope | a word is marjoram | a word is bergamot");
    assert!(!recalled.context_lost);
    system.end().await;
}

/// An exit code that reports a failed turn is no crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_10_exit_code_of_failed_turn_is_no_crash() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "hello").await;
    assert!(!ask(&alice, "[[error:400]]").await.is_ok());
    alice.evict().await.expect("it is stopped");
    until_state(&alice, SessionState::Dormant).await;
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    let status = alice.status().expect("in memory");
    assert_eq!((status.restarts, status.generation), (0, 2));
    system.end().await;
}

/// A child that was stopped is found in seconds.
fn impatient(config: &mut pilotlight::Config) {
    config.session.stall_timeout = Duration::from_secs(1);
    config.session.ping_timeout = Duration::from_secs(1);
}

/// The old process is gone before its conversation is resumed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_18_old_process_is_gone_before_resume() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(impatient).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    bench.on_disk(1).await;
    // Stopped while idle: it would go on as if nothing had been, were it not gone for good.
    let stopped = child(&alice);
    stopped.signal(Signal::STOP);
    let turn = send(&alice, "[[hold:one]][[recall]]").await;
    bench.api.entered("one", 1).await;
    assert!(!stopped.is_alive());
    assert_eq!(bench.clis(), [child(&alice)]);
    bench.api.release("one");
    let outcome = finish(turn).await;
    assert_eq!((outcome.text.as_str(), outcome.retries), ("the word is heliotrope", 1), "{outcome:?}");
    // Stopped while busy, before a word of the answer: asked again, and not by two at once.
    bench.on_disk(2).await;
    let turn = send(&alice, "[[hold:two]][[say:after all]]").await;
    bench.api.entered("two", 1).await;
    let stopped = child(&alice);
    stopped.signal(Signal::STOP);
    bench.api.entered("two", 2).await;
    assert!(!stopped.is_alive());
    assert_eq!(bench.clis(), [child(&alice)]);
    bench.api.release("two");
    let outcome = finish(turn).await;
    assert_eq!((outcome.text.as_str(), outcome.retries), ("after all", 1), "{outcome:?}");
    assert_eq!(bench.conversations().len(), 1, "it is the same conversation");
    system.end().await;
}

/// A process stopped in mid-answer is replaced; its turn ends with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_stopped_in_mid_answer_is_replaced() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(impatient).await;
    let alice = system.alice();
    say(&alice, "the word is heliotrope").await;
    bench.on_disk(1).await;
    let mut turn = send(&alice, "[[say:beginning]][[hold:gate]]").await;
    until_text(&mut turn).await;
    let stopped = child(&alice);
    stopped.signal(Signal::STOP);
    let outcome = finish(turn).await;
    assert!(matches!(aborted(&outcome), TurnError::SessionLost(_)), "{outcome:?}");
    eventually("the stopped one is gone", SOON, || !stopped.is_alive()).await;
    assert!(say(&alice, "[[recall]]").await.contains("heliotrope"));
    system.end().await;
}
