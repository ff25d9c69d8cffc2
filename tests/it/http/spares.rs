//! Spares under a server: shown to the operator, and gone with it.

use crate::common::layout::session_dirs;
use crate::common::place::Place;
use crate::common::server::Server;
use crate::common::{SOON, eventually, eventually_some};

async fn ready(server: &Server, count: u64) {
    eventually_some(&format!("{count} spares are ready"), SOON, async || {
        let (_, health) = server.client().get("/health").await;
        let health: serde_json::Value = serde_json::from_str(&health).unwrap();
        (health["spares"]["ready"] == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_are_counted_and_shown() {
    let place = std::sync::Arc::new(Place::new());
    let server = Server::start(&place, "[cli]\nprogram = \"sim\"\n[spares]\nmin = 1\n").await;
    ready(&server, 1).await;
    let client = server.client();
    client.turn("alice", "hello").await.text();
    ready(&server, 1).await;
    let (_, listed) = client.get("/v1/sessions").await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["spares"], serde_json::json!({ "warming": 0, "ready": 1 }), "{listed}");
    let claimed = async || {
        let metrics = client.metrics().await;
        let claims =
            |result: &str| metrics.sum("pilotlight_spare_claims_total", &[&format!("result=\"{result}\"")]);
        assert_eq!((claims("missed"), claims("unfit")), (0.0, 0.0));
        let ready = metrics.sum("pilotlight_spares", &["state=\"ready\""]);
        (claims("claimed") == 1.0 && ready == 1.0 && metrics.sum("pilotlight_spares_wanted", &[]) == 1.0)
            .then_some(())
    };
    eventually_some("the metrics say so", SOON, claimed).await;
    server.stop().await;
    assert_eq!(session_dirs(&place.data_dir()).len(), 1, "alice's: a stop leaves none of a spare");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_leaves_nothing_of_a_spare() {
    let place = std::sync::Arc::new(Place::new());
    let config = "[cli]\nprogram = \"sim\"\n[spares]\nmin = 2\n";
    let server = Server::start(&place, config).await;
    ready(&server, 2).await;
    server.client().turn("alice", "the word is heliotrope").await.text();
    ready(&server, 2).await;
    server.kill().await;
    eventually("no process is left", SOON, || place.leftovers().is_empty()).await;
    assert_eq!(session_dirs(&place.data_dir()).len(), 3, "its directories are");
    // Without spares of its own.
    let server = Server::start(&place, "[cli]\nprogram = \"sim\"\n").await;
    assert_eq!(session_dirs(&place.data_dir()).len(), 1);
    assert_eq!(std::fs::read_dir(place.data_dir().join("records/.spares")).unwrap().count(), 0);
    assert_eq!(server.client().turn("alice", "[[recall]]").await.text(), "the word is heliotrope");
    server.stop().await;
}

/// A spare that fills the memory budget ends, is not started again, and no user is refused for it.
#[tokio::test(flavor = "multi_thread")]
async fn spare_without_room_ends_once_and_refuses_nobody() {
    let config = |budget: &str| {
        format!(
            "[cli]\nprogram = \"sim\"\n[spares]\nmin = 1\n[metrics]\nsample_interval = \"1s\"\n[limits]\n\
             memory_budget = \"{budget}\"\n"
        )
    };
    let place = std::sync::Arc::new(Place::new());
    let server = Server::start(&place, &config("1GiB")).await;
    ready(&server, 1).await;
    let used = async |server: &Server| {
        let metrics = server.client().metrics().await;
        ["anon", "shmem", "swap"]
            .map(|kind| metrics.sum("pilotlight_memory_bytes", &[&format!("kind=\"{kind}\"")]))
            .iter()
            .sum::<f64>()
    };
    let first = eventually_some("the spare is measured", SOON, async || {
        Some(used(&server).await).filter(|used| *used > 0.0)
    });
    let spare = first.await;
    server.stop().await;
    let server = Server::start(&place, &config(&format!("{}", (spare * 1.04) as u64))).await;
    let client = server.client();
    let ended = async || client.metrics().await.sum("pilotlight_spare_ends_total", &["reason=\"memory\""]);
    eventually_some("the spare is ended for memory", SOON, async || (ended().await > 0.0).then_some(()))
        .await;
    client.turn("alice", "hello").await.text();
    let samples = async || client.metrics().await.sum("pilotlight_sample_duration_seconds_count", &[]);
    let before = samples().await;
    eventually_some("it was measured again and again", SOON, async || {
        (samples().await >= before + 6.0).then_some(())
    })
    .await;
    assert_eq!(ended().await, 1.0, "started again without room");
    server.stop().await;
}
