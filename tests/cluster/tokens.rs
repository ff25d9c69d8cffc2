//! Callers who are known by their OAuth tokens alone, through a node that does not have their user.

use serde_json::json;

use crate::common::program::{Answer, message};
use crate::nodes::{Nodes, SIM};

/// A turn at a node, with these tokens and nothing else that tells the user.
async fn ask(cluster: &Nodes, node: usize, access: &str, refresh: &str, text: &str) -> Answer {
    let mut body = message(text);
    body["oauth_credentials"] =
        json!({ "access_token": access, "refresh_token": refresh, "expires_at": 4_102_444_800_000_i64 });
    let url = format!("{}/v1/messages/keepalive", cluster.nodes[node].client().http());
    let web = reqwest::Client::builder().no_proxy().build().unwrap();
    Answer::of(web.post(url).json(&body)).await
}

/// The node that has answered, and the other one of two.
fn answered_by(cluster: &Nodes, answer: &Answer) -> (usize, usize) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let owner = usize::from(answer.header("x-pilotlight-node") != cluster.nodes[0].name);
    (owner, 1 - owner)
}

/// The node that is asked knows the renewed tokens, and the one that has the user does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewed_tokens_find_their_user_elsewhere() {
    let Some(cluster) = Nodes::start(2, SIM).await else { return };
    let first = ask(&cluster, 0, "a1", "r1", "secret-word").await;
    let (owner, other) = answered_by(&cluster, &first);
    // One token after the other is renewed: both are known there now.
    for (access, refresh) in [("a2", "r1"), ("a2", "r2")] {
        let known = ask(&cluster, owner, access, refresh, "[[recall]]").await;
        assert!(known.text().contains("secret-word"), "{known:?}");
    }
    cluster.post(owner, "drain").await;
    let moved = ask(&cluster, owner, "a2", "r2", "[[recall]]").await;
    assert_eq!(answered_by(&cluster, &moved), (other, owner));
    assert!(moved.text().contains("secret-word"), "{moved:?}");
    // The new owner has learned them, and goes on from there by itself.
    let learned = ask(&cluster, other, "a3", "r2", "[[recall]]").await;
    assert!(learned.text().contains("secret-word"), "{learned:?}");
}

/// Neither another node nor a repetition takes from what a caller may do in a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_with_tokens_is_counted_once() {
    let config = format!("{SIM}[http]\nnew_users_per_minute = 1\nrequests_per_minute = 8\n");
    let Some(mut cluster) = Nodes::start(2, &config).await else { return };
    let first = ask(&cluster, 0, "a1", "r1", "hello").await;
    let (owner, other) = answered_by(&cluster, &first);
    // The user is new to each node once. Each node lets eight requests pass, and none counts at both.
    for node in [other, other, other, other, owner, owner, owner, owner, owner] {
        let answer = ask(&cluster, node, "a1", "r1", "hello").await;
        assert_eq!(answered_by(&cluster, &answer), (owner, other));
    }
    // Until the lease of its node ends, the request is tried again each 100 ms.
    cluster.nodes[owner].kill().await;
    let moved = ask(&cluster, other, "a1", "r1", "hello").await;
    assert_eq!(answered_by(&cluster, &moved), (other, owner));
}
