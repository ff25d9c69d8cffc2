//! What is about a user, wherever the user is.

use serde_json::{Value, json};

use crate::asker::Asker;
use crate::common::program::{Answer, holding};
use crate::common::{SOON, eventually_some};
use crate::history;
use crate::nodes::{LONG_LEASE, Nodes, SIM};

/// Deleted through a node that never had the user: nothing is left on any node, nor in the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_user_is_deleted_everywhere() {
    let Some(mut cluster) = Nodes::start(3, SIM).await else { return };
    let alice = Asker::new("alice", "default");
    let sites = cluster.sites();
    assert!(alice.ask(&sites[0], "first-secret-word").await.is_good());
    // Files of hers are on a node that was killed.
    let first = cluster.owner(0, "alice").await;
    cluster.nodes[first].kill().await;
    assert!(alice.ask(&sites[(first + 1) % 3], "second-secret-word").await.is_good());
    cluster.nodes[first].start().await;
    let second = cluster.owner(first, "alice").await;
    let third = 3 - first - second;
    let url = format!("{}/v1/users/alice", cluster.client(third).admin());
    let deleted = Answer::of(reqwest::Client::new().delete(url)).await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &true.into()), "{deleted:?}");
    for site in cluster.sites() {
        let end = alice.ask(&site, "[[recall]]").await;
        assert!(!end.text().contains("secret-word"), "{end:?}");
    }
    // Also not where she was first: it comes to light when she goes there again.
    let owner = cluster.owner(0, "alice").await;
    for node in (0..3).filter(|node| *node != first && *node != owner) {
        cluster.nodes[node].stop().await;
    }
    if owner != first {
        cluster.nodes[owner].kill().await;
    }
    let site = cluster.client(first).http().to_owned();
    let end = alice.ask(&site, "[[recall]]").await;
    assert!(!end.text().contains("secret-word"), "{end:?}");
    for node in &cluster.nodes {
        if node.is_running() {
            let left = holding(&node.place().data_dir(), "secret-word");
            assert!(left.is_empty(), "{left:?} on {}", node.name);
        }
    }
    let store = cluster.store();
    eventually_some("the store has nothing", SOON, async || {
        holding(&store, "secret-word").is_empty().then_some(())
    })
    .await;
    history::check(&cluster).await;
}

/// A deletion that the store does not answer fails, and a repetition completes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_without_the_store_is_repeated() {
    let config = format!("{SIM}[cluster]commit_timeout = \"2s\"\n");
    let Some(cluster) = Nodes::start(2, &config).await else { return };
    let alice = Asker::new("alice", "default");
    assert!(alice.ask(&cluster.sites()[0], "first-secret-word").await.is_good());
    let url = format!("{}/v1/users/alice", cluster.client(1).admin());
    let delete = async || Answer::of(reqwest::Client::new().delete(&url)).await;
    cluster.take_store();
    let refused = delete().await;
    let (status, code, _) = refused.error();
    assert_eq!((status, &*code), (503, "not_deleted"), "{refused:?}");
    cluster.give_store_back();
    let deleted = delete().await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &true.into()), "{deleted:?}");
    let left = holding(&cluster.store(), "secret-word");
    assert!(left.is_empty(), "the answer comes after the deletion: {left:?}");
    history::check(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asynchronous_turn_is_asked_for_at_any_node() {
    let Some(cluster) = Nodes::start(3, SIM).await else { return };
    let sites = cluster.sites();
    let owner = cluster.owner(0, "alice").await;
    let [one, other] = [1, 2].map(|step| (owner + step) % 3);
    let web = reqwest::Client::new();
    let ask = |node: usize, method: &str, path: &str| {
        let request = web.request(method.parse().unwrap(), format!("{}{path}", sites[node]));
        request.header("x-pilotlight-user", "alice")
    };
    let body = json!({ "model": "sonnet", "max_tokens": 9,
        "messages": [{ "role": "user", "content": "[[sleep:500]]later-word" }] });
    let begun = ask(one, "POST", "/v1/messages").header("prefer", "respond-async").json(&body);
    let begun = Answer::of(begun).await;
    assert_eq!(begun.status, 202, "{begun:?}");
    let id = begun.json()["id"].as_str().expect("an id").to_owned();
    let done = eventually_some("the turn is done", SOON, async || {
        let turn = Answer::of(ask(other, "GET", &format!("/v1/turns/{id}"))).await;
        assert_eq!(turn.status, 200, "{turn:?}");
        turn.body.contains("later-word").then_some(turn)
    })
    .await;
    assert_eq!(done.header("x-pilotlight-node"), cluster.nodes[owner].name);
    // An operator sees the sessions of all nodes at each.
    for user in ["bob", "carol", "dave", "erin"] {
        assert!(Asker::new(user, "default").ask(&sites[one], "hello").await.is_good());
    }
    for site in &sites {
        let list = Answer::of(web.get(format!("{site}/v1/sessions"))).await.json();
        let sessions: Vec<&Value> = list["sessions"].as_array().expect("sessions").iter().collect();
        assert_eq!(sessions.len(), 5, "{list}");
    }
}

/// Turns of a user, as the owner counts them.
async fn turns(cluster: &Nodes, user: &str) -> u64 {
    let request = reqwest::Client::new().get(format!("{}/v1/usage", cluster.sites()[0]));
    let usage = Answer::of(request.header("x-pilotlight-user", user)).await.json();
    let days = usage["days"].as_array().expect("days");
    days.iter().map(|day| day["turns"].as_u64().expect("a number")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_returns_has_turns_of_both_nodes() {
    let Some(cluster) = Nodes::start(2, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    for word in ["first-word", "second-word"] {
        assert!(alice.ask(&sites[0], word).await.is_good());
    }
    let first = cluster.owner(0, "alice").await;
    cluster.post(first, "drain").await;
    assert!(alice.ask(&sites[first], "third-word").await.is_good());
    assert_eq!(cluster.owner(first, "alice").await, 1 - first);
    assert_eq!(turns(&cluster, "alice").await, 3);
    cluster.post(first, "resume").await;
    cluster.post(1 - first, "drain").await;
    assert!(alice.ask(&sites[first], "fourth-word").await.is_good());
    assert_eq!(cluster.owner(first, "alice").await, first);
    assert_eq!(turns(&cluster, "alice").await, 4);
    history::check(&cluster).await;
}

/// The node that lost the user knew of one turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_who_was_lost_returns_with_all_turns() {
    let Some(cluster) = Nodes::start(2, SIM).await else { return };
    let (alice, sites) = (Asker::new("alice", "default"), cluster.sites());
    assert!(alice.ask(&sites[0], "first-word").await.is_good());
    let first = cluster.owner(0, "alice").await;
    let second = 1 - first;
    cluster.nodes[first].pause();
    eventually_some("the other node has the user", SOON, async || {
        alice.ask(&sites[second], "second-word").await.is_good().then_some(())
    })
    .await;
    assert!(alice.ask(&sites[second], "third-word").await.is_good());
    cluster.nodes[first].resume();
    // The first turn may have been spent in the last second before the node stood still.
    let counted = turns(&cluster, "alice").await;
    assert!(counted >= 2, "{counted}");
    cluster.post(second, "drain").await;
    assert!(alice.ask(&sites[second], "fourth-word").await.is_good());
    assert_eq!(cluster.owner(second, "alice").await, first);
    assert_eq!(turns(&cluster, "alice").await, counted + 1);
    history::check(&cluster).await;
}

/// A caller who may name users could otherwise fill etcd and the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_that_was_only_asked_for_leaves_nothing() {
    let config = format!("{SIM}{LONG_LEASE}release_after = \"1s\"\n");
    let Some(cluster) = Nodes::start(1, &config).await else { return };
    assert!(Asker::new("known", "default").ask(&cluster.sites()[0], "hello").await.is_good());
    for number in 0..10 {
        cluster.owner(0, &format!("probe{number}")).await;
    }
    let users = async || {
        let (_, status) = cluster.client(0).get("/v1/cluster").await;
        let status: Value = serde_json::from_str(&status).ok()?;
        status["nodes"][0]["users"].as_u64()
    };
    eventually_some("all have left", SOON, async || (users().await? == 0).then_some(())).await;
    assert!(history::head(&cluster, "known").await.is_some());
    for number in 0..10 {
        assert_eq!(history::head(&cluster, &format!("probe{number}")).await, None);
    }
}

/// A turn may take longer than a user keeps its node without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_rests_from_the_end_of_a_long_turn() {
    let config = format!("{SIM}{LONG_LEASE}release_after = \"4s\"\n");
    let Some(cluster) = Nodes::start(1, &config).await else { return };
    let (alice, site) = (Asker::new("alice", "default"), cluster.sites()[0].clone());
    let child = async || {
        let active = cluster.client(0).active().await;
        active.first().and_then(|it| it.pid).expect("a child")
    };
    assert!(alice.ask(&site, "hello").await.is_good());
    let before = child().await;
    assert!(alice.ask(&site, "[[sleep:8000]]hello").await.is_good());
    assert!(alice.ask(&site, "again").await.is_good());
    assert_eq!(child().await, before, "the user has left with the end of the turn");
}
