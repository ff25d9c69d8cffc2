//! A caller's sessions from outside: listed, looked at, warmed, interrupted, stopped, deleted; and nobody else's.

use pilotlight::model::ids::UserId;
use pilotlight::server::keys::{self, KeyLimits, Role};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, holding, message, place};
use crate::common::{SOON, eventually_some};

async fn get(site: &Site, path: &str, user: &str) -> Answer {
    Answer::of(site.session("GET", path, user)).await
}

async fn list(site: &Site, query: &str, user: Option<&str>) -> Value {
    let request = site.web().get(format!("{}/v1/sessions{query}", site.http));
    let request = match user {
        Some(user) => request.header("x-pilotlight-user", user),
        None => request,
    };
    Answer::of(request).await.json()
}

fn ids(list: &Value) -> Vec<&str> {
    list["sessions"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect()
}

async fn say(site: &Site, user: &str, conversation: &str, text: &str) -> String {
    let mut body = message(text);
    body["session_id"] = json!(conversation);
    Answer::of(site.asking(user, &body)).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_sees_its_own_sessions_and_nobody_elses() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(list(&site, "", Some("alice")).await["sessions"], json!([]));
    say(&site, "alice", "default", "one").await;
    say(&site, "alice", "wörk/../x", "two").await;
    say(&site, "bob", "secret", "three").await;

    let own = list(&site, "", Some("alice")).await;
    assert_eq!(ids(&own), ["wörk/../x", "default"], "the last used comes first");
    assert_eq!((&own["limit"], &own["truncated"]), (&json!(100), &json!(false)));
    assert!(own["sessions"][0].get("user").is_none());
    let short = list(&site, "?limit=1&user=alice", None).await;
    assert_eq!((ids(&short).len(), &short["truncated"]), (1, &json!(true)));
    let all = list(&site, "", None).await;
    assert_eq!(ids(&all), ["secret", "wörk/../x", "default"]);
    assert_eq!(all["sessions"][0]["user"], "bob");

    let entry = get(&site, "w%C3%B6rk%2F..%2Fx", "alice").await.json();
    assert_eq!(
        (&entry["id"], &entry["state"], &entry["turns"]),
        (&json!("wörk/../x"), &json!("idle"), &json!(1))
    );
    for key in [
        "pid",
        "generation",
        "created_at",
        "last_used",
        "idle_seconds",
        "restarts",
        "memory_bytes",
        "queue_depth",
        "total_cost_usd",
    ] {
        assert!(entry[key].is_number(), "{key}: {entry}");
    }
    assert!(entry.as_object().unwrap().contains_key("model"));
    for (method, path) in [
        ("GET", "secret"),
        ("GET", "none"),
        ("DELETE", "secret"),
        ("DELETE", "secret?purge=true"),
        ("POST", "secret/interrupt"),
        ("GET", "secret/permissions"),
    ] {
        let error = Answer::of(site.session(method, path, "alice")).await.error();
        assert_eq!((error.0, error.1.as_str()), (404, "session_not_found"), "{method} {path}");
    }
    assert_eq!(say(&site, "bob", "secret", "unharmed").await, "echo 2: unharmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_warmed_stopped_and_goes_on() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let warm = Answer::of(site.session("POST", "default/warm", "alice")).await;
    assert_eq!(warm.status, 200, "{warm:?}");
    let warm = warm.json();
    assert_eq!(
        (&warm["state"], &warm["turns"], &warm["total_cost_usd"]),
        (&json!("idle"), &json!(0), &json!(0.0))
    );
    let pid = warm["pid"].as_u64().unwrap();
    assert_eq!(site.turn("alice", "[[pid]]").await.text(), pid.to_string(), "the turn finds it warm");
    let cost = get(&site, "default", "alice").await.json()["total_cost_usd"].as_f64().unwrap();

    let stopped = Answer::of(site.session("DELETE", "default", "alice")).await;
    assert_eq!(stopped.json(), json!({ "id": "default", "stopped": true, "purged": false }));
    let entry = get(&site, "default", "alice").await.json();
    assert_eq!(
        (&entry["state"], &entry["pid"], &entry["turns"]),
        (&json!("dormant"), &json!(null), &json!(1))
    );
    assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
    assert_eq!(site.turn("alice", "again").await.text(), "echo 2: again");
    let entry = get(&site, "default", "alice").await.json();
    assert!(entry["total_cost_usd"].as_f64().unwrap() >= cost && entry["generation"] == 2, "{entry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_turn_and_keeps_the_child() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let pid = {
        site.turn("alice", "one").await.text();
        site.pid("alice").await
    };
    let idle = Answer::of(site.session("POST", "default/interrupt", "alice")).await;
    assert_eq!(idle.json(), json!({ "id": "default", "interrupted": false }));
    let running = site.asking("alice", &message("[[deltas:10000]] [[delay:100]]")).send().await.unwrap();
    let done = Answer::of(site.session("POST", "default/interrupt", "alice")).await;
    assert_eq!(done.json()["interrupted"], true);
    let rest = tokio::time::timeout(SOON, running.text()).await.unwrap().unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert_eq!(site.pid("alice").await, pid);
    assert!(site.turn("alice", "next").await.text().ends_with("next"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_leaves_nothing_of_a_session() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let write = r#"remember-me [[tool:Write {"file_path":"note.txt","content":"hello"}]]"#;
    say(&site, "alice", "default", write).await;
    say(&site, "alice", "other", "kept").await;
    let look = Answer::of(site.of("GET", "/v1/workspace", "alice")).await;
    let look = look.json();
    assert_eq!(look["files"], json!([{ "path": "note.txt", "size": 5 }]));
    assert_eq!(look["files_summary"], json!({ "total": 1, "total_size": 5 }));
    assert_eq!((&look["session"], &look["truncated"]), (&json!("default"), &json!(false)));
    assert!(!look.to_string().contains(&place.data_dir().display().to_string()));

    let error = Answer::of(site.of("DELETE", "/v1/workspace", "alice")).await.error();
    assert_eq!((error.0, error.1.as_str()), (400, "confirm_required"));
    let deleted = Answer::of(site.of("DELETE", "/v1/workspace?confirm=true", "alice")).await;
    assert_eq!(deleted.json(), json!({ "session": "default", "deleted": true }));
    assert!(holding(&place.data_dir(), "remember-me").is_empty());
    for path in ["/v1/workspace", "/v1/sessions/default"] {
        assert_eq!(Answer::of(site.of("GET", path, "alice")).await.status, 404, "{path}");
    }
    assert_eq!(ids(&list(&site, "", Some("alice")).await), ["other"]);
    assert_eq!(site.turn("alice", "again").await.text(), "echo 1: again");

    let purged = Answer::of(site.session("DELETE", "other?purge=true", "alice")).await;
    assert_eq!(purged.json(), json!({ "id": "other", "stopped": true, "purged": true }));
    assert!(holding(&place.data_dir(), "kept").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_there_after_a_restart() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "").await;
    say(&site, "alice", "a", "one").await;
    say(&site, "alice", "b", "two").await;
    say(&site, "bob", "c", "three").await;
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));

    let (_program, site) = Program::ready(&place, "").await;
    let mut own = list(&site, "", Some("alice")).await;
    own["sessions"].as_array_mut().unwrap().sort_by_key(|it| it["id"].to_string());
    assert_eq!(ids(&own), ["a", "b"]);
    let entry = &own["sessions"][0];
    assert_eq!(
        (&entry["state"], &entry["turns"], &entry["pid"]),
        (&json!("dormant"), &json!(1), &json!(null))
    );
    assert_eq!(ids(&list(&site, "", None).await).len(), 3);
    assert_eq!(get(&site, "c", "alice").await.error().0, 404);
    assert_eq!(get(&site, "a", "alice").await.json()["turns"], 1);
    let purged = Answer::of(site.session("DELETE", "a?purge=true", "alice")).await;
    assert_eq!(purged.status, 200);
    assert_eq!(ids(&list(&site, "", Some("alice")).await), ["b"]);
    assert_eq!(Answer::of(site.session("DELETE", "b", "alice")).await.status, 200, "it has no child");
    assert_eq!(say(&site, "alice", "b", "four").await, "echo 2: four");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_checked_and_harm_nothing() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let long = "n".repeat(300);
    for (path, code) in [
        (format!("/v1/sessions/{long}"), "invalid_session"),
        (format!("/v1/sessions/{long}/permissions"), "invalid_session"),
        ("/v1/sessions/%ff%fe".to_owned(), "invalid_session"),
        (format!("/v1/workspace?session={long}"), "invalid_session"),
        ("/v1/workspace?session=".to_owned(), "invalid_session"),
        ("/v1/workspace?session=%ff".to_owned(), "invalid_query"),
        ("/v1/sessions?limit=0".to_owned(), "invalid_query"),
        ("/v1/sessions?limit=1001".to_owned(), "invalid_query"),
        ("/v1/sessions?limit=%".to_owned(), "invalid_query"),
        (format!("/v1/sessions?user={long}"), "invalid_user"),
        ("/v1/sessions?user=bob".to_owned(), "invalid_user"),
    ] {
        let error = Answer::of(site.of("GET", &path, "alice")).await.error();
        assert_eq!((error.0, error.1.as_str()), (400, code), "{path}");
    }
    let error = Answer::of(site.web().get(format!("{}/v1/sessions/default", site.http))).await.error();
    assert_eq!((error.0, error.1.as_str()), (400, "missing_user"));
    let error = Answer::of(site.session("DELETE", "default?purge=perhaps", "alice")).await.error();
    assert_eq!((error.0, error.1.as_str()), (400, "invalid_query"));

    for name in ["%2e%2e%2f%2e%2e%2fetc", "a%0d%0ax-evil%3a%201", "%00"] {
        assert_eq!(get(&site, name, "alice").await.error().0, 404, "{name}");
        let warm = Answer::of(site.session("POST", &format!("{name}/warm"), "alice")).await;
        assert_eq!(warm.status, 200, "{warm:?}");
        assert!(!warm.headers.contains_key("x-evil"));
        assert_eq!(get(&site, name, "alice").await.json()["state"], "idle");
    }
    let gone = async || {
        let names: Vec<_> =
            std::fs::read_dir(place.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        (names.len() == 2).then_some(())
    };
    eventually_some("nothing lies outside the data directory", SOON, gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_decides_what_of_whom_is_seen() {
    let place = place();
    let file = place.path().join("keys.toml");
    let key = |role| keys::add(&file, role, None, KeyLimits::default()).unwrap().0.expose().to_owned();
    let [alice, bob] = ["alice", "bob"].map(|name| key(Role::User(UserId::new(name).unwrap())));
    let (service, admin) = (key(Role::Service), key(Role::Admin));
    let config = format!("[auth]\nkeys_file = \"{}\"", file.display());
    let (_program, site) = Program::ready(&place, &config).await;
    let ask = async |method: &str, path: &str, key: &str, user: Option<&str>| {
        let request = site.web().request(method.parse().unwrap(), format!("{}{path}", site.http));
        let request = request.header("x-api-key", key);
        Answer::of(match user {
            Some(user) => request.header("x-pilotlight-user", user),
            None => request,
        })
        .await
    };
    for (key, user) in [(&alice, None), (&service, Some("bob"))] {
        assert_eq!(ask("POST", "/v1/sessions/default/warm", key, user).await.status, 200);
    }
    let session = "/v1/sessions/default";
    // Each answer's status and, of an error, its code.
    let table = [
        ("GET", session, &alice, None, 200, ""),
        ("GET", "/v1/sessions/none", &alice, None, 404, "session_not_found"),
        ("GET", "/v1/sessions?user=bob", &alice, None, 403, "other_user"),
        ("GET", session, &alice, Some("bob"), 403, "other_user"),
        ("GET", session, &service, None, 400, "missing_user"),
        ("GET", "/v1/sessions", &service, None, 400, "missing_user"),
        ("GET", session, &service, Some("alice"), 200, ""),
        ("GET", session, &admin, None, 400, "missing_user"),
        ("GET", "/v1/sessions/default?user=alice", &admin, None, 200, ""),
        ("GET", "/v1/sessions/default/permissions?user=alice", &admin, None, 200, ""),
        ("POST", "/v1/sessions/default/interrupt?user=alice", &admin, None, 200, ""),
        ("POST", "/v1/sessions/default/warm?user=alice", &admin, None, 200, ""),
        ("POST", "/v1/sessions/none/warm?user=alice", &admin, None, 404, "session_not_found"),
        ("POST", "/v1/sessions/default/permissions/x?user=alice", &admin, None, 403, "admin_has_no_sessions"),
        ("GET", "/v1/workspace?user=alice", &admin, None, 403, "admin_has_no_sessions"),
        ("DELETE", "/v1/workspace?confirm=true&user=alice", &admin, None, 403, "admin_has_no_sessions"),
        ("GET", "/v1/workspace", &bob, None, 200, ""),
        ("DELETE", "/v1/sessions/default?user=bob", &admin, None, 200, ""),
        ("GET", session, &"no-key".to_owned(), None, 401, "invalid_key"),
    ];
    for (method, path, key, user, status, code) in table {
        let answer = ask(method, path, key, user).await;
        assert_eq!(answer.status, status, "{method} {path} {user:?}: {answer:?}");
        if !code.is_empty() {
            assert_eq!(answer.error().1, code, "{method} {path} {user:?}");
        }
    }
    assert_eq!(ids(&ask("GET", "/v1/sessions", &bob, None).await.json()), ["default"]);
    let all = ask("GET", "/v1/sessions", &admin, None).await.json();
    let mut users: Vec<_> =
        all["sessions"].as_array().unwrap().iter().map(|it| it["user"].as_str().unwrap()).collect();
    users.sort();
    assert_eq!(users, ["alice", "bob"]);
}

/// Clients resolve `.` and `..` in a path, also percent-encoded: a session of such a name could not be addressed.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_no_path_can_hold_are_refused() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for name in [".", ".."] {
        let mut body = message("hello");
        let by_header =
            |value: &str| site.asking("alice", &message("hello")).header("x-pilotlight-session", value);
        let encoded = name.replace('.', "%2e");
        for request in [by_header(name), by_header(&encoded)] {
            let (status, code, text) = Answer::of(request).await.error();
            assert_eq!((status, code.as_str()), (400, "invalid_session"), "{name}");
            assert!(text.contains("path"), "{text}");
        }
        body["session_id"] = json!(name);
        let (status, _, text) = Answer::of(site.asking("alice", &body)).await.error();
        assert!(status == 400 && text.contains("session_id"), "{status} {text}");
    }
    let list = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
    assert_eq!(list["sessions"], json!([]));
    for name in ["...", ".a", "a/..", "%"] {
        let mut body = message("hello");
        body["session_id"] = json!(name);
        assert_eq!(Answer::of(site.asking("alice", &body)).await.text(), "echo 1: hello", "{name}");
    }
}
