//! What users may spend in a day.

use rustix::process::Signal;

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, Site, message, place};

async fn usage(site: &Site, user: &str) -> serde_json::Value {
    Answer::of(site.of("GET", "/v1/usage", user)).await.json()
}

/// The turn that reaches the limit ends well; the next one is refused at once, also after a restart of the server.
#[tokio::test(flavor = "multi_thread")]
async fn spend_limit_holds_over_a_restart() {
    let place = place();
    let config = "[limits]\nusd_per_user_day = 0.000001";
    let (mut program, site) = Program::ready(&place, config).await;
    assert_eq!(usage(&site, "alice").await["days"], serde_json::json!([]));
    assert_eq!(site.turn("alice", "a").await.text(), "echo 1: a");
    let refused = site.turn("alice", "b").await;
    let error = refused.error();
    assert_eq!((error.0, error.1.as_str()), (429, "spend_limit"));
    assert_eq!(
        (refused.header("x-should-retry"), refused.json()["error"]["type"].as_str()),
        ("false", Some("rate_limit_error"))
    );
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 86_400);
    assert_eq!(site.turn("bob", "b").await.text(), "echo 1: b");
    let before = usage(&site, "alice").await;
    assert_eq!((&before["remaining_usd"], &before["days"][0]["turns"]), (&0.0.into(), &1.into()));
    let cost = before["days"][0]["cost_usd"].as_f64().unwrap();
    let entry = site.entry("alice", "default").await;
    assert!(cost > 0.0 && (cost - entry["total_cost_usd"].as_f64().unwrap()).abs() < 1e-6, "{cost} {entry}");
    assert!(before["days"][0]["output_tokens"].as_u64().unwrap() > 0, "{before}");
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let (_program, site) = Program::ready(&place, config).await;
    assert_eq!(site.turn("alice", "c").await.error().1, "spend_limit");
    assert_eq!(usage(&site, "alice").await["days"], before["days"]);
}

/// A user sees its own usage, a service that of the users that it names; a lower limit of a key counts.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_shown_to_its_user_only() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, _) = ring.key(&["--user", "alice", "--usd-per-day", "0.000001"]);
    let (service, _) = ring.key(&["--service"]);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let turn = async || Answer::of(site.post().bearer_auth(&alice).json(&message("a"))).await;
    turn().await.text();
    let ask = async |key: &str, query: &str| {
        let url = format!("{}/v1/usage{query}", site.http);
        Answer::of(site.web().get(url).bearer_auth(key)).await
    };
    assert_eq!(ask(&alice, "").await.json()["days"][0]["turns"], 1);
    assert_eq!(turn().await.error().1, "spend_limit");
    assert_eq!(ask(&alice, "?user=bob").await.status, 403);
    assert_eq!(ask(&service, "?user=alice").await.json()["days"][0]["turns"], 1);
    assert_eq!(ask(&service, "?user=bob").await.json()["days"], serde_json::json!([]));
    assert_eq!(ask(&service, "").await.status, 400);
    assert_eq!(ask("plk_nothing", "").await.status, 401);
}
