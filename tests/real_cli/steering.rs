//! Texts for a turn that runs: read when a tool ends, never a turn of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotlight::config::PermissionPolicy;
use pilotlight::model::SteerError;
use pilotlight::{Config, Session};
use tokio::time::timeout;

use super::bench::Bench;
use super::embedded::{child, failure, finish, say, send};
use crate::common::{SOON, eventually};

/// A tool that ends when the file `go` is there.
const TOOL: &str =
    r#"[[tool:Bash {"command":"touch began; while ! test -e go; do sleep 0.05; done; rm go"}]]"#;

fn allows(config: &mut Config) {
    config.permissions.policy = PermissionPolicy::Allow;
}

async fn began(session: &Session) -> PathBuf {
    let work = session.workspace().await.expect("directories").work;
    eventually("the tool runs", SOON, || work.join("began").exists()).await;
    work
}

/// Puts a text into the turn, and does the rest when the CLI has noted it in its transcript.
async fn steer(session: &Session, text: &str, then: impl AsyncFnOnce()) -> Result<bool, SteerError> {
    steer_as(session, text, text, then).await
}

async fn steer_as(
    session: &Session,
    text: &str,
    sent: &str,
    then: impl AsyncFnOnce(),
) -> Result<bool, SteerError> {
    let home = session.workspace().await.expect("directories").home;
    let noted = async {
        eventually("the CLI has the text", SOON, || contains(&home.join(".claude/projects"), sent)).await;
        then().await;
    };
    let steering =
        async { timeout(Duration::from_secs(60), session.steer(text)).await.expect("answered in time") };
    tokio::join!(steering, noted).0
}

/// Whether a file below a directory has this text.
fn contains(dir: &Path, text: &str) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let is_there = |path: &Path| std::fs::read_to_string(path).is_ok_and(|read| read.contains(text));
        if path.is_dir() { contains(&path, text) } else { is_there(&path) }
    })
}

/// Whether a request to the API has the text.
fn was_sent(bench: &Bench, text: &str) -> bool {
    bench.api.requests().iter().any(|request| request.body["messages"].to_string().contains(text))
}

/// It is part of the conversation: of what is said later, and of its list. A command is a text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_read_when_the_tool_ends() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(allows).await;
    let alice = system.alice();
    for (text, read) in [("hurry up", "hurry up"), ("\n/clear", "Note: /clear")] {
        let turn = send(&alice, TOOL).await;
        let work = began(&alice).await;
        let steering = steer_as(&alice, text, read, async || {
            std::fs::remove_file(work.join("began")).expect("it is there");
            std::fs::write(work.join("go"), "").expect("it ends");
        });
        let (outcome, was_taken) = tokio::join!(finish(turn), steering);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(was_taken, Ok(true), "{text}");
        assert!(was_sent(&bench, read), "{text}");
        // The next turn is the caller's own.
        assert_eq!(say(&alice, "[[say:mine]]").await, "mine");
        let last = bench.api.requests().pop().expect("one");
        assert!(last.body["messages"].to_string().contains(read), "it stays in the conversation");
        let said = alice.messages(None, 100).await.expect("readable").messages;
        let shown = said.iter().any(|message| message.blocks.iter().any(|block| block["text"] == read));
        assert!(shown, "{said:#?}");
    }
    system.end().await;
}

/// Without a tool the CLI would read it after the turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_for_a_turn_without_tools_is_not_sent() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(allows).await;
    let alice = system.alice();
    assert_eq!(alice.steer("nobody").await, Err(SteerError::NoRunningTurn));
    let turn = send(&alice, "[[say:a]][[hold:text]][[say:b]]").await;
    bench.api.entered("text", 1).await;
    let steering = alice.steer("too late");
    let ending = async {
        // Goes the same way behind the text, and is answered.
        alice.context().await.expect("asked");
        bench.api.release("text");
        finish(turn).await
    };
    let (was_taken, outcome) = tokio::join!(timeout(SOON, steering), ending);
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(was_taken.expect("answered in time"), Ok(false));
    assert_eq!(say(&alice, "[[say:mine]]").await, "mine");
    assert!(!was_sent(&bench, "too late"));
    system.end().await;
}

/// An interrupt would leave it to a turn of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupt_takes_a_text_back() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(allows).await;
    let alice = system.alice();
    let turn = send(&alice, TOOL).await;
    began(&alice).await;
    let cli = child(&alice);
    let interrupted = async || assert!(alice.interrupt().await.expect("it can be reached"));
    let (was_taken, outcome) = tokio::join!(steer(&alice, "never read", interrupted), finish(turn));
    assert!(failure(&outcome).interrupted, "{outcome:?}");
    assert_eq!(was_taken, Ok(false));
    assert_eq!(say(&alice, "[[say:mine]]").await, "mine");
    assert_eq!(child(&alice), cli);
    assert!(!was_sent(&bench, "never read"));
    system.end().await;
}

/// The CLI ends the turn with the tool: 2.1.332 begins another one with the text, 2.1.197 keeps it for the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_25_text_that_is_left_mixes_no_turns() {
    let Some(bench) = Bench::of_newest().await else { return };
    let last_round = |config: &mut Config| {
        allows(config);
        config.cli.args = vec!["--max-turns".into(), "1".into()];
    };
    let system = bench.embed(last_round).await;
    let alice = system.alice();
    let turn = send(&alice, TOOL).await;
    let work = began(&alice).await;
    let ends = async || std::fs::write(work.join("go"), "").expect("it ends");
    let next = async {
        let outcome = finish(turn).await;
        assert!(!outcome.is_ok(), "{outcome:?}");
        say(&alice, "[[say:mine]]").await
    };
    let (was_taken, text) = tokio::join!(steer(&alice, "[[say:of nobody]]", ends), next);
    assert_eq!(text, "mine");
    was_taken.expect("answered");
    assert_eq!(say(&alice, "[[say:mine too]]").await, "mine too");
    assert_eq!(alice.status().expect("in memory").generation, 1, "one process did all of it");
    system.end().await;
}
