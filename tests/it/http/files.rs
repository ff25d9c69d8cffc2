//! Files that a turn writes, for callers that ask for them.

use serde_json::json;

use crate::common::program::{Answer, Program, message, place};

#[tokio::test(flavor = "multi_thread")]
async fn written_files_come_before_the_end() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"").await;
    let asking = |text: &str, include: bool| {
        let mut body = message(text);
        body["include_files"] = json!(include);
        site.asking("alice", &body)
    };
    let write = |name: &str, content: &str| {
        format!(r#"[[tool:Write {{"file_path":"{name}","content":"{content}"}}]]"#)
    };
    let unasked = Answer::of(asking(&write("old.txt", "old"), false)).await;
    assert!(unasked.events().iter().all(|event| event["type"] != "files_batch"));

    let text = format!("{}{}", write("new.txt", "new"), write(".hidden", "secret"));
    let events = Answer::of(asking(&text, true)).await.events();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[kinds.len() - 3..], ["result", "file_created", "files_batch"]);
    let batch = events.last().unwrap();
    let expected = json!([{ "path": "new.txt", "content": "new", "encoding": "text", "size": 3 }]);
    assert_eq!(batch["files"], expected, "{batch}");
    assert_eq!(batch["files_summary"]["total"], 1);
    assert_eq!(batch["files_summary"]["total_size"], 3);
    assert!(!batch.to_string().contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_turn_wrote_meanwhile_is_not_this_ones() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, "[http]\nheartbeat = \"100ms\"\n[permissions]\npolicy = \"allow\"").await;
    let with_files = |text: &str| {
        let mut body = message(text);
        body["include_files"] = json!(true);
        body
    };
    let write = |name: &str| format!("[[tool:Write {{\"file_path\":\"{name}\",\"content\":\"x\"}}]]");
    // The second one waits, for many heartbeats, while the first writes.
    let first = with_files(&format!("[[sleep:1000]]{}", write("first")));
    let first = Answer::of(site.asking("alice", &first));
    let second = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        Answer::of(site.asking("alice", &with_files(&format!("[[sleep:300]]{}", write("second"))))).await
    };
    let (first, second) = tokio::join!(first, second);
    for (answer, name) in [(first, "first"), (second, "second")] {
        let events = answer.events();
        let created: Vec<_> = events.iter().filter(|event| event["type"] == "file_created").collect();
        assert_eq!(created.len(), 1, "{created:?}");
        assert_eq!(created[0]["path"], name);
    }
}
