//! A single node's data directory comes into a cluster, and a cluster becomes a single node's data directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::client::Client;
use crate::common::place::Place;
use crate::common::ports::kept_port;
use crate::common::program::holding;
use crate::common::server::Server;
use crate::common::{SOON, eventually_some};
use crate::etcd::Etcd;
use crate::nodes::SIM;

/// What nodes share. Dropped after them.
struct Ground {
    etcd: Etcd,
    directory: TempDir,
}

impl Ground {
    async fn new() -> Option<Self> {
        let etcd = Etcd::start(1).await?;
        let directory = TempDir::with_prefix("pilotlight-test-").unwrap();
        let (secret, store) = (directory.path().join("secret"), directory.path().join("store"));
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        std::fs::create_dir(&store).unwrap();
        for (path, mode) in [(secret, 0o600), (store, 0o700)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        Some(Self { etcd, directory })
    }

    fn config(&self, name: &str) -> String {
        let directory = self.directory.path().display();
        format!(
            "{SIM}\n[cluster]\netcd = {}\nnode = {name:?}\nlisten = \"127.0.0.1:{}\"\n\
             secret_file = \"{directory}/secret\"\nstore = \"file://{directory}/store\"\n",
            self.etcd.endpoints(),
            kept_port(),
        )
    }

    /// Starts a node on a data directory.
    async fn node(&self, name: &str, place: &Arc<Place>) -> Server {
        Server::start(place, &self.config(name)).await
    }
}

async fn says(client: &Client, user: &str, word: &str) {
    let turn = client.turn(user, &format!("the word is {word}")).await;
    assert!(turn.error().is_none(), "{:?}", turn.events);
}

async fn knows(client: &Client, user: &str, word: &str) {
    let recalled = client.turn(user, "[[recall]]").await;
    assert!(recalled.text().contains(word), "{user}: {:?}", recalled.events);
    assert!(!recalled.events.iter().any(|event| event["subtype"] == "context_lost"), "{:?}", recalled.events);
}

/// Waits until the node has brought all users of its directory into the cluster.
async fn all_have_come(client: &Client) {
    eventually_some("all users are in the cluster", SOON, async || {
        let (status, body) = client.get("/v1/cluster").await;
        assert_eq!(status, 200, "{body}");
        let cluster: Value = serde_json::from_str(&body).unwrap();
        (cluster["coming"] == 0).then_some(())
    })
    .await;
}

/// Number of users of a node, as the node that is asked sees it.
async fn users_of(client: &Client, node: &str) -> usize {
    let (_, body) = client.get("/v1/cluster").await;
    let cluster: Value = serde_json::from_str(&body).unwrap();
    let nodes = cluster["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|entry| entry["name"] == node);
    found.and_then(|node| node["users"].as_u64()).unwrap().try_into().unwrap()
}

async fn owner(client: &Client, user: &str) -> String {
    let request = reqwest::Client::new().get(format!("{}/v1/sessions", client.http()));
    let answer = request.header("x-pilotlight-user", user).send().await.unwrap();
    answer.headers()["x-pilotlight-node"].to_str().unwrap().to_owned()
}

/// A directory of a single node on which users have talked.
async fn single(users: &[(&str, &str)]) -> Arc<Place> {
    let place = Arc::new(Place::new());
    let server = Server::start(&place, SIM).await;
    for (user, word) in users {
        says(&server.client(), user, word).await;
    }
    server.stop().await;
    place
}

/// Nobody asks for the users before their node is killed: it has stored them by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_nodes_users_come_into_a_cluster() {
    let Some(ground) = Ground::new().await else { return };
    let users = [("alice", "first-amber"), ("bob", "first-basil"), ("carol", "first-cedar")];
    let former = single(&users).await;
    let a = ground.node("a", &former).await;
    all_have_come(&a.client()).await;
    let place = Arc::new(Place::new());
    let b = ground.node("b", &place).await;
    a.kill().await;
    for (user, word) in users {
        knows(&b.client(), user, word).await;
    }
    // A node that starts again has nothing to bring: what it has is the cluster's.
    says(&b.client(), "alice", "second-amber").await;
    let a = ground.node("a", &former).await;
    all_have_come(&a.client()).await;
    b.stop().await;
    knows(&a.client(), "alice", "first-amber").await;
    knows(&a.client(), "alice", "second-amber").await;
}

/// What the cluster has of a user counts; what only a directory has is not deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_begun_elsewhere_keeps_its_old_files() {
    let Some(ground) = Ground::new().await else { return };
    let former = single(&[("alice", "older-amber"), ("bob", "older-basil")]).await;
    let place = Arc::new(Place::new());
    let b = ground.node("b", &place).await;
    says(&b.client(), "alice", "newer-amber").await;
    let a = ground.node("a", &former).await;
    all_have_come(&a.client()).await;
    b.stop().await;
    knows(&a.client(), "alice", "newer-amber").await;
    knows(&a.client(), "bob", "older-basil").await;
    let aside = former.data_dir().join("replaced");
    assert!(!holding(&aside, "older-amber").is_empty(), "the former conversation is set aside");
    assert!(holding(&aside, "basil").is_empty(), "only what was replaced");
    assert!(!a.output().contains("alice"), "{}", a.output());
}

/// A request for a user who is just moving waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_waits_for_a_user_who_moves() {
    let Some(ground) = Ground::new().await else { return };
    let users: Vec<String> = (0..8).map(|number| format!("mover-{number}")).collect();
    let place = Arc::new(Place::new());
    let a = ground.node("a", &place).await;
    for user in &users {
        says(&a.client(), user, &format!("{user}-amber")).await;
    }
    let other = Arc::new(Place::new());
    let _b = ground.node("b", &other).await;
    let url = format!("{}/v1/cluster/rebalance", a.client().http());
    let moved: Value = reqwest::Client::new().post(url).send().await.unwrap().json().await.unwrap();
    let moved = moved["moved"].as_u64().unwrap();
    assert!(moved > 0, "some have their place on the new node");
    let mut asked = tokio::task::JoinSet::new();
    for user in &users {
        let (client, user) = (a.client(), user.clone());
        asked.spawn(async move { knows(&client, &user, &format!("{user}-amber")).await });
    }
    asked.join_all().await;
}

/// What is left for later calls, and the limit is that of all calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rebalance_lets_few_users_go_in_a_minute() {
    const PER_MINUTE: usize = 2;
    let Some(ground) = Ground::new().await else { return };
    let users: Vec<String> = (0..16).map(|number| format!("mover-{number}")).collect();
    let place = Arc::new(Place::new());
    let config = format!("{}rebalance_per_minute = {PER_MINUTE}\n", ground.config("a"));
    let a = Server::start(&place, &config).await;
    for user in &users {
        says(&a.client(), user, &format!("{user}-amber")).await;
    }
    let other = Arc::new(Place::new());
    let _b = ground.node("b", &other).await;
    let url = format!("{}/v1/cluster/rebalance", a.client().http());
    let call = async || {
        let answer = reqwest::Client::new().post(&url).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        [&answer["moved"], &answer["left"]].map(|count| count.as_u64().unwrap())
    };
    let [moved, left] = call().await;
    assert!(moved == PER_MINUTE as u64 && left > 0, "{moved} {left}");
    assert_eq!(call().await, [0, left]);
    // A request that comes before has its user come back.
    let stay = users.len() - PER_MINUTE;
    eventually_some("they have left", SOON, async || {
        (users_of(&a.client(), "a").await == stay).then_some(())
    })
    .await;
    let mut gone = 0;
    for user in &users {
        gone += usize::from(owner(&a.client(), user).await == "b");
    }
    assert_eq!(gone, PER_MINUTE);
    a.stop().await;
}

fn export(config: &Path, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(crate::common::built::pilotlight());
    command.args(["cluster", "export"]).arg(to).arg("--config").arg(config).args(more);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Objects of one user are gone. Others are exported, and the user begins again, and can be deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_without_objects_holds_up_nobody() {
    let Some(ground) = Ground::new().await else { return };
    let place = Arc::new(Place::new());
    let a = ground.node("a", &place).await;
    for user in ["alice", "bob", "carol"] {
        says(&a.client(), user, &format!("{user}-amber")).await;
    }
    a.stop().await;
    let store = ground.directory.path().join("store/s");
    for user in std::fs::read_dir(store).unwrap() {
        let objects = user.unwrap().path();
        if holding(&objects, "bob-amber").is_empty() {
            std::fs::remove_dir_all(objects).unwrap();
        }
    }
    let config = place.path().join("pilotlight.toml");
    let target = Arc::new(Place::new());
    let exported = export(&config, &target.data_dir(), &[]);
    let noted = String::from_utf8_lossy(&exported.stderr);
    assert_eq!(exported.status.code(), Some(1), "{noted}");
    assert!(noted.contains("1 users, 1 sessions") && noted.contains("2 users are missing"), "{noted}");
    let alone = Server::start(&target, SIM).await;
    knows(&alone.client(), "bob", "bob-amber").await;
    alone.stop().await;

    let a = ground.node("a", &place).await;
    says(&a.client(), "alice", "later-amber").await;
    knows(&a.client(), "alice", "later-amber").await;
    for user in ["alice", "carol"] {
        let url = format!("{}/v1/users/{user}", a.client().admin());
        assert_eq!(reqwest::Client::new().delete(url).send().await.unwrap().status(), 200, "{user}");
    }
    assert!(a.output().contains("objects of a user are lost"), "{}", a.output());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_becomes_a_single_nodes_directory() {
    let Some(ground) = Ground::new().await else { return };
    let places = [Arc::new(Place::new()), Arc::new(Place::new())];
    let a = ground.node("a", &places[0]).await;
    let b = ground.node("b", &places[1]).await;
    let words: Vec<_> =
        (0..6).map(|number| (format!("user-{number}"), format!("word-{number}-amber"))).collect();
    for (user, word) in &words {
        says(&a.client(), user, word).await;
        says(&b.client(), user, &format!("later-{word}")).await;
    }
    let mut owners = Vec::new();
    for (user, _) in &words {
        owners.push(owner(&a.client(), user).await);
    }
    assert!(owners.contains(&"a".to_owned()) && owners.contains(&"b".to_owned()), "{owners:?}");
    let config = places[0].path().join("pilotlight.toml");
    let target = Arc::new(Place::new());

    let refused = export(&config, &target.data_dir(), &[]);
    let problem = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{problem}");
    assert!(problem.contains("nodes of the cluster run (a, b)"), "{problem}");
    let copy = target.path().join("copy");
    let copied = export(&config, &copy, &["--running"]);
    let noted = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success() && noted.contains("6 users, 6 sessions"), "{noted}");

    // One leaves in order, one is killed: its users' last objects are there all the same.
    a.stop().await;
    b.kill().await;
    eventually_some("the lease of the killed node ends, and the export begins", SOON, async || {
        let exported = export(&config, &target.data_dir(), &[]);
        let noted = String::from_utf8_lossy(&exported.stderr);
        let is_done = exported.status.success();
        assert!(is_done || noted.contains("nodes of the cluster run (b)"), "{noted}");
        assert!(!is_done || noted.contains("6 users, 6 sessions"), "{noted}");
        is_done.then_some(())
    })
    .await;
    let again = export(&config, &target.data_dir(), &[]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"), "a directory is not written twice");

    let alone = Server::start(&target, SIM).await;
    for (user, word) in &words {
        knows(&alone.client(), user, word).await;
        knows(&alone.client(), user, &format!("later-{word}")).await;
    }
    let (status, body) = alone.client().get("/v1/cluster").await;
    let cluster: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &cluster["nodes"]), (200, &serde_json::json!([])), "it is alone");
    alone.stop().await;
    // Without a cluster there is nothing to export.
    let single = places[0].path().join("alone.toml");
    std::fs::write(&single, SIM).unwrap();
    let none = export(&single, &target.path().join("none"), &[]);
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}
