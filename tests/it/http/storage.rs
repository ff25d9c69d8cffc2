//! A data directory that is full, damaged, or cannot be written: the server starts, says so, and recovers by itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::asking::DIALECTS;
use crate::common::layout::record_dir;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually, eventually_some};

/// A server whose data directory is a disk of its own, full from the beginning; nothing, if none can be mounted.
async fn on_a_full_disk(
    place: &std::sync::Arc<crate::common::place::Place>,
    config: &str,
) -> Option<(Program, Site, PathBuf)> {
    let mut try_it = Command::new("unshare");
    try_it.args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]);
    if !try_it.status().is_ok_and(|status| status.success()) {
        crate::common::installed::left_out("nothing can be mounted here (root, unshare)");
        return None;
    }
    let data = place.data_dir();
    std::fs::create_dir(&data).unwrap();
    let mut command = Command::new("unshare");
    let full = format!(
        "mount -t tmpfs -o size=2m none '{0}' && {{ cat /dev/zero > '{0}/ballast' || :; }} 2>/dev/null; exec \"$0\" \"$@\"",
        data.display()
    );
    command.args(["-m", "/bin/sh", "-c", &full, env!("CARGO_BIN_EXE_pilotlight")]);
    let (program, site) = Program::serve_by(place, command, config).await;
    let seen = PathBuf::from(format!("/proc/{}/root{}", program.process().pid, data.display()));
    Some((program, site, seen))
}

fn fill(seen: &Path) {
    let ballast = std::fs::File::create(seen.join("ballast")).unwrap();
    for size in [4096, 1] {
        while (&ballast).write_all(&vec![1; size]).is_ok() {}
    }
}

async fn readiness(site: &Site, wanted: u16) -> Answer {
    let is_so = async || {
        let answer = site.get("/readyz").await;
        (answer.status == wanted).then_some(answer)
    };
    eventually_some(&format!("/readyz says {wanted}"), SOON, is_so).await
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_said_at_the_start_and_recovers() {
    let place = place();
    let Some((program, site, seen)) = on_a_full_disk(&place, "").await else { return };
    let mine = place.data_dir();
    for round in 0..2 {
        let answer = readiness(&site, 503).await;
        let reasons = answer.json()["reasons"].to_string();
        assert!(reasons.contains("No space left") && reasons.contains("data_dir"), "{round}: {reasons}");
        assert!(!answer.body.contains(mine.to_str().unwrap()), "{reasons}");
        assert_eq!(site.get("/health").await.status, 503);
        assert_eq!(site.get("/livez").await.status, 200);
        assert_eq!(site.metric("data_dir_writable", &[]).await, 0.0, "{round}");
        // A session that cannot be kept is not begun.
        let refused = site.turn(&format!("user {round}"), "hello").await;
        let (_, code, text) = refused.error();
        assert_eq!(code, "storage", "{text}");
        assert!(!text.contains('/'), "{text}");
        std::fs::remove_file(seen.join("ballast")).unwrap();
        readiness(&site, 200).await;
        assert_eq!(site.metric("data_dir_writable", &[]).await, 1.0);
        assert_eq!(site.turn("alice", "hello").await.text(), format!("echo {}: hello", round + 1));
        // The transcript is there before the disk is full again.
        assert_eq!(Answer::of(site.session("DELETE", "default", "alice")).await.status, 200);
        fill(&seen);
    }
    // What is deleted makes room.
    assert_eq!(Answer::of(site.session("DELETE", "default?purge=true", "alice")).await.status, 200);
    assert!(
        program.err().contains("nothing can be written") && program.err().contains("can be written again")
    );
}

/// A sweep deletes on a full disk as on any other, and so makes room.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_does_not_stop_retention() {
    let place = place();
    let config = "[session]\nidle_timeout = \"1s\"\n[retention]\nidle_days = 30\nsweep_interval = \"100ms\"";
    let Some((program, site, seen)) = on_a_full_disk(&place, config).await else { return };
    std::fs::remove_file(seen.join("ballast")).unwrap();
    readiness(&site, 200).await;
    for user in ["alice", "bob"] {
        site.turn(user, "hello").await.text();
    }
    eventually_some("both rest", SOON, async || {
        let stats = site.get("/v1/pool/stats").await.json();
        stats["active_users"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    fill(&seen);
    readiness(&site, 503).await;
    // In place: there is no room for another file. Blanks at the end of a record mean nothing.
    let file = record_dir(&seen, "alice", "default").join("session.json");
    let before = std::fs::read(&file).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&before).unwrap();
    record["last_used"] = json!({ "secs_since_epoch": 1_000_000_000, "nanos_since_epoch": 0 });
    let text = format!("{:1$}", record.to_string(), before.len());
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().write_all(text.as_bytes()).unwrap();
    let deleted = async || (site.metric("retention_deleted_total", &[]).await == 1.0).then_some(());
    eventually_some("the idle session is deleted", SOON, deleted).await;
    eventually("its files are gone", SOON, || !record_dir(&seen, "alice", "default").exists()).await;
    assert_eq!(site.metric("retention_failures_total", &[]).await, 0.0, "{}", program.err());
    std::fs::remove_file(seen.join("ballast")).unwrap();
    readiness(&site, 200).await;
    assert_eq!(site.turn("bob", "again").await.text(), "echo 2: again");
    let back = site.turn("alice", "again").await;
    assert_eq!(back.events()[0]["subtype"], "context_lost", "{back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_record_is_counted_and_its_session_works() {
    let place = place();
    let (mut program, site) = Program::ready(&place, "").await;
    site.turn("alice", "hello").await.text();
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    let record = record_dir(&place.data_dir(), "alice", "default").join("session.json");
    std::fs::write(&record, "{\"version\": 1, \"user\"").unwrap();
    let (mut program, site) = Program::ready(&place, "").await;
    let looked = Answer::of(site.session("GET", "default", "alice")).await;
    assert_eq!(looked.status, 200, "{looked:?}");
    assert_eq!(site.metric("records_broken_total", &[]).await, 1.0);
    assert_eq!(site.metric("contexts_lost_total", &[]).await, 0.0, "the journal names the conversation");
    assert_eq!(site.turn("alice", "[[recall]]").await.text(), "hello");
    assert!(program.logs("moved aside"));
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    // Now both are broken.
    std::fs::write(&record, "{\"version\": 1, \"user\"").unwrap();
    std::fs::write(record.with_file_name("journal"), "PLJ1").unwrap();
    let (program, site) = Program::ready(&place, "").await;
    let looked = Answer::of(site.session("GET", "default", "alice")).await;
    assert_eq!(looked.status, 200, "{looked:?}");
    assert_eq!(site.metric("contexts_lost_total", &["kind=\"conversation\""]).await, 1.0);
    let events = site.turn("alice", "[[recall]]").await.events();
    assert_eq!(events[0]["subtype"], "context_lost");
    assert_eq!(site.turn("alice", "on").await.text(), "echo 2: on");
    assert_eq!(site.metric("contexts_lost_total", &["kind=\"conversation\""]).await, 1.0, "one loss");
    assert!(program.logs("moved aside"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_names_a_path_of_the_server() {
    let place = place();
    let missing = place.path().join("no-such/claude");
    let config = format!("[cli]\nprogram = \"{}\"\n", missing.display());
    let (program, site) = Program::serve(&place, &config).await;
    let tried = async || (site.metric("spawns_total", &["reason=\"not_found\""]).await > 0.0).then_some(());
    let (status, code, text) = site.turn("alice", "hello").await.error();
    assert_eq!((status, code.as_str()), (503, "cli_not_started"));
    assert!(text.contains("`claude`") && text.contains("cli.program"), "{text}");
    eventually_some("it was tried", SOON, tried).await;
    // The place of the trial start is not to be had.
    let probe = place.data_dir().join("probe");
    // A trial start that begins meanwhile makes it again.
    let taken = || {
        std::fs::remove_dir_all(&probe).ok();
        std::fs::write(&probe, "").is_ok()
    };
    eventually("a file is in its place", SOON, taken).await;
    let says = async || {
        let body = site.get("/readyz").await.body;
        body.contains("the log says why").then_some(body)
    };
    let ready = eventually_some("/readyz says so", SOON, says).await;
    for body in [text, ready, site.get("/health").await.body] {
        assert!(!body.contains(place.path().to_str().unwrap()), "{body}");
    }
    let data = place.data_dir().display().to_string();
    eventually("the log names it", SOON, || program.err().contains(&data)).await;
}

/// What a program says as it dies names the files that it is made of, and those of the session.
#[tokio::test(flavor = "multi_thread")]
async fn stderr_of_a_dead_cli_names_no_path() {
    let place = place();
    let cli = place.path().join("the-cli");
    let script =
        "#!/bin/sh\necho \"Error: cannot find module '$HOME/.claude/x.js' at load ($0:7:3)\" >&2\nexit 1\n";
    std::fs::write(&cli, script).unwrap();
    std::fs::set_permissions(&cli, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("[cli]\nprogram = \"{}\"\n", cli.display());
    let (program, site) = Program::serve(&place, &config).await;
    let says = async || {
        let body = site.get("/readyz").await.body;
        body.contains("cannot find module").then_some(body)
    };
    let mut bodies = vec![eventually_some("/readyz says so", SOON, says).await];
    for (number, dialect) in DIALECTS.iter().enumerate() {
        for is_streamed in [false, true] {
            let mut body = json!({ "model": "sonnet", "max_tokens": 9, "stream": is_streamed,
                dialect.list(): [{ "role": "user", "content": "hello" }] });
            if let Some(credentials) = (dialect.good)().get("oauth_credentials") {
                body["oauth_credentials"] = credentials.clone();
            }
            let request = site.of("POST", dialect.path, &format!("user-{number}-{is_streamed}"));
            bodies.push(Answer::of(request.json(&body)).await.body);
        }
    }
    for body in bodies {
        assert!(body.contains("…/x.js") && body.contains("…/the-cli:7:3"), "{body}");
        assert!(!body.contains(place.path().to_str().unwrap()), "{body}");
    }
    let logged = format!("{}:7:3", cli.display());
    eventually("the log has it whole", SOON, || program.err().contains(&logged)).await;
}

/// A journal that could not be begun has the whole conversation once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn journal_of_a_full_disk_is_whole_later() {
    let place = place();
    let Some((program, site, seen)) = on_a_full_disk(&place, "").await else { return };
    std::fs::remove_file(seen.join("ballast")).unwrap();
    readiness(&site, 200).await;
    assert_eq!(site.turn("alice", "first").await.text(), "echo 1: first");
    assert_eq!(Answer::of(site.session("DELETE", "default", "alice")).await.status, 200);
    // Damaged in the middle, it begins again with the next child.
    let record = record_dir(&seen, "alice", "default");
    let mut journal = std::fs::read(record.join("journal")).unwrap();
    let middle = journal.len() / 2;
    journal[middle] ^= 1;
    std::fs::write(record.join("journal"), &journal).unwrap();
    fill(&seen);
    assert_eq!(site.turn("alice", "second").await.text(), "echo 2: second");
    assert_eq!(site.metric("journal_errors_total", &["reason=\"broken\""]).await, 1.0);
    assert!(site.metric("journal_errors_total", &["reason=\"write\""]).await > 0.0);
    std::fs::remove_file(seen.join("ballast")).unwrap();
    assert_eq!(site.turn("alice", "third").await.text(), "echo 3: third");
    assert!(program.logs("is written again"), "{}", program.err());
    assert_eq!(Answer::of(site.session("DELETE", "default", "alice")).await.status, 200);
    let projects =
        crate::common::layout::session_dir(&seen, "alice", "default").join("home/.claude/projects");
    std::fs::remove_dir_all(projects).unwrap();
    assert_eq!(site.turn("alice", "[[recall]]").await.text(), "first | second | third");
    assert_eq!(site.metric("contexts_lost_total", &[]).await, 0.0);
}

/// The end of a turn is shown when the kernel has brought the journal to the disk, and without `synced` it does not wait.
#[tokio::test(flavor = "multi_thread")]
async fn synced_turn_is_on_disk_before_its_end() {
    for (mode, synced) in [("synced", 1), ("written", 0)] {
        let place = place();
        let (program, site) = Program::ready(&place, &format!("[session]\njournal = \"{mode}\"\n")).await;
        site.turn("alice", "hello").await.text();
        let (log, said) = (place.path().join("trace"), place.path().join("said"));
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-e", "trace=fdatasync", "-e", "signal=none", "-o"]).arg(&log);
        command
            .args(["-p", &program.process().pid.to_string()])
            .stderr(std::fs::File::create(&said).unwrap());
        let Ok(mut strace) = command.spawn() else {
            return crate::common::installed::left_out("strace is missing");
        };
        let attached = || std::fs::read_to_string(&said).unwrap_or_default();
        eventually("strace answers", SOON, || attached().contains("attach")).await;
        if !attached().contains("attached") {
            strace.wait().unwrap();
            return crate::common::installed::left_out("strace may not trace here");
        }
        for turn in 1..=3 {
            site.turn("alice", "again").await.text();
            let trace = std::fs::read_to_string(&log).unwrap();
            let count = trace.lines().filter(|line| line.contains("/journal>")).count();
            assert!(count >= turn * synced && (synced > 0 || count == 0), "{mode} {turn}: {trace}");
        }
        let pid = rustix::process::Pid::from_raw(strace.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        strace.wait().unwrap();
    }
}
