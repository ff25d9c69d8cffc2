//! Keys in a cluster: the node that is asked decides who calls, and another node believes no more than that.

use crate::common::SOON;
use crate::common::keyring::Keyring;
use crate::common::place::Place;
use crate::common::program::{Answer, message};
use crate::nodes::{LONG_LEASE, Nodes, SIM};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_is_no_more_on_another_node() {
    let home = Place::new();
    let ring = Keyring::new(&home);
    let (alice, id) = ring.key(&["--user", "alice"]);
    let (bob, admin) = (ring.user("bob"), ring.key(&["--admin"]).0);
    let Some(cluster) = Nodes::start(3, &format!("{SIM}{}{LONG_LEASE}", ring.config())).await else { return };
    let (web, sites) = (reqwest::Client::builder().no_proxy().build().unwrap(), cluster.sites());
    let ask = |node: usize, key: &str, path: &str| web.get(format!("{}{path}", sites[node])).bearer_auth(key);
    let turn = |node: usize, key: &str, text: &str| {
        web.post(format!("{}/v1/messages/keepalive", sites[node])).bearer_auth(key).json(&message(text))
    };
    let first = Answer::of(turn(0, &alice, "secret-word")).await;
    assert_eq!(first.status, 200, "{first:?}");
    let owner = first.header("x-pilotlight-node").to_owned();
    let owner = cluster.nodes.iter().position(|node| node.name == owner).unwrap();
    #[allow(clippy::needless_range_loop, reason = "the closures take the number of a node")]
    for node in 0..3 {
        // The user of the key, whatever a header says.
        let named = turn(node, &bob, "[[recall]]").header("x-pilotlight-user", "alice");
        let named = Answer::of(named).await;
        assert!(named.status != 200 || !named.body.contains("secret-word"), "{named:?}");
        assert!(!Answer::of(turn(node, &bob, "[[recall]]")).await.body.contains("secret-word"));
        let own = Answer::of(turn(node, &alice, "[[recall]]")).await;
        assert!(own.text().contains("secret-word"), "{own:?}");
        for path in ["/v1/cluster", "/v1/overview", "/v1/sessions?user=alice"] {
            let refused = Answer::of(ask(node, &bob, path)).await;
            assert!(refused.status == 403 || refused.status == 404, "{path} with a user's key: {refused:?}");
            let allowed = Answer::of(ask(node, &admin, path)).await;
            assert_eq!(allowed.status, 200, "{path} with an admin's key: {allowed:?}");
        }
        let drain = web.post(format!("{}/v1/cluster/drain", sites[node])).bearer_auth(&alice);
        assert_eq!(Answer::of(drain).await.status, 403);
        assert_eq!(Answer::of(turn(node, "plk_none", "hello")).await.status, 401);
    }
    // A stream through another node ends when its key is revoked, and its turn with it.
    let other = (owner + 1) % 3;
    let stream = turn(other, &alice, "[[deltas:2000]][[delay:50]]").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    assert!(ring.run("revoke", &[&id]).status.success());
    let text = tokio::time::timeout(SOON, stream.text()).await.expect("the stream ends").unwrap();
    assert_eq!(text.matches("key_revoked").count(), 1, "{text}");
    let client = &cluster.nodes[owner];
    crate::common::eventually_some("the turn is interrupted", SOON, async || {
        let answer =
            web.get(format!("{}/metrics", client.client().admin())).bearer_auth(&admin).send().await.ok()?;
        let scrape = crate::common::metrics::Scrape::parse(&answer.text().await.ok()?);
        (scrape.sum("pilotlight_sessions", &["state=\"busy\""]) == 0.0).then_some(())
    })
    .await;
    for node in 0..3 {
        // Each node reads the file by itself.
        crate::common::eventually_some("the key is revoked on each node", SOON, async || {
            let answer = Answer::of(turn(node, &alice, "hello")).await;
            assert!(answer.status == 401 || answer.status == 200, "{answer:?}");
            (answer.status == 401).then_some(())
        })
        .await;
    }
}
