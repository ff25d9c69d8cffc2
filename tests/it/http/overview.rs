//! `/v1/overview` and what lists and `/activity` tell of a session: to whom, and that it is true.

use serde_json::{Value, json};

use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, eventually_some};

#[tokio::test(flavor = "multi_thread")]
async fn overview_is_for_operators_alone() {
    let place = place();
    let ring = Keyring::new(&place);
    let (alice, service, admin) = (ring.user("alice"), ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    Answer::of(site.post().header("x-api-key", &alice).json(&message("hello"))).await.text();
    let get = |key: &str| {
        let request = site.web().get(format!("{}/v1/overview", site.http));
        Answer::of(request.header("x-api-key", key))
    };
    assert_eq!(get("plk_wrong").await.status, 401);
    for key in [&alice, &service] {
        let error = get(key).await.error();
        assert_eq!((error.0, error.1.as_str()), (403, "admin_only"));
    }
    let overview = get(&admin).await.json();
    assert_eq!((&overview["use"]["children"]["used"], &overview["spend"]["users"]), (&json!(1), &json!(1)));
    assert_eq!(overview["spend"]["top"][0]["user"], "alice");
    let request = site.web().get(format!("{}/v1/overview?since=x", site.http)).header("x-api-key", &admin);
    assert_eq!(Answer::of(request).await.error().1, "invalid_query");
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_is_in_overview_and_activity() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "Write a poem\nfor me").await.text();
    site.turn("alice", "[[fault:crash-mid]]").await;
    let failed = async || {
        let overview = site.get("/v1/overview").await.json();
        overview["failures"].as_array().unwrap().iter().find(|it| it["kind"] == "crashed").cloned()
    };
    let failure = eventually_some("the failure is listed", SOON, failed).await;
    assert_eq!((&failure["user"], &failure["detail"]), (&json!("alice"), &json!("exit code 1")));
    let entry = Answer::of(site.session("GET", "default", "alice")).await.json();
    assert_eq!((&entry["title"], &entry["pending_permissions"]), (&json!("Write a poem for me"), &json!(0)));
    assert!(entry["input_tokens"].as_u64() > Some(0) && entry["output_tokens"].as_u64() > Some(0), "{entry}");
    let activity = Answer::of(site.session("GET", "default/activity", "alice")).await.json();
    let turns = activity["turns"].as_array().unwrap();
    assert_eq!((&turns[0]["outcome"], &turns[1]["outcome"]), (&json!("ok"), &json!("session_lost")));
    assert!(
        turns[0]["first_after_seconds"].as_f64() >= turns[0]["given_after_seconds"].as_f64(),
        "{activity}"
    );
    assert_eq!(
        (&activity["ends"][0]["reason"], &activity["ends"][0]["generation"]),
        (&json!("crash"), &json!(1))
    );
    // A deleted session leaves nothing behind.
    let purge = site.session("DELETE", "default?purge=true", "alice");
    assert_eq!(Answer::of(purge).await.status, 200);
    assert_eq!(site.get("/v1/overview").await.json()["failures"], json!([]));
    let other = Answer::of(site.session("GET", "default/activity", "bob")).await.error();
    assert_eq!((other.0, other.1.as_str()), (404, "session_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn activity_has_names_and_times_of_tools() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let (slow, bad) = (json!({ "command": "sleep 0.3; echo secret-word" }), json!({ "command": "exit 3" }));
    site.turn("alice", &format!("[[tool:Bash {slow}]] [[tool:Bash {bad}]]")).await.text();
    site.turn("alice", "hello").await.text();
    let answer = Answer::of(site.session("GET", "default/activity", "alice")).await;
    let text = &answer.body;
    assert!(!text.contains("secret-word") && !text.contains("sleep"), "names alone: {text}");
    let activity = answer.json();
    let (first, second) = (&activity["turns"][0], &activity["turns"][1]);
    assert_eq!((&second["tools"], &second["tools_left_out"]), (&json!([]), &json!(0)));
    let tools = first["tools"].as_array().unwrap();
    let seen: Vec<_> = tools.iter().map(|tool| (tool["name"].as_str().unwrap(), &tool["failed"])).collect();
    assert_eq!(seen, [("Bash", &json!(false)), ("Bash", &json!(true))]);
    let number = |value: &Value| value.as_f64().unwrap();
    let (began, took) = (number(&tools[0]["began_after_seconds"]), number(&tools[0]["took_seconds"]));
    assert!(took >= 0.3 && began + took <= number(&first["took_seconds"]), "{first}");
    assert!(began >= number(&first["first_after_seconds"]), "{first}");
}

/// A turn may call any number of tools.
#[tokio::test(flavor = "multi_thread")]
async fn activity_keeps_a_bounded_number_of_tools() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let call = format!("[[tool:Bash {}]]", json!({ "command": "true" }));
    site.turn("alice", &call.repeat(30)).await.text();
    let activity = Answer::of(site.session("GET", "default/activity", "alice")).await.json();
    let turn = &activity["turns"][0];
    assert_eq!((turn["tools"].as_array().unwrap().len(), &turn["tools_left_out"]), (24, &json!(6)));
}

#[tokio::test(flavor = "multi_thread")]
async fn loaded_list_reads_no_disk() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    let loaded = site.get("/v1/sessions?loaded=true").await.json();
    assert_eq!(loaded["sessions"].as_array().unwrap().len(), 1, "{loaded}");
    let of_bob = Answer::of(site.of("GET", "/v1/sessions?loaded=true", "bob")).await.json();
    assert_eq!(of_bob["sessions"], json!([]), "a user sees its own alone");
}

/// Watching takes nothing from the turn's reader, and is its user's alone.
#[tokio::test(flavor = "multi_thread")]
async fn running_text_is_watched_beside_its_reader() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let mut running = site.asking("alice", &message("[[deltas:60]] [[delay:50]]")).send().await.unwrap();
    assert!(running.chunk().await.unwrap().is_some(), "it has begun");
    let watched = site.session("GET", "default/live", "alice").send().await.unwrap();
    assert_eq!(watched.headers()["content-type"], "text/event-stream");
    let reading = async {
        let mut watched = watched;
        let mut seen = String::new();
        while !seen.contains("059") {
            let chunk = watched.chunk().await.unwrap().expect("it goes on");
            seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        seen
    };
    let seen = tokio::time::timeout(SOON, reading).await.expect("the text comes");
    assert!(
        seen.starts_with("data: {\"type\":\"hello\"}\n\n") && seen.contains("\"type\":\"text\""),
        "{seen}"
    );
    let answer = running.text().await.unwrap();
    assert!(answer.contains("059") && answer.contains("\"result\""), "the reader gets all");
    let other = Answer::of(site.session("GET", "default/live", "bob")).await.error();
    assert_eq!((other.0, other.1.as_str()), (404, "session_not_found"));
}
