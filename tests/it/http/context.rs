//! The conversation of a session as a whole: read, compacted, replaced, continued under another name, taken back.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::layout::session_dir;
use crate::common::process::Process;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

async fn say(site: &Site, conversation: &str, text: &str) -> String {
    let mut body = message(text);
    body["session_id"] = json!(conversation);
    let answer = Answer::of(site.asking("alice", &body)).await;
    assert!(!answer.body.contains("context_lost"), "{answer:?}");
    answer.text()
}

async fn get(site: &Site, path: &str) -> Answer {
    Answer::of(site.session("GET", path, "alice")).await
}

async fn post(site: &Site, path: &str) -> Answer {
    Answer::of(site.session("POST", path, "alice")).await
}

async fn send(site: &Site, path: &str, body: &Value) -> Answer {
    Answer::of(site.session("POST", path, "alice").json(body)).await
}

/// Role and text of each message.
fn said(page: &Value) -> Vec<(String, String)> {
    let text = |message: &Value| {
        let blocks = message["content"].as_array().unwrap().iter();
        blocks.map(|block| block["text"].as_str().unwrap_or(block["type"].as_str().unwrap())).collect()
    };
    let messages = page["messages"].as_array().unwrap().iter();
    messages.map(|message| (message["role"].as_str().unwrap().to_owned(), text(message))).collect()
}

fn spoken(turns: &[&str]) -> Vec<(String, String)> {
    let both = |(number, text): (usize, &&str)| {
        let answer = format!("echo {}: {text}", number + 1);
        [("user".to_owned(), (*text).to_owned()), ("assistant".to_owned(), answer)]
    };
    turns.iter().enumerate().flat_map(both).collect()
}

fn uuid(page: &Value, at: usize) -> String {
    page["messages"][at]["uuid"].as_str().unwrap().to_owned()
}

async fn page(site: &Site, path: &str) -> Value {
    let answer = get(site, path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn evict(site: &Site, conversation: &str) {
    assert_eq!(Answer::of(site.session("DELETE", conversation, "alice")).await.status, 200);
}

fn transcripts(data: &Path, conversation: &str) -> Vec<PathBuf> {
    let projects = session_dir(data, "alice", conversation).join("home/.claude/projects");
    let projects = std::fs::read_dir(projects).unwrap().map(|it| it.unwrap().path());
    projects.flat_map(|it| std::fs::read_dir(it).unwrap().map(|it| it.unwrap().path())).collect()
}

async fn kill(site: &Site) {
    let pid = site.pid("alice").await;
    let process = Process::of(i32::try_from(pid).unwrap()).unwrap();
    process.kill();
    eventually_some("the next child", SOON, async || {
        let entry = get(site, "default").await.json();
        (entry["pid"].as_u64().is_some_and(|next| next != pid) && entry["state"] == "idle").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_read_at_any_time() {
    let place = place();
    let (program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    assert_eq!(get(&site, "default/messages").await.error().1, "session_not_found");
    post(&site, "default/warm").await;
    assert_eq!(page(&site, "default/messages").await["messages"], json!([]), "nothing was said");
    for text in ["one", "two"] {
        say(&site, "default", text).await;
        // At once: the CLI may not have written it yet.
        let all = page(&site, "default/messages").await;
        assert_eq!(said(&all).last().unwrap().1.rsplit(' ').next(), Some(text));
    }
    let all = page(&site, "default/messages").await;
    assert_eq!((said(&all), &all["has_more"]), (spoken(&["one", "two"]), &json!(false)));
    let answer = &all["messages"][1];
    assert!(answer["created_at"].as_f64().unwrap() > 1.7e9 && answer["model"].is_string(), "{answer}");
    assert!(answer["usage"]["output_tokens"].is_number() && answer.get("is_error").is_none(), "{answer}");

    let first = page(&site, "default/messages?limit=3").await;
    assert_eq!((said(&first), &first["has_more"]), (spoken(&["one", "two"])[..3].to_vec(), &json!(true)));
    let rest = page(&site, &format!("default/messages?limit=3&after={}", uuid(&first, 2))).await;
    assert_eq!((said(&rest), &rest["has_more"]), (spoken(&["one", "two"])[3..].to_vec(), &json!(false)));
    let after = format!("default/messages?after={}", uuid(&rest, 0));
    assert_eq!(page(&site, &after).await["messages"], json!([]));
    assert_eq!(get(&site, "default/messages?after=nobody").await.error().1, "message_not_found");
    assert_eq!(get(&site, "default/messages?limit=0").await.error().1, "invalid_query");
    let other = Answer::of(site.session("GET", "default/messages", "bob")).await;
    assert_eq!(other.error().1, "session_not_found");
    let admin = Answer::of(site.of("GET", "/v1/sessions/default/messages?user=alice", "alice")).await;
    assert_eq!(said(&admin.json()).len(), 4);

    evict(&site, "default").await;
    assert_eq!(page(&site, "default/messages").await, all, "without a child");
    let running = site.asking("alice", &message("[[deltas:100000]] [[delay:100]]")).send().await.unwrap();
    let during = page(&site, "default/messages?limit=4").await;
    assert_eq!(during["messages"], all["messages"], "while a turn runs");
    assert_eq!(post(&site, "default/interrupt").await.json()["interrupted"], true);
    running.text().await.unwrap();

    let write = r#"[[tool:Write {"file_path":"note.txt","content":"hello"}]]"#;
    say(&site, "tools", write).await;
    let tools = page(&site, "tools/messages").await;
    let kinds: Vec<_> = said(&tools).into_iter().map(|(role, text)| format!("{role} {text}")).collect();
    assert_eq!(kinds[1..3], ["assistant tool_use", "user tool_result"], "{tools}");
    assert_eq!(tools["messages"][1]["content"][0]["input"]["file_path"], "note.txt");

    // The transcript is gone, and something waits in its place.
    evict(&site, "default").await;
    let before = page(&site, "default/messages").await;
    for transcript in transcripts(&place.data_dir(), "default") {
        std::fs::remove_file(&transcript).unwrap();
        mknodat(CWD, &transcript, FileType::Fifo, Mode::RWXU, 0).unwrap();
    }
    assert_eq!(said(&page(&site, "default/messages").await)[..4], said(&before)[..4]);
    drop(program);
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_keeps_the_workspace() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    assert_eq!(post(&site, "default/reset").await.error().1, "session_not_found");
    let write = r#"secret [[tool:Write {"file_path":"note.txt","content":"hello"}]]"#;
    say(&site, "default", write).await;
    let before = get(&site, "default").await.json();
    let reset = post(&site, "default/reset").await;
    assert_eq!(reset.status, 200, "{reset:?}");
    let entry = reset.json();
    assert_eq!((&entry["state"], &entry["turns"]), (&json!("dormant"), &json!(1)));
    assert_eq!(entry["total_cost_usd"], before["total_cost_usd"]);
    assert_eq!(page(&site, "default/messages").await["messages"], json!([]));
    assert_eq!(say(&site, "default", "[[recall]]").await, "");
    let work = session_dir(&place.data_dir(), "alice", "default").join("work/note.txt");
    assert_eq!(std::fs::read_to_string(work).unwrap(), "hello");
    assert_eq!(get(&site, "default").await.json()["turns"], 2);

    // It outlives child and server, as the conversation that was begun.
    assert_eq!(post(&site, "default/reset").await.status, 200);
    program.signal(Signal::KILL);
    program.code().await;
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    assert_eq!(say(&site, "default", "[[recall]]").await, "");
    kill(&site).await;
    assert_eq!(say(&site, "default", "[[recall]]").await, "[[recall]]");

    let running = site.asking("alice", &message("[[deltas:100000]] [[delay:100]]")).send().await.unwrap();
    let busy = post(&site, "default/reset").await;
    assert_eq!((busy.status, busy.error().1.as_str()), (409, "session_busy"));
    assert_eq!(post(&site, "default/reset?interrupt=true").await.status, 200);
    let rest = tokio::time::timeout(SOON, running.text()).await.unwrap().unwrap();
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert_eq!(say(&site, "default", "[[recall]]").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_conversation_matches_no_history() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let ask = async |messages: Value| {
        let body = json!({ "model": "sonnet", "max_tokens": 9, "messages": messages });
        let request = site.web().post(format!("{}/v1/messages", site.http));
        Answer::of(request.header("x-pilotlight-user", "alice").json(&body)).await
    };
    let first = ask(json!([{ "role": "user", "content": "one" }])).await;
    let name = first.header("x-pilotlight-session").to_owned();
    let text = first.json()["content"][0]["text"].clone();
    assert_eq!(post(&site, &format!("{name}/reset")).await.status, 200);
    let history = json!([{ "role": "user", "content": "one" }, { "role": "assistant", "content": text },
        { "role": "user", "content": "[[recall]]" }]);
    let second = ask(history).await;
    assert_ne!(second.header("x-pilotlight-session"), name);
    assert_eq!(second.json()["content"][0]["text"], "one");
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_conversation_goes_on_as_such() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    post(&site, "default/warm").await;
    let empty = post(&site, "default/compact").await;
    assert_eq!((empty.status, empty.error().1.as_str()), (400, "nothing_to_compact"));
    say(&site, "default", "one").await;
    say(&site, "default", "two").await;
    let before = get(&site, "default").await.json();
    let done = post(&site, "default/compact").await;
    assert_eq!(done.status, 200, "{done:?}");
    let done = done.json();
    assert_eq!((&done["tokens_before"], &done["tokens_after"]), (&json!(12), &json!(12)));
    let entry = get(&site, "default").await.json();
    let (cost, former) =
        (entry["total_cost_usd"].as_f64().unwrap(), before["total_cost_usd"].as_f64().unwrap());
    assert!((cost - former - done["cost_usd"].as_f64().unwrap()).abs() < 1e-9 && cost > former, "{entry}");
    assert_eq!(entry["turns"], 3);

    let is_compacted = async |texts: &[&str]| {
        let context: Value = serde_json::from_str(&say(&site, "default", "[[context]]").await).unwrap();
        let known = context.as_array().unwrap();
        let first = known[0]["content"].as_str().unwrap();
        assert!(first.starts_with("This session is being continued"), "{context}");
        assert!(!context.to_string().contains("\"one\""), "{context}");
        for text in texts {
            assert!(context.to_string().contains(text), "{text}: {context}");
        }
    };
    is_compacted(&[]).await;
    kill(&site).await;
    say(&site, "default", "three").await;
    evict(&site, "default").await;
    is_compacted(&["three"]).await;
    let all = page(&site, "default/messages").await;
    let texts: Vec<_> = said(&all).into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts[..4], ["one", "echo 1: one", "two", "echo 2: two"], "what was said stays readable");
    assert_eq!(all["messages"][4]["is_summary"], true);

    // Out of the journal alone.
    for compacted_last in [false, true] {
        if compacted_last {
            assert_eq!(post(&site, "default/compact").await.status, 200);
        }
        evict(&site, "default").await;
        for transcript in transcripts(&place.data_dir(), "default") {
            std::fs::remove_file(transcript).unwrap();
        }
        is_compacted(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_waits_its_turn() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[cli]\nargs = [\"--disable-slash-commands\"]\n").await;
    say(&site, "default", "one").await;
    let running = site.asking("alice", &message("[[deltas:100000]] [[delay:100]]")).send().await.unwrap();
    let compacting = tokio::spawn(site.session("POST", "default/compact", "alice").send());
    eventually_some("it waits", SOON, async || {
        (get(&site, "default").await.json()["queue_depth"] == 1).then_some(())
    })
    .await;
    assert_eq!(post(&site, "default/interrupt").await.json()["interrupted"], true);
    running.text().await.unwrap();
    let refused = compacting.await.unwrap().unwrap();
    assert_eq!(refused.status(), 502);
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "compact_failed", "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("isn't available"), "{body}");
    assert!(say(&site, "default", "[[recall]]").await.starts_with("one"), "it is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn fork_goes_on_by_itself() {
    let place = place();
    let config = "[limits]\nsessions_per_user = 2\n[permissions]\npolicy = \"allow\"\n";
    let (_program, site) = Program::ready(&place, config).await;
    let write = r#"one [[tool:Write {"file_path":"note.txt","content":"hello"}]]"#;
    say(&site, "default", write).await;
    say(&site, "default", "two").await;
    say(&site, "default", "three").await;
    let all = page(&site, "default/messages").await;
    let two = all["messages"].as_array().unwrap().iter().position(|it| it["content"][0]["text"] == "two");
    let at = uuid(&all, two.unwrap() + 1);

    let forked = send(&site, "default/fork", &json!({ "name": "other", "at": at })).await;
    assert_eq!(forked.status, 201, "{forked:?}");
    assert_eq!((&forked.json()["id"], &forked.json()["state"]), (&json!("other"), &json!("dormant")));
    let messages = page(&site, "other/messages").await;
    assert_eq!(messages["messages"], json!(all["messages"].as_array().unwrap()[..two.unwrap() + 2]));
    let recalled = say(&site, "other", "[[recall]]").await;
    assert!(recalled.starts_with("one ") && recalled.ends_with(" | two"), "{recalled}");
    assert!(say(&site, "default", "[[recall]]").await.ends_with("| two | three"), "unharmed");
    let work = |name| session_dir(&place.data_dir(), "alice", name).join("work/note.txt");
    assert!(work("default").exists() && !work("other").exists());

    // As any other conversation: after an eviction, and when the transcript is lost.
    evict(&site, "other").await;
    assert!(say(&site, "other", "[[recall]]").await.ends_with("two | [[recall]]"));
    evict(&site, "other").await;
    for transcript in transcripts(&place.data_dir(), "other") {
        std::fs::remove_file(transcript).unwrap();
    }
    assert!(say(&site, "other", "[[recall]]").await.ends_with("two | [[recall]] | [[recall]]"));

    for (body, status, code) in [
        (json!({ "name": "other" }), 409, "session_exists"),
        (json!({ "name": "default" }), 409, "session_exists"),
        (json!({ "name": "third", "at": "nobody" }), 404, "message_not_found"),
        (json!({ "name": ".." }), 400, "invalid_session"),
        (json!({ "name": "" }), 400, "invalid_session"),
        (json!({ "at": "x" }), 400, "invalid_body"),
        (json!(["third"]), 400, "invalid_body"),
    ] {
        let refused = send(&site, "default/fork", &body).await;
        let error = refused.error();
        assert_eq!((error.0, error.1.as_str()), (status, code), "{body}: {}", error.2);
    }
    assert_eq!(get(&site, "third").await.status, 404, "nothing is left of a refusal");
    let whole = send(&site, "default/fork", &json!({ "name": "whole" })).await;
    assert_eq!(whole.status, 201, "{whole:?}");
    let full = send(&site, "default/fork", &json!({ "name": "third" })).await;
    assert_eq!(full.error().1, "too_many_sessions");
    assert!(say(&site, "whole", "[[recall]]").await.ends_with("| two | three | [[recall]]"));
    let strange = Answer::of(site.session("POST", "default/fork", "bob").json(&json!({ "name": "x" }))).await;
    assert_eq!(strange.error().1, "session_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn rewound_conversation_ends_where_it_was_cut() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    say(&site, "default", "one").await;
    let at = uuid(&page(&site, "default/messages").await, 1);
    let write = r#"two [[tool:Write {"file_path":"note.txt","content":"hello"}]]"#;
    say(&site, "default", write).await;
    let turns = get(&site, "default").await.json()["turns"].clone();
    let rewound = send(&site, "default/rewind", &json!({ "at": at })).await;
    assert_eq!(rewound.status, 200, "{rewound:?}");
    assert_eq!(rewound.json()["turns"], turns, "totals stay");
    assert_eq!(said(&page(&site, "default/messages").await), spoken(&["one"]));
    assert_eq!(say(&site, "default", "[[recall]]").await, "one");
    let work = session_dir(&place.data_dir(), "alice", "default").join("work/note.txt");
    assert!(work.exists(), "files are not taken back");
    kill(&site).await;
    evict(&site, "default").await;
    assert_eq!(say(&site, "default", "[[recall]]").await, "one | [[recall]]");
    evict(&site, "default").await;
    for transcript in transcripts(&place.data_dir(), "default") {
        std::fs::remove_file(transcript).unwrap();
    }
    assert_eq!(say(&site, "default", "[[recall]]").await, "one | [[recall]] | [[recall]]");

    let running = site.asking("alice", &message("[[deltas:100000]] [[delay:100]]")).send().await.unwrap();
    let busy = send(&site, "default/rewind", &json!({ "at": at })).await;
    assert_eq!((busy.status, busy.error().1.as_str()), (409, "session_busy"));
    let rewound = send(&site, "default/rewind?interrupt=true", &json!({ "at": at })).await;
    assert_eq!(rewound.status, 200, "{rewound:?}");
    tokio::time::timeout(SOON, running.text()).await.unwrap().unwrap();
    assert_eq!(say(&site, "default", "[[recall]]").await, "one");
    let unknown = send(&site, "default/rewind", &json!({ "at": "nobody" })).await;
    assert_eq!(unknown.error().1, "message_not_found");
    assert_eq!(send(&site, "default/rewind", &json!({})).await.error().1, "invalid_body");
}

#[tokio::test(flavor = "multi_thread")]
async fn context_tells_what_fills_it() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    say(&site, "default", "one").await;
    let used = page(&site, "default/context").await;
    assert_eq!((&used["source"], &used["total_tokens"]), (&json!("cli"), &json!(11)), "{used}");
    assert_eq!((&used["max_tokens"], &used["auto_compact_at"]), (&json!(200_000), &json!(167_000)));
    assert_eq!(used["categories"][0], json!({ "name": "System prompt", "tokens": 10 }));
    evict(&site, "default").await;
    let used = page(&site, "default/context").await;
    assert_eq!((&used["source"], &used["max_tokens"]), (&json!("last_turn"), &Value::Null), "{used}");
    assert!(used["total_tokens"].as_u64().unwrap() > 0, "{used}");
    assert_eq!(get(&site, "default").await.json()["state"], "dormant", "no child was started");
    assert_eq!(get(&site, "none/context").await.error().1, "session_not_found");
}
