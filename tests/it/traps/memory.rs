//! What the CLI keeps of a conversation, when, and under which name.

use super::*;
use crate::common::{SOON, eventually_some};

/// The `--resume` or `--session-id` of a process, with its value.
fn opening(pid: u32) -> (String, String) {
    let words = arguments(pid);
    let at = words.iter().position(|word| word == "--resume" || word == "--session-id");
    let at = at.unwrap_or_else(|| panic!("neither resumed nor begun: {words:?}"));
    (words[at].clone(), words[at + 1].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn trap_04_the_same_message_again_is_answered_again() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert_eq!(say(&alice, "same").await, "echo 1: same");
    assert_eq!(say(&alice, "same").await, "echo 2: same");
    written_down(&alice, "echo 2").await;
    killed_idle(&alice).await;
    assert_eq!(say(&alice, "same").await, "echo 3: same");
    // Also when it is pilotlight that sends it again: the first child dies after it had written the message down.
    let marker = bench.data.path().join("died");
    let again = ask(&alice, &format!("same [[fault:die-once={}]]", marker.display())).await;
    assert!(again.is_ok() && again.retries == 1, "{again:?}");
    bench.end().await;
}

/// Readiness costs no turn and a refused resume is no silence.
#[tokio::test(flavor = "multi_thread")]
async fn trap_05_readiness_is_free_refused_resume_seen() {
    // Every resume is refused, with a `result` and an exit in the place of the awaited answer.
    let refusing = |config: &mut Config| config.cli.args = vec!["--fault".into(), "refuse-resume".into()];
    let bench = Bench::with(refusing).await;
    let alice = bench.pilot.session("alice");
    assert_eq!(alice.warm().await.unwrap().turns, 0);
    assert_eq!(transcript(&alice).await, "", "readiness is reported without a message");
    let before = ask(&alice, "before").await;
    alice.evict().await.unwrap();
    let began = Instant::now();
    let outcome = ask(&alice, "after").await;
    assert!(outcome.is_ok() && outcome.context_lost, "the loss is said: {outcome:?}");
    assert_ne!(outcome.cli_session_id, before.cli_session_id, "the old id cannot begin again");
    assert!(began.elapsed() < Duration::from_secs(10), "nobody waits for an answer that never comes");
    let next = ask(&alice, "next").await;
    assert!(!next.context_lost, "a loss is reported once");
    bench.end().await;
}

/// Commands in the text do not lose the conversation.
#[tokio::test(flavor = "multi_thread")]
async fn trap_06_slash_command_keeps_conversation() {
    use pilotlight::config::SlashCommands;
    let bench = Bench::new().await;
    let answer = say(&bench.pilot.session("alice"), "/clear").await;
    assert!(answer.starts_with("echo 1:") && answer.contains("/clear"), "it is text: {answer}");
    bench.end().await;

    let bench = Bench::with(|config| config.cli.slash_commands = SlashCommands::Refuse).await;
    let error = bench.pilot.session("alice").send("/clear").await.unwrap_err();
    assert!(matches!(error, TurnError::InvalidPrompt(_)) && !error.reached_child());
    bench.end().await;

    let bench = Bench::with(|config| config.cli.slash_commands = SlashCommands::Pass).await;
    let alice = bench.pilot.session("alice");
    let first = ask(&alice, "forget this").await;
    let cleared = ask(&alice, "/clear").await;
    assert_ne!(first.cli_session_id, cleared.cli_session_id, "a new conversation");
    say(&alice, "after").await;
    alice.evict().await.unwrap();
    // The new conversation is the one that is resumed.
    assert_eq!(say(&alice, "[[recall]]").await, "after");
    assert_eq!(opening(pid(&alice)), ("--resume".to_owned(), cleared.cli_session_id));
    bench.end().await;
}

/// A stop right after the answer loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn trap_07_stop_after_answer_loses_nothing() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    for round in 1..=10 {
        assert_eq!(say(&alice, "x").await, format!("echo {round}: x"));
        alice.evict().await.unwrap();
    }
    bench.end().await;
}

/// A turn that the CLI had not written down when it died is brought back.
#[tokio::test(flavor = "multi_thread")]
async fn trap_07_unwritten_turn_is_restored() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    // Nothing of the first is on disk, of the others the beginning.
    let mut said = Vec::new();
    for text in ["first [[fault:crash-after]]", "second", "third [[fault:crash-after=kill]]", "fourth"] {
        let outcome = ask(&alice, text).await;
        assert!(outcome.is_ok() && !outcome.context_lost, "{outcome:?}");
        said.push(text);
    }
    assert_eq!(say(&alice, "[[recall]]").await, said.join(" | "));
    bench.end().await;
}

/// Later turns hang on a message that a child had written down when it died.
#[tokio::test(flavor = "multi_thread")]
async fn trap_07_message_without_an_answer_is_kept() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    assert_eq!(say(&alice, "first").await, "echo 1: first");
    let second = alice.send("second [[sleep:60000]]").await.unwrap();
    eventually_some("the message is written down", SOON, async || {
        transcript(&alice).await.contains("second").then_some(())
    })
    .await;
    drop(second);
    killed_idle(&alice).await;
    let before = say(&alice, "[[recall]]").await;
    alice.evict().await.unwrap();
    std::fs::remove_dir_all(alice.workspace().await.unwrap().home.join(".claude/projects")).unwrap();
    let outcome = ask(&alice, "[[recall]]").await;
    assert!(outcome.is_ok() && !outcome.context_lost, "{outcome:?}");
    assert!(outcome.text.starts_with(&before), "{before} became {}", outcome.text);
    bench.end().await;
}

/// Without a journal a turn that was lost before it was written down is said to be lost.
#[tokio::test(flavor = "multi_thread")]
async fn trap_07_unwritten_turn_is_reported_lost() {
    let bench = Bench::with(|config| config.session.journal = JournalMode::Off).await;
    let alice = bench.pilot.session("alice");
    // Dies right after the answer, before the transcript has it: nothing to resume.
    let first = ask(&alice, "first [[fault:crash-after]]").await;
    assert!(first.is_ok());
    let outcome = ask(&alice, "[[recall]]").await;
    assert!(outcome.context_lost, "{outcome:?}");
    assert_eq!(opening(pid(&alice)), ("--session-id".to_owned(), first.cli_session_id.clone()));
    written_down(&alice, "").await;
    let mut turn = alice.send("three [[fault:crash-after]]").await.unwrap();
    while turn.next().await.is_some() {}
    // The beginning is on disk and is resumed, the last turn is missing.
    let mut turn = alice.send("four").await.unwrap();
    let notice = turn.next().await.unwrap().unwrap().to_text().into_owned();
    assert!(notice.contains("context_lost") && notice.contains("latest_turns"), "{notice}");
    assert!(turn.finish().await.is_ok());
    assert_eq!(opening(pid(&alice)), ("--resume".to_owned(), first.cli_session_id));
    bench.end().await;
}

/// No two processes ever have one conversation.
#[tokio::test(flavor = "multi_thread")]
async fn trap_18_conversation_has_one_process() {
    let bench = Bench::with(|config| config.restart.intensity = 100).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "0").await;
    let (data, stop) =
        (bench.data.path().to_owned(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let stopped = stop.clone();
    let watch = std::thread::spawn(move || {
        let (mut most, mut looks) = (0, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            most = most.max(clis_of(&data, "alice").len());
            looks += 1;
        }
        (most, looks)
    });
    for round in 1..=8 {
        written_down(&alice, &format!("echo {round}")).await;
        match round % 3 {
            // A stopped process is still there, and would go on writing once continued.
            0 => {
                signal(pid(&alice), Signal::STOP);
                alice.evict().await.unwrap();
            }
            1 => drop(killed_idle(&alice).await),
            _ => alice.evict().await.unwrap(),
        }
        assert_eq!(say(&alice, &round.to_string()).await, format!("echo {}: {round}", round + 1));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (most, looks) = watch.join().unwrap();
    assert!(looks > 20, "the watcher hardly looked: {looks}");
    assert_eq!(most, 1, "two processes of one conversation");
    // One branch, nothing missing.
    assert_eq!(say(&alice, "[[recall]]").await, "0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8");
    bench.end().await;
}
