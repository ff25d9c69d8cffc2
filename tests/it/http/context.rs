//! The conversation of a session as a whole: what was said is read.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::common::layout::session_dir;
use crate::common::program::{Answer, Program, Site, message, place};

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
