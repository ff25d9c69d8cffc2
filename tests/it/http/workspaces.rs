//! The files of sessions: their limits, and the template that they begin with.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

/// The watch counts every five seconds.
const COUNTED: Duration = Duration::from_secs(30);

fn bash(command: &str) -> String {
    format!("[[tool:Bash {}]]", json!({ "command": command }))
}

fn config(limits: &str) -> String {
    format!("[permissions]\npolicy = \"allow\"\n[limits]\n{limits}\n")
}

/// The code of the error in a stream or a refusal.
fn code(answer: &Answer) -> String {
    let event = || {
        answer.body.lines().find_map(|line| {
            let event: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
            (event["type"] == "error").then_some(event)
        })
    };
    let error =
        if answer.status == 200 { event().unwrap_or_else(|| panic!("{answer:?}")) } else { answer.json() };
    error["error"]["code"].as_str().unwrap().to_owned()
}

async fn exits(site: &Site) -> f64 {
    site.metric("exits_total", &["reason=\"workspace_limit\""]).await
}

async fn files(site: &Site, user: &str) -> Vec<Value> {
    let answer = Answer::of(site.of("GET", "/v1/workspace", user)).await;
    answer.json()["files"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect()
}

/// A session above its limit at the end of a turn has no further turn until its files are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn session_above_limit_is_refused_until_below() {
    for (limit, fill) in [
        ("workspace_bytes = 4194304", "head -c 8m /dev/zero > big"),
        ("workspace_bytes = 4194304", "head -c 8m /dev/zero > \"$HOME/.hidden\""),
        ("workspace_files = 150", "for n in $(seq 200); do ln -s / link$n; done"),
    ] {
        let place = place();
        let (_program, site) = Program::ready(&place, &config(limit)).await;
        assert_eq!(site.turn("alice", &bash(fill)).await.status, 200);
        let ended = async || (exits(&site).await >= 1.0).then_some(());
        eventually_some("the child ends", SOON, ended).await;
        for _ in 0..2 {
            let refused = site.turn("alice", "again").await;
            assert_eq!(code(&refused), "workspace_limit", "{limit}");
            let key = limit.split(' ').next().unwrap();
            assert!(refused.body.contains(&format!("limits.{key}")), "{refused:?}");
        }
        assert_eq!(site.turn("bob", "hello").await.text(), "echo 1: hello", "another session");
        for path in ["/v1/messages", "/v1/chat/completions"] {
            let body = json!({ "model": "sonnet", "max_tokens": 9, "messages": [{ "role": "user", "content": "a" }] });
            let request =
                site.of("POST", path, "alice").header("x-pilotlight-session", "default").json(&body);
            let refused = Answer::of(request).await;
            assert_eq!((refused.status, code(&refused).as_str()), (422, "workspace_limit"), "{path}");
        }
        let delete = site.of("DELETE", "/v1/workspace?confirm=true", "alice");
        assert_eq!(Answer::of(delete).await.status, 200);
        assert_eq!(site.turn("alice", "new").await.text(), "echo 1: new", "{limit}");
        assert_eq!(exits(&site).await, 1.0, "bob keeps his child");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_turn_above_limit_ends() {
    let place = place();
    let (_program, site) = Program::ready(&place, &config("workspace_bytes = 4194304")).await;
    let text = bash("head -c 8m /dev/zero > big; sleep 600");
    let turn = site.turn("alice", &text);
    let answer = tokio::time::timeout(COUNTED, turn).await.expect("the turn ends");
    assert_eq!(code(&answer), "workspace_limit");
    assert_eq!(site.metric("turns_total", &["outcome=\"workspace_limit\""]).await, 1.0);
    assert!(place.running(&["sleep", "600"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn new_session_begins_with_the_template() {
    let place = place();
    let template = tempfile::tempdir().unwrap();
    std::fs::create_dir(template.path().join("src")).unwrap();
    std::fs::write(template.path().join("src/main.c"), "int main;").unwrap();
    let limits = config("max_children = 9");
    let config = format!("{limits}[workspace]\ntemplate = \"{}\"\n", template.path().display());
    let (_program, site) = Program::ready(&place, &config).await;
    site.turn("alice", &bash("grep -c main src/main.c > found; rm src/main.c")).await.text();
    assert_eq!(files(&site, "alice").await, ["found"]);
    // The next child of the session does not bring the file back; a new session has it.
    assert_eq!(Answer::of(site.session("DELETE", "default", "alice")).await.status, 200);
    site.turn("alice", "again").await.text();
    assert_eq!(files(&site, "alice").await, ["found"]);
    let delete = site.of("DELETE", "/v1/workspace?confirm=true", "alice");
    assert_eq!(Answer::of(delete).await.status, 200);
    site.turn("alice", "new").await.text();
    assert_eq!(files(&site, "alice").await, ["src/main.c"]);
    // Files of a turn are found also if it is the first one.
    let mut body = message(&bash("echo 1 > made"));
    body["include_files"] = true.into();
    let answer = Answer::of(site.asking("bob", &body)).await;
    assert!(answer.body.contains("made") && !answer.body.contains("int main;"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfit_template_is_refused_at_start() {
    let place = place();
    let template = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", template.path().join("out")).unwrap();
    let config = format!("[workspace]\ntemplate = \"{}\"\n", template.path().display());
    let file = place.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let data = place.data_dir();
    let arguments = ["serve", "--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let mut program = Program::start(&place, &arguments, &[]);
    assert_ne!(program.code().await, Some(0));
    let shown = program.err();
    assert!(shown.contains("workspace.template") && shown.contains("`out`"), "{shown}");
}
