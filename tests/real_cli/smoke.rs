//! What must work with every version of the CLI, older ones too: ready, a turn, an interrupt, a kill, the conversation afterwards.

use super::bare::Bare;
use super::bench::Bench;
use super::embedded::{ask, child, failure, finish, read, say, send, until_text};
use crate::common::{SOON, eventually, shown};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke_test_passes() {
    let Some(bench) = Bench::new().await else { return };
    run(&bench, &super::version(), true).await;
}

pub(crate) async fn run(bench: &Bench, version: &str, tells_its_state: bool) {
    assert_eq!(states(bench).await, tells_its_state, "nothing may be built on it, or more could be");
    let system = bench.embed(|_| {}).await;
    let alice = system.alice();
    let before = bench.api.requests().len();
    alice.warm().await.expect("it is ready");
    let cli = child(&alice);
    assert_eq!(bench.api.requests().len(), before, "it costs nothing");
    let (events, outcome) = read(send(&alice, "the word is heliotrope [[say:noted]]").await).await;
    assert_eq!(outcome.text, "noted", "{outcome:?}");
    assert!(outcome.cost_usd > 0.0 && outcome.usage.output_tokens > 0, "{outcome:?}");
    let init = events.iter().find(|event| event["subtype"] == "init").expect("an announcement");
    assert_eq!(init["claude_code_version"], version, "{}", shown(&events));
    let mut turn = send(&alice, "[[say:beginning]][[hang]]").await;
    until_text(&mut turn).await;
    assert!(alice.interrupt().await.expect("it can be reached"));
    let outcome = finish(turn).await;
    assert!(failure(&outcome).interrupted, "{outcome:?}");
    assert_eq!(failure(&ask(&alice, "[[error:400]]").await).api_status.unwrap_or(400), 400);
    assert_eq!(say(&alice, "[[say:fine]]").await, "fine");
    assert_eq!(child(&alice), cli);
    // Left in order, and by force.
    alice.evict().await.expect("it is stopped");
    let recalled = ask(&alice, "the herb is marjoram [[recall]]").await;
    assert!(recalled.text.starts_with("the word is heliotrope") && !recalled.context_lost, "{recalled:?}");
    bench.on_disk_of("marjoram").await;
    let cli = child(&alice);
    cli.kill();
    eventually("it is gone", SOON, || !cli.is_alive()).await;
    let recalled = ask(&alice, "[[recall]]").await;
    assert!(recalled.text.contains("marjoram") && !recalled.context_lost, "{recalled:?}");
    system.end().await;
}

/// Whether the CLI says when it works and when it waits.
async fn states(bench: &Bench) -> bool {
    let mut cli = Bare::start(bench).await;
    let lines = cli.turn("hello").await;
    lines.iter().any(|line| line["subtype"] == "session_state_changed")
}
