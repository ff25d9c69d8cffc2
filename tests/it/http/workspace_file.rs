//! Single files of a working directory, up and down.

use std::os::unix::fs::symlink;

use crate::common::layout::session_dir;
use crate::common::program::{Answer, Program, Site, place};

async fn put(site: &Site, path: &str, content: &str) -> Answer {
    Answer::of(site.of("PUT", &format!("/v1/workspace/files/{path}"), "alice").body(content.to_owned())).await
}

async fn get(site: &Site, path: &str, user: &str) -> Answer {
    Answer::of(site.of("GET", &format!("/v1/workspace/files/{path}"), user)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_up_and_down() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[permissions]\npolicy = \"allow\"\n").await;
    let written = put(&site, "data/a%20b.txt", "hello").await;
    assert_eq!(
        written.json(),
        serde_json::json!({ "session": "default", "path": "data/a b.txt", "size": 5 })
    );
    let read = get(&site, "data/a%20b.txt", "alice").await;
    assert_eq!(
        (read.status, read.body.as_str(), read.header("content-disposition")),
        (200, "hello", "attachment")
    );
    assert_eq!(read.header("x-content-type-options"), "nosniff");
    // The child has it, and what the child writes can be fetched.
    let text =
        r#"[[tool:Read {"file_path":"data/a b.txt"}]][[tool:Write {"file_path":"made.txt","content":"hi"}]]"#;
    let body = serde_json::json!({ "messages": [{ "role": "user", "content": text }] });
    let turn = Answer::of(site.of("POST", "/v1/messages/keepalive", "alice").json(&body)).await;
    assert!(turn.body.contains("TOOLS:ok"), "{turn:?}");
    assert_eq!(get(&site, "made.txt", "alice").await.body, "hi");
    assert_eq!(put(&site, "made.txt", "changed").await.status, 200);
    assert_eq!(get(&site, "made.txt", "alice").await.body, "changed");
    assert_eq!(get(&site, "made.txt", "bob").await.status, 404, "of another user");
    let gone = Answer::of(site.of("DELETE", "/v1/workspace/files/made.txt", "alice")).await;
    assert_eq!(gone.json()["deleted"], true);
    assert_eq!(get(&site, "made.txt", "alice").await.error().1, "file_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_plain_files_is_reached() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[limits]\nworkspace_bytes = 1048576\n").await;
    assert_eq!(put(&site, "a.txt", "mine").await.status, 200);
    let work = session_dir(&place.data_dir(), "alice", "default").join("work");
    let secret = place.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    symlink(&secret, work.join("link")).unwrap();
    symlink(place.path(), work.join("way")).unwrap();
    std::fs::hard_link(&secret, work.join("second")).unwrap();
    std::fs::create_dir(work.join("directory")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, work.join("pipe"), rustix::fs::Mode::RWXU).unwrap();
    for path in ["link", "way/secret", "second", "directory", "pipe", "a.txt/b"] {
        let answer = get(&site, path, "alice").await;
        assert!(answer.status == 409 && !answer.body.contains("secret\""), "{path}: {answer:?}");
    }
    for path in ["directory", "way/new", "a.txt/b"] {
        assert_eq!(put(&site, path, "x").await.status, 409, "{path}");
    }
    // A link is replaced, not followed.
    assert_eq!(put(&site, "link", "own").await.status, 200);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
    for path in ["..%2Fsecret", ".claude/settings.json", "a//b", ".mcp.json", "a%00"] {
        assert_eq!(put(&site, path, "x").await.error().1, "invalid_path", "{path}");
    }
    let full = put(&site, "large", &"x".repeat(1_048_577)).await;
    assert_eq!((full.status, full.error().1.as_str()), (422, "workspace_limit"), "{full:?}");
    assert!(!work.join("large").exists() && !place.path().join("new").exists());
}
