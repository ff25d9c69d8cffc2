//! What an operator sees: statistics, health, metrics.

use crate::common::program::{Program, place};

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_has_the_shape_that_existing_clients_read() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[session]\nidle_timeout = 77").await;
    let empty = site.get("/v1/pool/stats").await.json();
    assert_eq!((&empty["pool_size"], &empty["max_idle_time"]), (&0.into(), &77.0.into()));
    assert_eq!(empty["active_users"].as_array().unwrap().len(), 0);
    site.turn("alice@example.org", "hello").await.text();
    let answer = site.get("/v1/pool/stats").await;
    let stats = answer.json();
    assert_eq!(stats["pool_size"], 1);
    assert!(stats["cleanup_interval"].is_number());
    let keys = ["user_id", "idle_time", "uptime", "created_at", "last_used", "pid", "alive"];
    let mut last = 0;
    for key in keys {
        let at = answer.body.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key}"));
        assert!(at > last, "{key} is in its place: {}", answer.body);
        last = at;
    }
    let entry = &stats["active_users"][0];
    assert_eq!(entry["user_id"], "alice@ex...");
    assert_eq!(entry["alive"], true);
    assert_eq!(
        (&entry["session"], &entry["turns"], &entry["state"]),
        (&"default".into(), &1.into(), &"idle".into())
    );
    assert!(entry["created_at"].as_f64().unwrap() > 1.6e9);
    let said = site.turn("alice@example.org", "[[pid]]").await.text();
    assert_eq!(entry["pid"].to_string(), said, "the process is the CLI, not its parent");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_on_both_listeners() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(site.get(path).await.status, 200, "{path}");
        assert_eq!(site.get_admin(path).await.status, 200, "{path}");
    }
    let health = site.get("/health").await.json();
    assert_eq!(
        (&health["status"], &health["version"]),
        (&"healthy".into(), &env!("CARGO_PKG_VERSION").into())
    );
    let document = site.get("/").await.json();
    assert_eq!(document["service"], "pilotlight");
    let paths: Vec<_> = document["endpoints"].as_array().unwrap().iter().map(|it| &it["path"]).collect();
    assert!(paths.contains(&&"/v1/messages/keepalive".into()), "{paths:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_counted_with_help_and_buckets() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let answer = site.get_admin("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = &answer.body;
    assert!(text.contains("pilotlight_turns_total{outcome=\"ok\"} 1"), "{text}");
    assert!(
        text.contains("pilotlight_turns_total{outcome=\"error\"} 0"),
        "zeroes are there from the start: {text}"
    );
    assert!(text.contains("pilotlight_turn_duration_seconds_bucket{"), "histograms, not summaries: {text}");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
    }
    assert!(!text.contains("alice"), "no user in a label");
}
