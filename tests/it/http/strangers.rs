//! Callers without keys whose OAuth tokens are unknown: any text is one, so what they leave on the disk is bounded.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::common::layout::session_dirs;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn names(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Everything below a directory.
fn inodes(directory: &Path) -> usize {
    names(directory).iter().map(|path| 1 + if path.is_dir() { inodes(path) } else { 0 }).sum()
}

/// Moves the last change of a file or directory into the past.
fn aged(path: &Path, age: Duration) {
    File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

fn body(name: &str, text: &str) -> Value {
    let mut body = message(text);
    body["oauth_credentials"] = json!({ "access_token": format!("a-{name}"),
        "refresh_token": format!("r-{name}"), "expires_at": 4_102_444_800_000_i64 });
    body
}

async fn ask(site: &Site, name: &str, text: &str) -> Answer {
    Answer::of(site.post().json(&body(name, text))).await
}

/// A request that is refused once its user is known.
async fn knock(site: &Site, name: &str) -> Answer {
    Answer::of(site.post().header("x-pilotlight-session", "%").json(&body(name, "hello"))).await
}

/// Users who never had an answer leave nothing; one who had keeps the conversation.
#[tokio::test(flavor = "multi_thread")]
async fn users_without_an_answer_are_reclaimed() {
    let place = place();
    let config = "[session]\nidle_timeout = \"1s\"\n[retention]\nsweep_interval = \"100ms\"";
    let (_program, site) = Program::ready(&place, config).await;
    assert_eq!(ask(&site, "known", "hello").await.text(), "echo 1: hello");
    let records = place.data_dir().join("records");
    let (new, users) = (records.join("identities/new"), records.join("users"));
    let marks = names(&new);
    assert_eq!(marks.len(), 1);
    aged(&marks[0], Duration::from_secs(700));
    eventually("the answer is found", SOON, || names(&new).is_empty()).await;

    // As many inodes as there are without strangers, once the first one rests.
    for number in 0..20 {
        assert_eq!(knock(&site, &format!("knocks-{number}")).await.status, 400);
    }
    for number in 0..3 {
        let failed = ask(&site, &format!("fails-{number}"), "[[api_error:401]]").await;
        assert!(!failed.body.contains("\"is_error\":false"), "{failed:?}");
    }
    assert_eq!((names(&new).len(), names(&users).len()), (23, 4));
    assert!(names(&records.join("identities/tokens")).len() == 48);
    names(&new).iter().for_each(|mark| aged(mark, Duration::from_secs(700)));
    eventually("the strangers are gone", SOON, || names(&new).is_empty()).await;
    assert_eq!(names(&users).len(), 1);
    assert_eq!(names(&records.join("identities/tokens")).len(), 2);
    assert_eq!(names(&records.join("identities/users")).len(), 1);
    assert_eq!(names(&records.join("usage")).len(), 1);
    let sessions = names(&place.data_dir().join("sessions"));
    let sessions =
        sessions.iter().filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    assert_eq!(sessions.count(), 1);
    assert!(inodes(&place.data_dir()) < 60, "{}", inodes(&place.data_dir()));

    assert_eq!(ask(&site, "known", "again").await.text(), "echo 2: again");
    // One who comes back begins again, and stays once there is an answer.
    assert_eq!(ask(&site, "fails-0", "hello").await.text(), "echo 1: hello");
}

/// A session in memory keeps its user, however old the mark is.
#[tokio::test(flavor = "multi_thread")]
async fn new_user_with_a_running_turn_is_kept() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[retention]\nsweep_interval = \"100ms\"").await;
    let asking = site.clone();
    let turn = tokio::spawn(async move { ask(&asking, "slow", "[[sleep:1500]]hello").await });
    let new = place.data_dir().join("records/identities/new");
    eventually("the user is new", SOON, || names(&new).len() == 1).await;
    let round = async || site.metric("retention_last_round_timestamp_seconds", &[]).await;
    names(&new).iter().for_each(|mark| aged(mark, DAY));
    let before = round().await;
    assert_eq!(turn.await.unwrap().text(), "echo 1: hello");
    assert!(round().await > before, "nothing was swept meanwhile");
    assert_eq!(ask(&site, "slow", "again").await.text(), "echo 2: again");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_unknown_tokens_in_a_minute() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nnew_users_per_minute = 3").await;
    for number in 0..3 {
        assert_eq!(knock(&site, &number.to_string()).await.status, 400);
    }
    let before = inodes(&place.data_dir());
    let refused = ask(&site, "one more", "hello").await;
    let (status, code, message) = refused.error();
    assert_eq!((status, code.as_str()), (429, "too_many_new_users"));
    assert!(message.contains("http.new_users_per_minute"), "{message}");
    assert!((1..=20).contains(&refused.header("retry-after").parse::<u64>().unwrap()));
    assert_eq!(inodes(&place.data_dir()), before, "a refusal leaves nothing");
    assert_eq!(site.metric("http_limited_total", &["limit=\"new_users\""]).await, 1.0);
    // Known users, and those who are named, are served.
    assert_eq!(ask(&site, "0", "hello").await.text(), "echo 1: hello");
    assert_eq!(site.turn("alice", "hello").await.text(), "echo 1: hello");
}

/// What is left of a user without sessions goes with `idle_days`; what was spent lately, and what has sessions, stays.
#[tokio::test(flavor = "multi_thread")]
async fn rest_of_users_without_sessions_expires() {
    let place = place();
    let records = place.data_dir().join("records");
    {
        let (mut program, site) = Program::ready(&place, "").await;
        for name in ["gone", "today", "stays"] {
            assert_eq!(ask(&site, name, "hello").await.text(), "echo 1: hello");
            let history = Answer::of(site.of("POST", "/v1/messages", name).json(&json!({ "model": "sonnet",
                "max_tokens": 9, "messages": [{ "role": "user", "content": "hello" }] })));
            assert_eq!(history.await.status, 200);
            let asked = json!({ "model": "sonnet", "input": "hello" });
            let response = Answer::of(site.of("POST", "/v1/responses", name).json(&asked));
            assert_eq!(response.await.status, 200);
        }
        // By their tokens and by their names these are six users.
        eventually("all accounts are written", SOON, || names(&records.join("usage")).len() == 6).await;
        program.signal(rustix::process::Signal::TERM);
        assert_eq!(program.code().await, Some(0));
    }
    // All but one user have no session any more, as after their last deletion.
    let lists = names(&records.join("users"));
    let kept = lists[0].file_name().unwrap().to_str().unwrap().to_owned();
    for list in &lists[1..] {
        for session in names(list) {
            std::fs::remove_dir_all(records.join(session.file_name().unwrap())).unwrap();
        }
        std::fs::remove_dir_all(list).unwrap();
    }
    let of = |kind: &str| names(&records.join(kind));
    for path in of("usage").iter().chain(&of("conversations")).chain(&of("identities/users")) {
        aged(path, 3 * DAY);
    }
    // Stored responses have an age of their own, also those of users with sessions.
    for file in of("responses").iter().flat_map(|user| names(user)) {
        aged(&file, 3 * DAY);
    }
    // One was charged today.
    let is_kept = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&kept);
    let charged = of("usage").into_iter().find(|path| !is_kept(&path)).unwrap();
    aged(&charged, Duration::from_secs(3600));
    let kept_of = |kind: &str| of(kind).iter().filter(is_kept).count();
    let expected = ["usage", "conversations", "identities/users"].map(kept_of);

    let config = "[retention]\nidle_days = 1\nsweep_interval = \"100ms\"";
    let (_program, site) = Program::ready(&place, config).await;
    let left = || ["usage", "conversations", "identities/users"].map(|kind| of(kind).len());
    let wanted = [expected[0] + 1, expected[1], expected[2]];
    eventually("the rest is gone", SOON, || left() == wanted).await;
    eventually("old responses are gone", SOON, || of("responses").is_empty()).await;
    assert!(charged.exists());
    assert_eq!(of("identities/tokens").len(), 2 * expected[2]);
    assert_eq!(site.metric("retention_failures_total", &[]).await, 0.0);
    assert_eq!(ask(&site, "gone", "hello").await.status, 200);
}

/// A user whose CLI has renewed its tokens is known, also while strangers have used up their limit and crowd in.
#[tokio::test(flavor = "multi_thread")]
async fn renewed_tokens_are_known_among_strangers() {
    let place = place();
    let (_program, site) = Program::ready(&place, "[http]\nnew_users_per_minute = 2").await;
    assert_eq!(ask(&site, "known", "hello").await.text(), "echo 1: hello");
    let file = session_dirs(&place.data_dir()).remove(0).join("home/.claude/.credentials.json");
    let renew = |name: &str| {
        let mut held: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        held["claudeAiOauth"]["accessToken"] = json!(format!("a-{name}"));
        held["claudeAiOauth"]["refreshToken"] = json!(format!("r-{name}"));
        std::fs::write(&file, held.to_string()).unwrap();
    };
    renew("renewed");
    for count in 2..5 {
        let answer = ask(&site, "renewed", "hello").await;
        assert_eq!(answer.text(), format!("echo {count}: hello"), "it is known after the first search");
    }
    // Renewed tokens are not charged: the second of the limit is left.
    assert_eq!(knock(&site, "second").await.status, 400);
    assert_eq!(knock(&site, "third").await.error().1, "too_many_new_users");
    renew("again");
    let mut strangers = tokio::task::JoinSet::new();
    for number in 0..60 {
        let site = site.clone();
        strangers.spawn(async move { knock(&site, &format!("stranger-{number}")).await.error().1 });
    }
    assert_eq!(ask(&site, "again", "hello").await.text(), "echo 5: hello");
    let refused = strangers.join_all().await;
    assert!(refused.iter().all(|code| code == "too_many_new_users"), "{refused:?}");
    assert_eq!(ask(&site, "known", "hello").await.text(), "echo 6: hello");
}
