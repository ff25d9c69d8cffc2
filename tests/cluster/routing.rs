//! Any node takes any request.

use crate::nodes::{Nodes, SIM};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_any_request() {
    let Some(cluster) = Nodes::start(3, SIM).await else { return };
    for user in ["alice", "bob", "carol", "dave"] {
        let word = format!("the word is {user}-heliotrope");
        assert!(cluster.client(0).turn(user, &word).await.error().is_none());
        let owner = cluster.owner(0, user).await;
        for node in 0..3 {
            assert_eq!(cluster.owner(node, user).await, owner, "{user}");
            let recalled = cluster.client(node).turn(user, "[[recall]]").await;
            assert!(recalled.text().contains(&word), "{user} on {node}: {:?}", recalled.events);
        }
        // One child, on the node that has the user.
        let mut active = Vec::new();
        for node in &cluster.nodes {
            active.extend(node.client().active().await);
        }
        let children = active.iter().filter(|it| it.user.starts_with(user)).count();
        assert_eq!(children, 1, "{user}: {active:?}");
    }
}

/// A node that was killed still has files of its users, who are on another node now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_of_all_has_each_session_once() {
    let Some(mut cluster) = Nodes::start(2, SIM).await else { return };
    assert!(cluster.client(0).turn("alice", "hello").await.error().is_none());
    let first = cluster.owner(0, "alice").await;
    cluster.nodes[first].kill().await;
    assert!(cluster.client(1 - first).turn("alice", "again").await.error().is_none());
    cluster.nodes[first].start().await;
    for node in 0..2 {
        let (status, body) = cluster.client(node).get("/v1/sessions").await;
        let list: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &list["unreachable"]), (200, &serde_json::json!([])), "{list}");
        let sessions = list["sessions"].as_array().unwrap();
        assert_eq!(sessions.len(), 1, "{list}");
        assert_eq!((&sessions[0]["user"], &sessions[0]["turns"]), (&"alice".into(), &2.into()), "{list}");
    }
}

/// A node shows each metric of a cluster from its start; dashboards and alerts rely on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_has_all_metrics_of_a_cluster() {
    let Some(cluster) = Nodes::start(1, SIM).await else { return };
    assert!(cluster.client(0).turn("alice", "hello").await.error().is_none());
    let url = format!("{}/metrics", cluster.client(0).admin());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let metrics = pilotlight::telemetry::metrics::catalogue();
    let own: Vec<_> = metrics.map(|metric| metric.name).filter(|name| name.starts_with("cluster_")).collect();
    assert!(own.len() > 5, "{own:?}");
    for name in own {
        assert!(text.contains(&format!("\npilotlight_{name}")), "{name} is missing");
    }
}
