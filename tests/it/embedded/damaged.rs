//! The two files of a conversation, each damaged or not, and a child that dies in the first turn after.

use std::path::Path;

use super::*;
use crate::common::layout::{record_dir, session_dir};

/// What is left of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    All,
    /// What was there before the second turn: a child that is killed in the moment of its end has written no more.
    First,
    Nothing,
}

/// What the second turn says, and whether it is answered.
const SECOND: [(&str, bool); 3] =
    [("second", true), ("second [[api_error:529]]", false), ("second [[refusal]]", false)];

/// What is left of the transcript and of the journal.
const DAMAGES: [(Left, Left); 6] = [
    (Left::All, Left::Nothing),
    (Left::First, Left::All),
    (Left::Nothing, Left::All),
    (Left::First, Left::Nothing),
    (Left::First, Left::First),
    (Left::Nothing, Left::First),
];

fn transcript(data: &Path, user: &str) -> std::path::PathBuf {
    let projects = session_dir(data, user, "default").join("home/.claude/projects");
    let project = std::fs::read_dir(projects).unwrap().next().unwrap().unwrap().path();
    std::fs::read_dir(project).unwrap().next().unwrap().unwrap().path()
}

fn damage(file: &Path, left: Left, first: u64) {
    let length = match left {
        Left::All => return,
        Left::First => first,
        Left::Nothing => 0,
    };
    std::fs::File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

/// Only what was answered and is in neither file is a loss.
#[tokio::test(flavor = "multi_thread")]
async fn only_answers_that_no_file_has_are_lost() {
    let data = tempfile::tempdir().unwrap();
    let cases: Vec<_> = SECOND
        .iter()
        .flat_map(|(text, is_answered)| DAMAGES.map(|damage| (*text, *is_answered, damage)))
        .enumerate()
        .map(|(number, case)| (format!("user-{number}"), case))
        .collect();
    let pilot = start(data.path(), |_| {}).await;
    for (user, _) in &cases {
        say(&pilot.session(user), "first").await;
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    let files = |user: &str| {
        [transcript(data.path(), user), record_dir(data.path(), user, "default").join("journal")]
    };
    let lengths = |user: &str| files(user).map(|file| std::fs::metadata(file).unwrap().len());
    let first: Vec<_> = cases.iter().map(|(user, _)| lengths(user)).collect();
    let pilot = start(data.path(), |_| {}).await;
    for (user, (second, ..)) in &cases {
        ask(&pilot.session(user), second).await;
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    for ((user, (_, _, (transcript, journal))), first) in cases.iter().zip(&first) {
        let [transcript_file, journal_file] = files(user);
        damage(&transcript_file, *transcript, first[0]);
        damage(&journal_file, *journal, first[1]);
    }
    let pilot = start(data.path(), |_| {}).await;
    for (user, (second, is_answered, (transcript, journal))) in &cases {
        let case = format!("{second}: transcript {transcript:?}, journal {journal:?}");
        let died = data.path().join(user);
        let asked = format!("[[recall]][[fault:die-once={}]]", died.display());
        let outcome = ask(&pilot.session(user), &asked).await;
        let has_all = *transcript == Left::All || *journal == Left::All;
        let is_lost = !has_all && *is_answered;
        let expected = match (has_all, transcript) {
            (true, _) => format!("first | {second}"),
            // What is lost is not looked for in part.
            (false, Left::Nothing) if is_lost => String::new(),
            (false, _) => "first".to_owned(),
        };
        assert_eq!((outcome.text, outcome.context_lost, outcome.retries), (expected, is_lost, 1), "{case}");
        assert!(!ask(&pilot.session(user), "again").await.context_lost, "{case}");
    }
    pilot.shutdown(Duration::from_secs(5)).await;
}

/// A conversation without any answer can lose none; the one in its place is a conversation like any other.
#[tokio::test(flavor = "multi_thread")]
async fn conversation_without_an_answer_is_no_loss() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    ask(&pilot.session("alice"), "first [[api_error:529]]").await;
    pilot.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_file(transcript(data.path(), "alice")).unwrap();
    damage(&record_dir(data.path(), "alice", "default").join("journal"), Left::Nothing, 0);
    let pilot = start(data.path(), |_| {}).await;
    let outcome = ask(&pilot.session("alice"), "second").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("echo 1: second", false));
    pilot.shutdown(Duration::from_secs(5)).await;
    std::fs::remove_file(transcript(data.path(), "alice")).unwrap();
    let pilot = start(data.path(), |_| {}).await;
    let outcome = ask(&pilot.session("alice"), "[[recall]]").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("second", false), "by its journal");
    pilot.shutdown(Duration::from_secs(5)).await;
}

/// The CLI finds nothing in a transcript that is there and empty.
#[tokio::test(flavor = "multi_thread")]
async fn empty_transcript_is_a_loss_only_of_answers() {
    for (first, is_lost) in [("first [[api_error:529]]", false), ("first", true)] {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), |_| {}).await;
        ask(&pilot.session("alice"), first).await;
        pilot.shutdown(Duration::from_secs(5)).await;
        damage(&transcript(data.path(), "alice"), Left::Nothing, 0);
        damage(&record_dir(data.path(), "alice", "default").join("journal"), Left::Nothing, 0);
        let pilot = start(data.path(), |_| {}).await;
        let outcome = ask(&pilot.session("alice"), "second").await;
        assert_eq!((outcome.text.as_str(), outcome.context_lost), ("echo 1: second", is_lost), "{first}");
        assert!(!ask(&pilot.session("alice"), "third").await.context_lost, "{first}");
        pilot.shutdown(Duration::from_secs(5)).await;
    }
}

/// A server is killed in a turn of which the CLI has written the answer and not the message: what was answered before is in
/// the file, and the CLI would go on behind the gap.
#[tokio::test(flavor = "multi_thread")]
async fn end_without_its_beginning_forgets_nothing() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    for user in ["alice", "bob"] {
        say(&pilot.session(user), "the word is heliotrope").await;
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    for user in ["alice", "bob"] {
        let file = transcript(data.path(), user);
        let text = std::fs::read_to_string(&file).unwrap();
        let answer = text.lines().rfind(|line| line.contains("\"type\":\"assistant\"")).unwrap();
        let mut answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        (answer["uuid"], answer["parentUuid"]) = ("late".into(), "cut off".into());
        std::fs::write(&file, format!("{text}{answer}\n")).unwrap();
    }
    let without = record_dir(data.path(), "bob", "default").join("journal");
    damage(&without, Left::Nothing, 0);
    let pilot = start(data.path(), |_| {}).await;
    let outcome = ask(&pilot.session("alice"), "[[recall]]").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("the word is heliotrope", false));
    let outcome = ask(&pilot.session("bob"), "[[recall]]").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("", true), "lost without a journal, and said");
    assert!(!ask(&pilot.session("bob"), "again").await.context_lost, "once");
    pilot.shutdown(Duration::from_secs(5)).await;
}

/// A conversation that was begun again is as any other without an answer, whatever the one before it had.
#[tokio::test(flavor = "multi_thread")]
async fn reset_conversation_without_answer_is_no_loss() {
    let data = tempfile::tempdir().unwrap();
    let off = |config: &mut Config| config.session.journal = JournalMode::Off;
    let pilot = start(data.path(), off).await;
    let alice = pilot.session("alice");
    say(&alice, "first").await;
    alice.reset(false).await.unwrap();
    // Ends without a message that a transcript could have.
    let turn = alice.send("[[sleep:60000]]").await.unwrap();
    eventually("it runs", || state(&alice) == SessionState::Busy).await;
    assert!(alice.interrupt().await.unwrap());
    assert!(!turn.finish().await.is_ok());
    pilot.shutdown(Duration::from_secs(5)).await;
    for file in std::fs::read_dir(transcript(data.path(), "alice").parent().unwrap()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let pilot = start(data.path(), off).await;
    let outcome = ask(&pilot.session("alice"), "second").await;
    assert_eq!((outcome.text.as_str(), outcome.context_lost), ("echo 1: second", false));
    pilot.shutdown(Duration::from_secs(5)).await;
}
