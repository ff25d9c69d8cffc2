//! The verbs over a whole conversation: it is read, compacted, replaced, continued under another name and taken back, and
//! goes on as such after kills, evictions and the loss of its transcript.

use std::path::{Path, PathBuf};

use pilotlight::config::PermissionPolicy;
use pilotlight::model::{MessagePage, Role};
use pilotlight::{Session, TurnError};

use super::bench::Bench;
use super::embedded::{ask, child, say};
use crate::common::{SOON, eventually};

/// What the API answers to the first message of a conversation that asks what was said.
const NOTHING: &str = "nothing was said";

/// More messages than any conversation here has.
const ALL: usize = 100;

async fn messages(session: &Session) -> MessagePage {
    session.messages(None, ALL).await.expect("the messages are read")
}

/// The first text of each message, else the kind of its first block.
fn said(page: &MessagePage) -> Vec<String> {
    let of_block = |block: &serde_json::Value| {
        let text = block["text"].as_str().or(block["type"].as_str());
        text.expect("a block has a type").to_owned()
    };
    page.messages.iter().map(|message| message.blocks.first().map(of_block).unwrap_or_default()).collect()
}

/// The id of the last message that says this.
fn place_of(page: &MessagePage, text: &str) -> usize {
    said(page)
        .iter()
        .rposition(|said| said.contains(text))
        .unwrap_or_else(|| panic!("{text}: {:?}", said(page)))
}

/// What the user has said so far, as the API gets it.
async fn recalled(session: &Session) -> String {
    let recalled = ask(session, "[[recall]]").await;
    assert!(recalled.is_ok() && !recalled.context_lost, "{recalled:?}");
    recalled.text
}

fn remove_transcripts(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let removed = paths.iter().map(|path| {
        if path.is_dir() && !path.is_symlink() {
            remove_transcripts(path)
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            usize::from(std::fs::remove_file(path).is_ok())
        } else {
            0
        }
    });
    removed.sum()
}

async fn kill(session: &Session) {
    let dying = child(session);
    dying.kill();
    eventually("it is gone", SOON, || !dying.is_alive()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_conversation_stays_compacted() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    assert_eq!(alice.compact().await, Err(TurnError::NothingToCompact), "it does not exist");
    alice.warm().await.expect("it starts");
    assert_eq!(alice.compact().await, Err(TurnError::NothingToCompact), "nothing was said");
    for word in ["word-one", "word-two", "word-three"] {
        say(&alice, word).await;
    }
    let before = alice.status().expect("it is there").total_cost_usd;
    let done = alice.compact().await.expect("it is compacted");
    assert!(done.tokens_before.is_some() && done.tokens_after.is_some(), "{done:?}");
    let after = alice.status().expect("it is there").total_cost_usd;
    assert!(
        done.cost_usd > 0.0 && (after - before - done.cost_usd).abs() < 1e-9,
        "{done:?} {before} {after}"
    );

    let is_compacted = async |session: &Session| {
        let known = recalled(session).await;
        assert!(known.contains("This session is being continued"), "{known}");
        assert!(!known.contains("word-one"), "the old context is back: {known}");
    };
    // Right after the compaction: the journal has it, whatever the file has.
    kill(&alice).await;
    is_compacted(&alice).await;
    say(&alice, "word-four").await;
    kill(&alice).await;
    is_compacted(&alice).await;
    alice.evict().await.expect("it is evicted");
    is_compacted(&alice).await;
    let page = messages(&alice).await;
    assert_eq!(said(&page)[0], "word-one", "what was said stays readable");
    assert_eq!(page.messages.iter().filter(|message| message.is_summary).count(), 1, "{:?}", said(&page));
    let of_user = page.messages.iter().filter(|message| message.role == Role::User && !message.is_summary);
    let texts: Vec<_> =
        of_user.map(|message| message.blocks[0]["text"].as_str().unwrap_or_default()).collect();
    let expected =
        ["word-one", "word-two", "word-three", "[[recall]]", "word-four", "[[recall]]", "[[recall]]"];
    assert_eq!(texts, expected, "no notes of the CLI");
    assert!(!said(&page).iter().any(|text| text == "No response requested."), "{:?}", said(&page));

    // Out of the journal alone, with the compaction in the middle and at the end.
    for at_end in [false, true] {
        if at_end {
            alice.compact().await.expect("it is compacted");
        }
        alice.evict().await.expect("it is evicted");
        assert!(remove_transcripts(&bench.place.data_dir().join("sessions")) > 0);
        is_compacted(&alice).await;
    }
    assert!(recalled(&alice).await.contains("[[recall]]"));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_context_has_ways_out() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    say(&alice, "word-one").await;
    let at = messages(&alice).await.messages[1].uuid.clone();
    let full = ask(&alice, "[[too_long]]").await;
    assert_eq!(super::embedded::failure(&full).kind, "context_full");
    // Versions differ in what they leave out of the summary.
    let compacted = alice.compact().await;
    let is_typed =
        |error: &TurnError| matches!(error, TurnError::CompactFailed { .. } | TurnError::NothingToCompact);
    assert!(compacted.as_ref().err().is_none_or(is_typed), "{compacted:?}");
    alice.rewind(&at, false).await.expect("it is taken back");
    assert_eq!(recalled(&alice).await, "word-one");
    alice.reset(false).await.expect("it begins again");
    assert_eq!(recalled(&alice).await, NOTHING);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_leaves_nothing_of_the_conversation() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    alice.reset(false).await.expect("nothing is there");
    say(&alice, "word-one").await;
    let before = alice.status().expect("it is there");
    alice.reset(false).await.expect("it begins again");
    assert_eq!(messages(&alice).await, MessagePage::default());
    assert_eq!(recalled(&alice).await, NOTHING);
    let after = alice.status().expect("it is there");
    assert!(after.turns == before.turns + 1 && after.total_cost_usd > before.total_cost_usd, "{after:?}");
    kill(&alice).await;
    assert_eq!(recalled(&alice).await, "[[recall]]");
    let mut turn = alice.send("[[hold:open]]").await.expect("it is accepted");
    bench.api.entered("open", 1).await;
    assert_eq!(alice.reset(false).await, Err(TurnError::SessionBusy));
    alice.reset(true).await.expect("it begins again");
    while turn.next().await.is_some_and(|event| event.is_ok()) {}
    bench.api.release("open");
    assert_eq!(recalled(&alice).await, NOTHING);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_and_rewinds_go_on_from_any_message() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|config| config.permissions.policy = PermissionPolicy::Allow).await;
    let alice = system.alice();
    say(&alice, "word-one").await;
    let tools = r#"word-two [[tool:Bash {"command":"echo a"}]][[tool:Bash {"command":"echo b"}]]"#;
    say(&alice, tools).await;
    say(&alice, "word-three").await;
    let page = messages(&alice).await;
    let (two, three) = (place_of(&page, "word-two"), place_of(&page, "word-three"));
    let kinds: Vec<_> = said(&page)[two + 1..three].to_vec();
    let results = kinds.iter().filter(|kind| kind.as_str() == "tool_result").count();
    assert_eq!(results, 2, "{kinds:?}");
    let answer = &page.messages[1];
    assert!(answer.role == Role::Assistant && answer.usage.is_some() && answer.time.is_some(), "{answer:?}");

    // Also at a prompt without its answer, at calls without their results, and at one result of two.
    for at in [1, two, two + 1, two + 2, three + 1] {
        let message = &page.messages[at];
        let fork = alice.fork(&format!("fork {at}"), Some(&message.uuid)).await.expect("it is forked");
        assert_eq!(messages(&fork).await.messages[..], page.messages[..=at], "{at}");
        let known = recalled(&fork).await;
        assert_eq!(known.contains("word-two"), at >= two, "{at}: {known}");
        assert_eq!(known.contains("word-three"), at >= three, "{at}: {known}");
        fork.evict().await.expect("it is evicted");
    }
    assert_eq!(alice.fork("fork 1", None).await.err(), Some(TurnError::SessionExists));
    assert_eq!(alice.fork("other", Some("nobody")).await.err(), Some(TurnError::MessageNotFound));

    let before_tools = page.messages[two - 1].uuid.clone();
    alice.rewind(&before_tools, false).await.expect("it is taken back");
    assert_eq!(messages(&alice).await.messages[..], page.messages[..two]);
    assert_eq!(recalled(&alice).await, "word-one");
    kill(&alice).await;
    assert_eq!(recalled(&alice).await, "word-one | [[recall]]");
    alice.evict().await.expect("it is evicted");
    assert!(remove_transcripts(&bench.place.data_dir().join("sessions")) > 0);
    assert_eq!(recalled(&alice).await, "word-one | [[recall]] | [[recall]]");

    // Over a compaction, in both directions.
    alice.compact().await.expect("it is compacted");
    say(&alice, "word-five").await;
    let whole = alice.fork("whole", None).await.expect("it is forked");
    let known = recalled(&whole).await;
    assert!(known.contains("being continued") && known.contains("word-five"), "{known}");
    alice.rewind(&page.messages[1].uuid, false).await.expect("it is taken back");
    assert_eq!(recalled(&alice).await, "word-one");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn context_use_is_reported() {
    let Some(bench) = Bench::of_newest().await else { return };
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    assert_eq!(alice.context().await, Ok(None));
    say(&alice, "word-one").await;
    let used = alice.context().await.expect("it is known").expect("something is said");
    assert!(used.is_measured && used.max_tokens.is_some_and(|most| most >= 100_000), "{used:?}");
    assert!(used.total_tokens.is_some() && !used.categories.is_empty(), "{used:?}");
    alice.evict().await.expect("it is evicted");
    let used = alice.context().await.expect("it is known").expect("something is said");
    assert!(!used.is_measured && used.total_tokens.is_some_and(|tokens| tokens > 0), "{used:?}");
    system.end().await;
}
