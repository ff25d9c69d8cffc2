//! What a child leaves where the server looks: pipes, links, devices, files without end. Nothing hangs, nothing grows,
//! nothing of others is shown, and others are served.

use std::io::ErrorKind::NotFound;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::common::layout::{record_dir, session_dir};
use crate::common::process::Process;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

/// No answer here has a reason to take longer; a pipe that is waited for never ends.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// What the server may grow by over a whole test: buffers and the allocator's own.
const GROWTH: u64 = 48 << 20;

/// Plants something in the place of `path`; false if this machine does not let us.
type Plant = fn(&Path, &Path) -> bool;

fn plants() -> [(&'static str, Plant); 7] {
    [
        ("pipe", |path, _| mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).is_ok()),
        ("zero", |path, _| symlink("/dev/zero", path).is_ok()),
        ("device", |path, _| mknodat(CWD, path, FileType::CharacterDevice, Mode::RWXU, 0x105).is_ok()),
        ("endless", |path, _| std::fs::File::create(path).is_ok_and(|file| file.set_len(10 << 30).is_ok())),
        ("directory", |path, _| std::fs::create_dir(path).is_ok()),
        ("hard link", |path, secret| std::fs::hard_link(secret, path).is_ok()),
        ("link", |path, secret| symlink(secret, path).is_ok()),
    ]
}

fn memory(process: Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    tokio::time::timeout(ANSWERED_WITHIN, Answer::of(request)).await.expect("it hangs")
}

async fn turn(site: &Site, user: &str, text: &str) -> Vec<Value> {
    let mut body = message(text);
    body["include_files"] = json!(true);
    answer(site.asking(user, &body)).await.events()
}

/// Evicts mallory's child and gives where its session is.
async fn rested(site: &Site, data: &Path) -> PathBuf {
    assert_eq!(answer(site.session("DELETE", "default", "mallory")).await.status, 200);
    session_dir(data, "mallory", "default")
}

fn transcript(own: &Path) -> PathBuf {
    let projects =
        std::fs::read_dir(own.join("home/.claude/projects")).unwrap().next().unwrap().unwrap().path();
    let mut files: Vec<_> = std::fs::read_dir(projects).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort_by_key(|file| file.metadata().ok().and_then(|it| it.modified().ok()));
    files.pop().unwrap()
}

fn result(events: &[Value]) -> &Value {
    events.iter().rfind(|event| event["type"] == "result").unwrap_or_else(|| panic!("{events:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_transcript_costs_no_turn() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let data = place.data_dir();
    turn(&site, "bob", "bob's").await;
    let secret = record_dir(&data, "bob", "default").join("session.json");
    turn(&site, "mallory", "warm-up").await;
    let before = memory(program.process());
    let mut said = vec!["warm-up"];
    for (what, plant) in plants() {
        turn(&site, "mallory", "kept").await;
        let own = rested(&site, &data).await;
        let file = transcript(&own);
        std::fs::remove_file(&file).unwrap();
        if !plant(&file, &secret) {
            crate::common::installed::left_out(&format!("{what} cannot be made here"));
            continue;
        }
        let listed = answer(site.session("GET", "default/messages?limit=1000", "mallory")).await;
        assert!(listed.status == 200 && listed.body.contains("\"kept\""), "{what}: {listed:?}");
        assert!(!listed.body.contains("cli_session_id"), "{what}: another's file: {listed:?}");
        let events = turn(&site, "mallory", "[[recall]]").await;
        assert_ne!(events[0]["subtype"], "context_lost", "{what}: {events:#?}");
        said.push("kept");
        assert_eq!(result(&events)["result"], json!(said.join(" | ")), "{what}");
        said.push("[[recall]]");
        assert_eq!(result(&turn(&site, "bob", "hello").await)["is_error"], false);
    }
    let grown = memory(program.process()).saturating_sub(before);
    assert!(grown < GROWTH, "the server grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_replaced_by_links_lead_nowhere() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let data = place.data_dir();
    turn(&site, "bob", "bob's").await;
    let bobs = session_dir(&data, "bob", "default");
    std::fs::write(bobs.join("work/bobs-secret"), "bobs-secret").unwrap();
    for replaced in ["home/.claude/projects", "home/.claude", "home", "work", "tmp"] {
        turn(&site, "mallory", "kept").await;
        let own = rested(&site, &data).await;
        let path = own.join(replaced);
        // What is empty has been removed at rest.
        std::fs::remove_dir_all(&path)
            .or_else(|error| if error.kind() == NotFound { Ok(()) } else { Err(error) })
            .unwrap();
        symlink(bobs.join(replaced), &path).unwrap();
        let listed = answer(site.of("GET", "/v1/workspace", "mallory")).await;
        assert!(!listed.body.contains("bobs-secret"), "{replaced}: {}", listed.body);
        let credentials =
            json!({ "access_token": "a", "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
        let mut body = message("[[recall]]");
        body["oauth_credentials"] = credentials;
        body["include_files"] = json!(true);
        let reply = answer(site.asking("mallory", &body)).await;
        let events = reply.events();
        assert_eq!(result(&events)["is_error"], false, "{replaced}: {events:#?}");
        assert!(
            !reply.body.contains("bobs-secret") && !reply.body.contains("bob's"),
            "{replaced}: {events:#?}"
        );
        assert!(!bobs.join("home/.claude/.credentials.json").exists(), "{replaced}: written through a link");
        // While a child runs: it may do so at any time.
        std::fs::rename(own.join("work"), own.join("was")).unwrap();
        symlink(bobs.join("work"), own.join("work")).unwrap();
        let reply = turn(&site, "mallory", "again").await;
        assert!(!json!(reply).to_string().contains("bobs-secret"), "{replaced}");
        assert_eq!(answer(site.session("DELETE", "default?purge=true", "mallory")).await.status, 200);
        assert!(!own.exists() && bobs.join("work/bobs-secret").exists(), "{replaced}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_files_are_named_and_not_read() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    let data = place.data_dir();
    turn(&site, "bob", "bob's").await;
    let secret = session_dir(&data, "bob", "default").join("home/secret");
    std::fs::write(&secret, "bobs-secret").unwrap();
    turn(&site, "mallory", "hello").await;
    let before = memory(program.process());
    let work = session_dir(&data, "mallory", "default").join("work");
    let script: Vec<_> = plants().into_iter().map(|(what, plant)| (what, plant, work.join(what))).collect();
    // Planted while the turn runs, as a tool would.
    let running = turn(&site, "mallory", "[[sleep:1500]]");
    let busy = async || (site.entry("mallory", "default").await["state"] == "busy").then_some(());
    let planting = async {
        eventually_some("the turn runs", SOON, busy).await;
        for (_, plant, path) in &script {
            plant(path, &secret);
        }
        for number in 0..5000 {
            symlink("/dev/zero", work.join(format!("n{number}"))).unwrap();
        }
    };
    let (events, ()) = tokio::join!(running, planting);
    let batch =
        events.iter().find(|event| event["type"] == "files_batch").unwrap_or_else(|| panic!("{events:#?}"));
    assert!(!batch.to_string().contains("bobs-secret"), "{batch}");
    for file in batch["files"].as_array().unwrap() {
        assert_eq!(file["path"], "endless", "{batch}");
        assert_eq!(file["truncated"], true);
    }
    let listed = answer(site.of("GET", "/v1/workspace", "mallory")).await;
    assert_eq!(listed.status, 200);
    // The credentials too.
    let held = session_dir(&data, "mallory", "default").join("home/.claude/.credentials.json");
    for (what, plant) in plants() {
        std::fs::remove_file(&held).or_else(|_| std::fs::remove_dir(&held)).ok();
        if !plant(&held, &secret) {
            continue;
        }
        let mut body = message("hello");
        body["oauth_credentials"] =
            json!({ "access_token": what, "refresh_token": "r", "expires_at": 4_102_444_800_000_i64 });
        let reply = answer(site.asking("mallory", &body)).await;
        if what == "directory" {
            // Not to be replaced by a file: a typed error, and the server's path is not in it.
            assert_eq!(reply.error().1, "storage");
            assert!(!reply.body.contains(data.to_str().unwrap()), "{}", reply.body);
            std::fs::remove_dir(&held).unwrap();
        } else {
            assert_eq!(result(&reply.events())["is_error"], false, "{what}");
            assert!(std::fs::read_to_string(&held).unwrap().contains(what));
        }
    }
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "bobs-secret");
    let grown = memory(program.process()).saturating_sub(before);
    assert!(grown < GROWTH, "the server grew by {grown} bytes");
}
