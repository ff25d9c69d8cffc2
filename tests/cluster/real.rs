//! The real CLI in a cluster: its conversation goes on where its node ends.

use std::time::Duration;

use crate::asker::{Asker, now};
use crate::common::api::Api;
use crate::common::installed;
use crate::history;
use crate::nodes::Nodes;

/// How soon the conversation goes on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);

/// Configuration of nodes with the real CLI; `None` if it is not installed.
pub fn config(api: &Api) -> Option<String> {
    let cli = installed::cli(installed::NEWEST)?;
    let environment = [
        ("ANTHROPIC_BASE_URL", api.url()),
        ("ANTHROPIC_API_KEY", "dummy"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("DISABLE_TELEMETRY", "1"),
    ];
    let entries = environment.map(|(name, value)| format!("env.{name} = {value:?}")).join("\n");
    Some(format!(
        "[cli]\nprogram = {cli:?}\nenv_pass = [\"PATH\"]\n{entries}\n[permissions]\npolicy = \"allow\"\n"
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_conversation_goes_on_on_another_node() {
    let api = Api::start().await;
    let Some(config) = config(&api) else { return };
    let Some(mut cluster) = Nodes::start(2, &config).await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    for word in ["amber", "[[tool:Bash {\"command\":\"echo basil > made\"}]]cedar"] {
        let end = alice.ask(&sites[0], word).await;
        assert!(end.is_good(), "{end:?}");
    }
    let owner = cluster.owner(0, "alice").await;
    cluster.nodes[owner].kill().await;
    let killed = now();
    let mut recalled = alice.ask(&sites[1 - owner], "[[recall]]").await;
    while recalled.code() == "node_lost" {
        recalled = alice.ask(&sites[1 - owner], "[[recall]]").await;
    }
    let took = killed.elapsed();
    installed::say(&format!("the real CLI goes on after {took:?}"));
    assert!(["amber", "cedar"].iter().all(|word| recalled.text().contains(word)), "{recalled:?}");
    assert!(took < GOES_ON_WITHIN, "{took:?}");
    // Its files are here as well.
    let file = format!("{}/v1/workspace/files/made?session=default", sites[1 - owner]);
    let made = reqwest::Client::new().get(file).header("x-pilotlight-user", "alice").send().await.unwrap();
    assert_eq!(made.text().await.unwrap().trim(), "basil");
    assert!(alice.ask(&sites[1 - owner], "dill").await.is_good());
    history::check(&cluster).await;
}
