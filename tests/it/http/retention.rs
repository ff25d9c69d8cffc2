//! The retention rules from outside: sessions that rest are deleted with everything of theirs, those in use are not.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::inotify;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::events::Watching;
use crate::common::layout::{record_dir, session_dir, session_dirs};
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually_some};

const DAY: u64 = 24 * 3600;
const SOON_SWEPT: &str = "sweep_interval = \"100ms\"\n";

async fn say(site: &Site, user: &str, conversation: &str, text: &str) -> Answer {
    let mut body = message(text);
    body["session_id"] = json!(conversation);
    Answer::of(site.asking(user, &body)).await
}

/// A server that has these conversations of these users, and has stopped.
async fn former(place: &Arc<Place>, conversations: &[(&str, &str)]) {
    let (mut program, site) = Program::ready(place, "").await;
    for (user, conversation) in conversations {
        say(&site, user, conversation, "hello").await.text();
    }
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
}

/// Moves the last use of a session into the past.
fn last_used(data: &Path, user: &str, conversation: &str, days: u64) {
    let file = record_dir(data, user, conversation).join("session.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    record["last_used"] = json!({ "secs_since_epoch": now - days * DAY, "nanos_since_epoch": 0 });
    std::fs::write(&file, record.to_string()).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn conversations(site: &Site, user: &str) -> Vec<String> {
    let list = Answer::of(site.of("GET", "/v1/sessions", user)).await.json();
    let sessions = list["sessions"].as_array().unwrap().iter();
    let mut names: Vec<_> = sessions.map(|session| session["id"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_session_is_deleted_with_everything() {
    let place = place();
    let data = place.data_dir();
    former(&place, &[("alice", "old"), ("bob", "new")]).await;
    last_used(&data, "alice", "old", 30);
    last_used(&data, "bob", "new", 29);
    let (record, directory) = (record_dir(&data, "alice", "old"), session_dir(&data, "alice", "old"));
    assert!(record.exists() && directory.exists() && names(&data.join("records/users")).len() == 2);

    let (program, site) = Program::ready(&place, &format!("[retention]\nidle_days = 30\n{SOON_SWEPT}")).await;
    let mut watching = Watching::all(&site).await;
    let (_, event) = watching.until("expired").await;
    assert_eq!((&event["session"], &event["user"]), (&json!("old"), &json!("alice")));
    assert_eq!(event["reason"], "idle");
    assert!(event["bytes"].as_u64().unwrap() > 0, "{event}");
    // The event comes first, the files go afterwards.
    let gone = async || {
        let is_renamed = !record.exists() && names(&data.join("records/.deleted")).is_empty();
        (is_renamed && !directory.exists() && session_dirs(&data).len() == 1).then_some(())
    };
    eventually_some("its files are gone", SOON, gone).await;
    assert_eq!(names(&data.join("records/users")).len(), 1, "its entry in the list of its user");
    assert_eq!(conversations(&site, "alice").await, Vec::<String>::new());
    assert_eq!(conversations(&site, "bob").await, ["new"]);
    assert_eq!(site.metric("retention_deleted_total", &["reason=\"idle\""]).await, 1.0);
    assert!(site.metric("retention_freed_bytes_total", &[]).await > 0.0);
    assert_eq!(site.metric("retention_failures_total", &[]).await, 0.0);
    let counted = async || (site.metric("sessions_on_disk", &[]).await == 1.0).then_some(());
    eventually_some("the other one is counted", SOON, counted).await;
    assert!(site.metric("sessions_on_disk_bytes", &[]).await > 0.0);
    assert!(site.metric("sessions_on_disk_files", &[]).await > 0.0);
    assert!(program.logs("deleted by the retention rules"));
    assert!(!program.err().contains("alice"), "{}", program.err());

    // The user comes back: a new conversation, and the loss is the first event of its answer.
    let back = say(&site, "alice", "old", "again").await;
    assert_eq!(back.events()[0]["subtype"], "context_lost", "{back:?}");
    assert_eq!(back.text(), "echo 1: again");
    assert!(!say(&site, "alice", "old", "more").await.body.contains("context_lost"), "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn least_recently_used_session_goes_first() {
    let place = place();
    let data = place.data_dir();
    let all = ["default", "a", "b", "c", "d"].map(|conversation| ("alice", conversation));
    former(&place, &all).await;
    for (days, conversation) in [(50, "default"), (1, "a"), (3, "b"), (2, "c"), (4, "d")] {
        last_used(&data, "alice", conversation, days);
    }
    let config = format!("[retention]\nsessions_per_user = 2\n{SOON_SWEPT}");
    let (_program, site) = Program::ready(&place, &config).await;
    let mut watching = Watching::all(&site).await;
    for expected in ["d", "b"] {
        let (_, event) = watching.until("expired").await;
        assert_eq!((&event["session"], &event["reason"]), (&json!(expected), &json!("sessions")));
    }
    assert_eq!(conversations(&site, "alice").await, ["a", "c", "default"], "the default one does not count");
    assert_eq!(site.metric("retention_deleted_total", &[]).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn size_of_a_users_sessions_is_bounded() {
    let place = place();
    let data = place.data_dir();
    former(&place, &[("alice", "a"), ("alice", "b"), ("bob", "c")]).await;
    for (days, user, conversation) in [(2, "alice", "a"), (1, "alice", "b"), (3, "bob", "c")] {
        last_used(&data, user, conversation, days);
        let work = session_dir(&data, user, conversation).join("work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::write(work.join("file"), vec![1; 800 << 10]).unwrap();
    }
    // An open directory would be counted as well.
    std::os::unix::fs::symlink("/usr", session_dir(&data, "bob", "c").join("work/link")).unwrap();
    let config = format!("[retention]\nbytes_per_user = {}\n{SOON_SWEPT}", 1 << 20);
    let (_program, site) = Program::ready(&place, &config).await;
    let mut watching = Watching::all(&site).await;
    let (_, event) = watching.until("expired").await;
    assert_eq!((&event["session"], &event["reason"]), (&json!("a"), &json!("bytes")));
    assert!(event["bytes"].as_u64().unwrap() >= 800 << 10, "{event}");
    let round = site.metric("retention_last_round_timestamp_seconds", &[]).await;
    let later = async || {
        (site.metric("retention_last_round_timestamp_seconds", &[]).await > round + 0.1).then_some(())
    };
    eventually_some("another round", SOON, later).await;
    assert_eq!(
        (conversations(&site, "alice").await, conversations(&site, "bob").await),
        (vec!["b".into()], vec!["c".into()])
    );
}

/// A session in memory is in use, however old its last turn is said to be.
#[tokio::test(flavor = "multi_thread")]
async fn session_in_memory_is_never_deleted() {
    let place = place();
    let data = place.data_dir();
    let config = format!("[retention]\nidle_days = 1\nsessions_per_user = 1\n{SOON_SWEPT}");
    let (_program, site) = Program::ready(&place, &config).await;
    for conversation in ["a", "b", "c"] {
        say(&site, "alice", conversation, "hello").await.text();
    }
    last_used(&data, "alice", "a", 99);
    for _ in 0..3 {
        let round = site.metric("retention_last_round_timestamp_seconds", &[]).await;
        let later =
            async || (site.metric("retention_last_round_timestamp_seconds", &[]).await > round).then_some(());
        eventually_some("another round", SOON, later).await;
    }
    assert_eq!(site.metric("sessions_on_disk", &[]).await, 3.0);
    assert_eq!(site.metric("retention_deleted_total", &[]).await, 0.0);
    assert_eq!(say(&site, "alice", "a", "still here").await.text(), "echo 2: still here");
}

/// Turns that come while their sessions are deleted go on, or begin again and say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn turn_in_the_instant_of_deletion_is_answered() {
    let place = place();
    let data = place.data_dir();
    let all: Vec<String> = (0..12).map(|number| format!("user-{number}")).collect();
    let users: Vec<(&str, &str)> = all.iter().map(|user| (user.as_str(), "default")).collect();
    former(&place, &users).await;
    for user in &all {
        last_used(&data, user, "default", 30);
    }
    let config = format!("[retention]\nidle_days = 30\n{SOON_SWEPT}");
    let (_program, site) = Program::ready(&place, &config).await;
    let mut watching = Watching::all(&site).await;
    watching.until("expired").await;
    let turns = all.iter().map(|user| say(&site, user, "default", "again"));
    let answers = futures_util::future::join_all(turns).await;
    let mut deleted = 0.0;
    for (user, answer) in all.iter().zip(&answers) {
        let is_reported = answer.events()[0]["subtype"] == "context_lost";
        deleted += f64::from(u8::from(is_reported));
        let expected = if is_reported { "echo 1: again" } else { "echo 2: again" };
        assert_eq!(answer.text(), expected, "{user}: {answer:?}");
    }
    assert_eq!(
        site.metric("retention_deleted_total", &[]).await,
        deleted,
        "each loss is reported, and no other"
    );
    assert!(deleted >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_system_of_the_data_directory_is_measured() {
    let place = place();
    let (_program, site) = Program::ready(&place, "").await;
    let found = rustix::fs::statvfs(place.data_dir()).unwrap();
    let total = (found.f_blocks * found.f_frsize) as f64;
    let (used, free) = ("space=\"used\"", "space=\"free\"");
    let (used, free) =
        (site.metric("data_dir_bytes", &[used]).await, site.metric("data_dir_bytes", &[free]).await);
    assert!(used > 0.0 && free > 0.0 && used + free <= total, "{used} {free} {total}");
    let inodes = site.metric("data_dir_inodes", &[]).await;
    assert!(inodes <= found.f_files as f64 && (inodes > 0.0) == (found.f_files > 0), "{inodes}");
}

/// Counts how often the records of these sessions are opened from now on.
fn watch_records(data: &Path, user: &str, conversations: &[String]) -> impl FnOnce() -> usize + use<> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let watch = inotify::init(flags).unwrap();
    for conversation in conversations {
        let record = record_dir(data, user, conversation);
        inotify::add_watch(&watch, record, inotify::WatchFlags::OPEN).unwrap();
    }
    move || {
        let mut buffer = vec![std::mem::MaybeUninit::uninit(); 1 << 20];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        let mut opened = 0;
        while let Ok(event) = events.next() {
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW));
            opened += usize::from(event.file_name().is_some_and(|name| name == c"session.json"));
        }
        opened
    }
}

/// A start on many sessions: its first round waits for nothing, and reads each record once.
#[tokio::test(flavor = "multi_thread")]
async fn first_round_reads_each_record_once() {
    let place = place();
    let data = place.data_dir();
    former(&place, &[("alice", "c0")]).await;
    let sessions: Vec<_> = (0..1000).map(|number| format!("c{number}")).collect();
    let first = record_dir(&data, "alice", "c0");
    let record: Value = serde_json::from_slice(&std::fs::read(first.join("session.json")).unwrap()).unwrap();
    let list = data.join("records/users").join(&names(&data.join("records/users"))[0]);
    for (number, name) in sessions.iter().enumerate().skip(1) {
        let (own, directory) = (record_dir(&data, "alice", name), format!("{number:032x}"));
        std::fs::create_dir(&own).unwrap();
        std::fs::create_dir_all(data.join("sessions").join(&directory).join("home")).unwrap();
        let mut record = record.clone();
        record["conversation"] = json!(name);
        record["directory"] = json!(directory);
        std::fs::write(own.join("session.json"), record.to_string()).unwrap();
        std::fs::write(own.join("directory"), directory).unwrap();
        std::fs::write(list.join(own.file_name().unwrap()), "").unwrap();
    }
    let opened = watch_records(&data, "alice", &sessions);
    let (_program, site) = Program::ready(&place, "[retention]\nsweep_interval = \"1s\"").await;
    let all = sessions.len() as f64;
    let counted = async || (site.metric("sessions_on_disk", &[]).await >= all).then_some(());
    eventually_some("all are counted", 4 * SOON, counted).await;
    assert_eq!(opened(), sessions.len());
}

/// A purge that SIGKILL cut short has moved the record away, and the session is still in the list of its user.
#[tokio::test(flavor = "multi_thread")]
async fn list_loses_a_session_without_a_record() {
    let place = place();
    let data = place.data_dir();
    former(&place, &[("alice", "kept"), ("alice", "purged")]).await;
    let list = data.join("records/users").join(&names(&data.join("records/users"))[0]);
    std::fs::remove_dir_all(record_dir(&data, "alice", "purged")).unwrap();
    assert_eq!(names(&list).len(), 2);
    let (_program, site) = Program::ready(&place, "[retention]\nsweep_interval = \"1s\"").await;
    eventually_some("it is off the list", SOON, async || (names(&list).len() == 1).then_some(())).await;
    assert_eq!(conversations(&site, "alice").await, ["kept"]);
}
