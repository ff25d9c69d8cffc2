//! What a history holds reaches the CLI's conversation, or is named.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually_some};

const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGD4DwABBAEAwS2OUAAAAABJRU5ErkJggg==";

fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn image() -> Value {
    json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": PNG } })
}

fn message(role: &str, content: Value) -> Value {
    json!({ "role": role, "content": content })
}

fn history() -> Vec<Value> {
    let call = json!({ "type": "tool_use", "id": "t1", "name": "weather", "input": { "city": "Bern" } });
    let result = json!({ "type": "tool_result", "tool_use_id": "t1", "content": [text("sunny"), image()] });
    vec![
        message("user", json!([text("what is this?"), image()])),
        message("assistant", json!([text("I look"), call])),
        message("user", json!([result])),
        message("assistant", json!([text("sunny")])),
    ]
}

/// Sends the history and a last message, to a new conversation unless it is named.
async fn ask(
    site: &Site,
    user: &str,
    path: &str,
    session: Option<&str>,
    mut said: Vec<Value>,
    last: &str,
) -> Answer {
    said.push(message("user", json!(last)));
    let body = json!({ "model": "sonnet", "max_tokens": 9, "messages": said });
    let mut request = site.web().post(format!("{}{path}", site.http)).header("x-pilotlight-user", user);
    if let Some(session) = session {
        request = request.header("x-pilotlight-session", session);
    }
    Answer::of(request.json(&body)).await
}

/// The messages before the last that the CLI knows, out of its answer to `[[context]]`.
fn known(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let text = match &body {
        Value::Null => answer.text(),
        body if body["choices"].is_array() => {
            body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        }
        body => body["content"][0]["text"].as_str().unwrap().to_owned(),
    };
    let mut known: Vec<Value> = serde_json::from_str(&text).unwrap();
    known.pop();
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn history_content_arrives_from_every_dialect() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    for (user, path) in [("alice", "/v1/messages"), ("bob", "/v1/messages/keepalive")] {
        let answer = ask(&site, user, path, None, history(), "[[context]]").await;
        assert_eq!(known(&answer), history(), "{path}");
    }
    let call = json!({ "id": "t1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Bern\"}" } });
    let url = json!({ "url": format!("data:image/png;base64,{PNG}") });
    let chat = vec![
        message("user", json!([text("what is this?"), { "type": "image_url", "image_url": url }])),
        json!({ "role": "assistant", "content": "I look", "tool_calls": [call] }),
        json!({ "role": "tool", "tool_call_id": "t1", "content": [text("sunny"), { "type": "image_url", "image_url": url }] }),
        message("assistant", json!("sunny")),
    ];
    let answer = ask(&site, "carol", "/v1/chat/completions", None, chat, "[[context]]").await;
    assert_eq!(known(&answer), history());
}

#[tokio::test(flavor = "multi_thread")]
async fn history_arrives_in_a_session_warmed_before() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let warmed = Answer::of(site.session("POST", "work/warm", "alice")).await;
    assert_eq!(warmed.status, 200, "{warmed:?}");
    let before = warmed.json()["pid"].clone();
    let answer = ask(&site, "alice", "/v1/messages", Some("work"), history(), "[[context]]").await;
    assert_eq!(known(&answer), history());
    let entry = Answer::of(site.session("GET", "work", "alice")).await.json();
    assert_ne!(entry["pid"], before);
    assert_eq!(entry["restarts"], 0, "nothing failed: {entry}");
    // The conversation has a context now: another history changes nothing, and costs no start.
    let other = vec![message("user", json!("x")), message("assistant", json!("y"))];
    let answer = ask(&site, "alice", "/v1/messages", Some("work"), other, "[[recall]]").await;
    assert_eq!(answer.json()["content"][0]["text"], "what is this? | [[context]]");
    assert_eq!(Answer::of(site.session("GET", "work", "alice")).await.json()["pid"], entry["pid"]);
}

/// How often the CLI has refused what was written.
fn refusals(program: &Program) -> usize {
    program.err().matches("does not resume an imported conversation").count()
}

/// A CLI that does not resume what was written gets one message, with the pictures in it; after three users it is not
/// asked again.
#[tokio::test(flavor = "multi_thread")]
async fn unresumable_history_goes_into_one_message() {
    let place = place();
    let config = "[cli]\nargs = [\"--fault\", \"refuse-resume\"]\n";
    let (program, site) = Program::ready(&place, config).await;
    for (user, tried) in [("alice", 1), ("bob", 2), ("carol", 3), ("dave", 3)] {
        let answer = ask(&site, user, "/v1/messages", None, history(), "[[blocks]]").await;
        let kinds = answer.json()["content"][0]["text"].as_str().unwrap().to_owned();
        assert_eq!(kinds.matches(&format!("image:image/png:{}", PNG.len())).count(), 2, "{kinds}");
        assert_eq!(refusals(&program), tried, "{}", program.err());
    }
    let answer = ask(&site, "erin", "/v1/messages", None, history(), "[[context]]").await;
    let body = answer.json();
    let said = body["content"][0]["text"].as_str().unwrap();
    for part in ["what is this?", "Assistant:", "weather", "Bern", "sunny"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

/// One user's children refuse every import: no other user's histories are carried differently.
#[tokio::test(flavor = "multi_thread")]
async fn refused_import_changes_no_other_users_import() {
    let place = place();
    let users = place.path().join("users.toml");
    std::fs::write(&users, "[mallory]\nPILOTLIGHT_SIM_FAULT = \"refuse-resume\"\n").unwrap();
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("[cli]\nuser_env_file = {users:?}\n");
    let (program, site) = Program::ready(&place, &config).await;
    let ask = async |user, session: &str| {
        ask(&site, user, "/v1/messages", Some(session), history(), "[[context]]").await
    };
    for round in 0..4 {
        assert_ne!(known(&ask("mallory", &format!("{round}")).await), history());
        assert_eq!(refusals(&program), (round + 1).min(3), "bounded: {}", program.err());
    }
    assert_eq!(known(&ask("alice", "work").await), history());
}

/// The message that a history goes into is as long as any other at most, and its session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn first_message_over_its_limit_is_refused() {
    let place = place();
    let config = "[cli]\nargs = [\"--fault\", \"refuse-resume\"]\n[session]\nprompt_limit = 4096\n";
    let (_program, site) = Program::ready(&place, config).await;
    let long = || message("user", json!("x".repeat(5000)));
    for (session, history) in
        [("answered", vec![long(), message("assistant", json!("y"))]), ("unanswered", vec![long()])]
    {
        let refused = ask(&site, "alice", "/v1/messages", Some(session), history, "hello").await;
        let (status, code, said) = refused.error();
        assert_eq!((status, code.as_str()), (413, "prompt_too_large"), "{said}");
        assert!(said.contains("session.prompt_limit"), "{said}");
        let short = vec![message("user", json!("a")), message("assistant", json!("b"))];
        let answer = ask(&site, "alice", "/v1/messages", Some(session), short, "hello").await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// What waiting turns were sent with is in memory: it counts as what is being read does.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_waiting_turns_are_bounded() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    // What is sent, long or short, brings a history.
    let asking = |session: &'static str, last: &'static str, length: usize| {
        let mut said = history();
        said.push(message("user", json!(last)));
        let mut body = json!({ "model": "sonnet", "max_tokens": 9, "messages": said }).to_string();
        body.extend(std::iter::repeat_n(' ', length));
        let request = site.web().post(format!("{}/v1/messages", site.http)).body(body);
        let request = request.header("content-type", "application/json");
        let request = request.header("x-pilotlight-user", "mallory").header("x-pilotlight-session", session);
        Answer::of(request)
    };
    const LONG: usize = 15 << 20;
    let mut turns = tokio::task::JoinSet::new();
    turns.spawn(asking("work", "[[sleep:600000]]late", 0));
    // Half of the room is a caller's: eight of them.
    for waiting in 0..=8 {
        let waits = async || {
            let entry = Answer::of(site.session("GET", "work", "mallory")).await;
            let is_so = |entry: Value| entry["state"] == "busy" && entry["queue_depth"] == waiting;
            (entry.status == 200 && is_so(entry.json())).then_some(())
        };
        eventually_some("the turn waits", SOON, waits).await;
        if waiting < 8 {
            turns.spawn(asking("work", "waits", LONG));
        }
    }
    let refused = asking("other", "one more", LONG).await;
    let (status, code, said) = refused.error();
    assert_eq!((status, code.as_str()), (529, "overloaded"), "{said}");
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
    // What nobody waits for any more is dropped.
    turns.shutdown().await;
    let taken = async || (asking("other", "one more", LONG).await.status == 200).then_some(());
    eventually_some("there is room again", SOON, taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn left_out_parts_are_named_or_refused() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let odd = || {
        let thinking = json!({ "type": "thinking", "thinking": "unsigned" });
        vec![
            message("user", json!([text("a"), { "type": "container_upload", "file_id": "f" }])),
            message("assistant", json!([thinking, text("b")])),
        ]
    };
    for path in ["/v1/messages", "/v1/messages/keepalive", "/v1/chat/completions"] {
        let answer = ask(&site, "alice", path, Some("odd"), odd(), "hello").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let named = answer.header("x-pilotlight-ignored");
        for part in ["messages.container_upload", "messages.thinking"] {
            assert!(named.contains(part), "{path}: {named}");
        }
    }
    drop(program);
    let (_program, site) = Program::ready(&place, "[http]\nstrict = true\n").await;
    let refused = ask(&site, "alice", "/v1/messages", None, odd(), "hello").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("messages.container_upload, messages.thinking"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_history_is_refused_with_its_limit() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[session]\nhistory_limit = 4096\n").await;
    let long = vec![message("user", json!("x".repeat(4096))), message("assistant", json!("y"))];
    let refused = ask(&site, "alice", "/v1/messages", None, long, "hello").await;
    let (status, code, said) = refused.error();
    assert_eq!((status, code.as_str()), (413, "history_too_large"));
    assert!(said.contains("session.history_limit"), "{said}");
    let spoilt =
        json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } });
    let broken = vec![message("user", json!([text("a"), spoilt])), message("assistant", json!("y"))];
    let refused = ask(&site, "alice", "/v1/messages", None, broken, "hello").await;
    assert_eq!(refused.status, 400);
    assert!(refused.body.contains("messages[0].content[1]"), "{refused:?}");
    let sessions = Answer::of(site.of("GET", "/v1/sessions", "alice")).await.json();
    assert_eq!(sessions["sessions"], json!([]), "nothing was begun for them");
}

/// Children write below HOME: a link that one has planted leads no transcript elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn planted_link_leads_no_transcript_elsewhere() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    assert_eq!(Answer::of(site.session("POST", "work/warm", "alice")).await.status, 200);
    let sessions = std::fs::read_dir(place.data_dir().join("sessions")).unwrap().flatten();
    let session = sessions.map(|entry| entry.path()).find(|path| path.join("home").is_dir()).unwrap();
    let elsewhere = place.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let own = session.join("home/.claude");
    std::fs::create_dir_all(&own).unwrap();
    std::os::unix::fs::symlink(&elsewhere, own.join("projects")).unwrap();
    let answer = ask(&site, "alice", "/v1/messages", Some("work"), history(), "[[context]]").await;
    assert_eq!(answer.body.matches(PNG).count(), 2, "the history arrives all the same: {answer:?}");
    // The CLI itself follows its link; what it writes names a model.
    assert_eq!(crate::common::program::holding(&elsewhere, "<synthetic>"), [""; 0]);
}
