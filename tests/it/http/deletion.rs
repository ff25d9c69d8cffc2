//! The deletion of a user: nothing is left on the disk, and nothing of another user changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pilotlight::model::ids::{SessionKey, UserId};
use reqwest::RequestBuilder;
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::common::keyring::Keyring;
use crate::common::layout::{record_dir, session_dir};
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};
use crate::common::{SOON, eventually, eventually_some};

const ALICE: &str = "alice-4711";
const BOB: &str = "bob-0815";

/// All files below a directory with their content; directories and links without.
fn everything(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(everything(&path));
        }
        found.insert(path.clone(), if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() });
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands for a user, its texts and its secrets on the disk, in every form.
fn needles(place: &Place, user: &str) -> Vec<(&'static str, String)> {
    let data = place.data_dir();
    let digest = |purpose: &str, text: &str| hex(&Sha256::digest(format!("{purpose}\0{text}")));
    let hash =
        |name: &str| SessionKey::new(UserId::new(user).unwrap(), name).unwrap().hash().as_str().to_owned();
    let of_user = digest("user", user);
    let directory = session_dir(&data, user, "default").file_name().unwrap().to_str().unwrap().to_owned();
    vec![
        ("the user", hex(user.as_bytes())),
        ("digest of the user", of_user[..32].to_owned()),
        ("long digest of the user", of_user),
        ("the prompt", format!("prompt of {user}")),
        ("the answer", format!("answer to {user}")),
        ("a file", format!("file of {user}")),
        ("the access token", format!("access of {user}")),
        ("the refresh token", format!("refresh of {user}")),
        ("digest of the access token", digest("access", &format!("access of {user}"))),
        ("digest of the refresh token", digest("refresh", &format!("refresh of {user}"))),
        ("the default session", hash("default")),
        ("a named session", hash("named")),
        ("the session's directory", directory),
    ]
}

/// The paths that hold a needle, in their name or their content.
fn holders(files: &BTreeMap<PathBuf, Vec<u8>>, needle: &str) -> Vec<PathBuf> {
    let holds = |text: &[u8]| memchr::memmem::find(text, needle.as_bytes()).is_some();
    let found = files.iter().filter(|(path, content)| holds(path.as_os_str().as_bytes()) || holds(content));
    found.map(|(path, _)| path.clone()).collect()
}

/// Gives a user everything that is stored of one.
async fn live(site: &Site, user: &str) {
    let mut body = message(&format!(
        "prompt of {user} [[say:answer to {user}]][[tool:Bash {{\"command\":\"echo 'file of {user}' > kept\"}}]]"
    ));
    body["oauth_credentials"] = json!({ "access_token": format!("access of {user}"),
        "refresh_token": format!("refresh of {user}"), "expires_at": 4_102_444_800_000_i64 });
    assert_eq!(Answer::of(site.asking(user, &body)).await.status, 200);
    let named = site.asking(user, &message("more")).header("x-pilotlight-session", "named");
    assert_eq!(Answer::of(named).await.status, 200);
    // A conversation without a name, matched by its history.
    let history = json!({ "model": "sonnet", "max_tokens": 9,
        "messages": [{ "role": "user", "content": format!("prompt of {user}") }] });
    assert_eq!(Answer::of(site.of("POST", "/v1/messages", user).json(&history)).await.status, 200);
}

fn delete(site: &Site, user: &str) -> RequestBuilder {
    site.web().delete(format!("{}/v1/users/{user}", site.admin))
}

const CONFIG: &str = "[permissions]\npolicy = \"allow\"\n[http]\nrequests_per_minute = 0";

/// A data directory with two users, and no server.
async fn two_users(place: &std::sync::Arc<Place>) {
    let (mut program, site) = Program::ready(place, CONFIG).await;
    for user in [ALICE, BOB] {
        live(&site, user).await;
    }
    let usage = place.data_dir().join("records/usage");
    eventually("both accounts are written", SOON, || {
        std::fs::read_dir(&usage).is_ok_and(|entries| entries.count() == 2)
    })
    .await;
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
}

/// Whether nothing of the user is on the disk; the control is that it was.
fn assert_gone(place: &Place, user: &str, needles: &[(&'static str, String)]) {
    let files = everything(&place.data_dir());
    for (what, needle) in needles {
        assert_eq!(holders(&files, needle), Vec::<PathBuf>::new(), "{what} of {user} is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_user_is_nowhere_on_the_disk() {
    let place = place();
    two_users(&place).await;
    let (alice, bob) = (needles(&place, ALICE), needles(&place, BOB));
    let before = everything(&place.data_dir());
    for (what, needle) in alice.iter().chain(&bob) {
        assert!(!holders(&before, needle).is_empty(), "the search does not find {what}");
    }
    // Open files show whether a name elsewhere keeps them.
    let theirs = alice.iter().flat_map(|(_, needle)| holders(&before, needle));
    let theirs: Vec<_> = theirs.filter(|path| path.is_file()).map(|path| File::open(path).unwrap()).collect();
    assert!(theirs.len() > 10);

    let (_program, site) = Program::ready(&place, CONFIG).await;
    let keyed = || site.asking(ALICE, &message("again")).header("idempotency-key", "order of alice");
    assert_eq!(Answer::of(keyed()).await.status, 200);
    assert_eq!(Answer::of(keyed()).await.header("idempotent-replayed"), "true");
    let (asking, running) = (site.clone(), message("[[sleep:60000]]"));
    let turn = tokio::spawn(async move { Answer::of(asking.asking(ALICE, &running)).await });
    let is_busy = async || (site.entry(ALICE, "default").await["state"] == "busy").then_some(());
    eventually_some("the turn runs", SOON, is_busy).await;

    let deleted = Answer::of(delete(&site, ALICE)).await;
    assert_eq!((deleted.status, deleted.json()), (200, json!({ "deleted": true, "sessions": 3 })));
    assert!(!turn.await.unwrap().body.contains("\"subtype\":\"success\""), "its turn did not end well");
    assert_gone(&place, ALICE, &alice);
    for file in theirs {
        assert_eq!(file.metadata().unwrap().nlink(), 0, "a file has another name");
    }
    // Nothing of another user has changed, byte for byte.
    let after = everything(&place.data_dir());
    let theirs = bob.iter().flat_map(|(_, needle)| holders(&before, needle));
    // A mark until the tokens that a child may have renewed are known.
    for path in theirs.filter(|path| !path.to_string_lossy().contains("identities/renewing")) {
        assert_eq!(after.get(&path), before.get(&path), "{}", path.display());
    }
    let work = session_dir(&place.data_dir(), BOB, "default").join("work/kept");
    assert_eq!(std::fs::read_to_string(work).unwrap(), "file of bob-0815\n");

    // The memory has forgotten as well, and the user may come back.
    let again = Answer::of(keyed()).await;
    assert!(!again.headers.contains_key("idempotent-replayed"));
    assert_eq!(again.text(), "echo 1: again");
    assert_eq!(Answer::of(delete(&site, ALICE)).await.json()["sessions"], 1);
    assert_eq!(Answer::of(delete(&site, ALICE)).await.json()["sessions"], 0);
    assert_gone(&place, ALICE, &alice);
    assert!(site.turn(BOB, "[[recall]]").await.text().contains("prompt of bob-0815"));
}

/// A note of a deletion that was interrupted is what a killed server leaves.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_deletion_of_a_user_is_finished() {
    let place = place();
    two_users(&place).await;
    let alice = needles(&place, ALICE);
    let notes = place.data_dir().join("records/.deleted-users");
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::write(notes.join(&alice[2].1), "").unwrap();
    // Half of it was done.
    std::fs::remove_dir_all(session_dir(&place.data_dir(), ALICE, "default").join("home")).unwrap();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    assert_gone(&place, ALICE, &alice);
    assert!(site.turn(BOB, "[[recall]]").await.text().contains("prompt of bob-0815"));
}

/// A user who comes back after a deletion that has failed keeps what is new at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn failed_deletion_takes_nothing_that_is_new() {
    let place = place();
    {
        let (_program, site) = Program::ready(&place, CONFIG).await;
        assert_eq!(site.turn(ALICE, "before").await.status, 200);
        let lists = place.data_dir().join("records/users");
        let list = std::fs::read_dir(&lists).unwrap().next().unwrap().unwrap().path();
        let aside = lists.with_file_name("aside");
        std::fs::rename(&list, &aside).unwrap();
        // No list of sessions can be read there.
        std::fs::write(&list, "").unwrap();
        assert_eq!(Answer::of(delete(&site, ALICE)).await.status, 500);
        std::fs::remove_file(&list).unwrap();
        std::fs::rename(&aside, &list).unwrap();
        assert_eq!(site.turn(ALICE, "back again").await.status, 200);
    }
    let (_program, site) = Program::ready(&place, CONFIG).await;
    assert!(site.turn(ALICE, "[[recall]]").await.text().contains("back again"));
    assert_eq!(Answer::of(delete(&site, ALICE)).await.status, 200);
}

/// Turns of the user that arrive during the deletion are refused or begin again; none leaves half a session.
#[tokio::test(flavor = "multi_thread")]
async fn turns_during_a_deletion_leave_no_half_session() {
    let place = place();
    let (_program, site) =
        Program::ready(&place, "[http]\nrequests_per_minute = 0\nturns_per_user = 64").await;
    for round in 0..5 {
        assert_eq!(site.turn(ALICE, &format!("round {round}")).await.status, 200);
        let turns = (0..8).map(|number| {
            let request = site
                .asking(ALICE, &message("meanwhile"))
                .header("x-pilotlight-session", format!("s{number}"));
            tokio::spawn(async move { Answer::of(request).await })
        });
        let turns: Vec<_> = turns.collect();
        assert_eq!(Answer::of(delete(&site, ALICE)).await.status, 200);
        for turn in turns {
            let answer = turn.await.unwrap();
            let has_begun_again = answer.body.contains("echo 1: meanwhile");
            let refused = ["user_deleted", "interrupted", "cancelled", "session_lost"]
                .iter()
                .any(|code| answer.body.contains(code));
            assert!(has_begun_again || refused, "{answer:?}");
        }
        // What the user has now is whole: each listed session has its record.
        let listed = Answer::of(site.of("GET", "/v1/sessions", ALICE)).await.json();
        for session in listed["sessions"].as_array().unwrap() {
            let name = session["id"].as_str().unwrap();
            assert!(record_dir(&place.data_dir(), ALICE, name).join("directory").exists(), "{name}");
        }
    }
    assert_eq!(Answer::of(delete(&site, ALICE)).await.status, 200);
    let left = everything(&place.data_dir());
    assert_eq!(holders(&left, &hex(ALICE.as_bytes())), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_key_deletes_a_user() {
    let place = place();
    let ring = Keyring::new(&place);
    let (user, admin) = (ring.user(ALICE), ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    let code = async |request: RequestBuilder| {
        let answer = Answer::of(request).await;
        (answer.status, answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |status, code: &str| (status, code.to_owned());
    assert_eq!(code(delete(&site, ALICE)).await, refused(401, "missing_key"));
    assert_eq!(code(delete(&site, ALICE).bearer_auth(&user)).await, refused(403, "admin_only"));
    assert_eq!(code(delete(&site, "%").bearer_auth(&admin)).await, refused(400, "invalid_user"));
    let by_query = || site.web().delete(format!("{}/v1/users?user={ALICE}", site.admin));
    assert_eq!(code(by_query()).await, refused(401, "missing_key"));
    assert_eq!(code(by_query().bearer_auth(&user)).await, refused(403, "admin_only"));
    assert_eq!(Answer::of(by_query().bearer_auth(&admin)).await.status, 200);
    assert_eq!(Answer::of(delete(&site, ALICE).bearer_auth(&admin)).await.status, 200);
    // On loopback a scraper needs none.
    assert_eq!(site.get_admin("/metrics").await.status, 200);
    // Not on the public listener.
    let public = site.web().delete(format!("{}/v1/users/{ALICE}", site.http)).bearer_auth(&admin);
    assert_eq!(Answer::of(public).await.status, 404);
}

fn run(place: &Place, arguments: &[&str], admin: Option<&str>) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    command.args(arguments).arg("--data-dir").arg(place.data_dir());
    if let Some(admin) = admin {
        command.env("PILOTLIGHT_ADMIN__LISTEN", admin.trim_start_matches("http://"));
    }
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// `pilotlight user` works on the directory, or by the server that has it.
#[tokio::test(flavor = "multi_thread")]
async fn user_command_exports_and_deletes() {
    let place = place();
    two_users(&place).await;
    let (alice, bob) = (needles(&place, ALICE), needles(&place, BOB));
    let (program, site) = Program::ready(&place, CONFIG).await;
    let export = place.path().join("export");
    let to = export.display().to_string();
    let (done, said) = run(&place, &["user", "export", ALICE, "--to", &to], None);
    assert!(done && said.contains("3 sessions"), "{said}");
    let exported = everything(&export);
    for (what, needle) in &alice {
        let is_secret = matches!(*what, "the access token" | "the refresh token");
        let is_index = what.contains("digest of") || *what == "the session's directory";
        assert!(is_index || holders(&exported, needle).is_empty() == is_secret, "{what}");
    }
    for (what, needle) in &bob {
        assert!(holders(&exported, needle).is_empty(), "{what} of another user is exported");
    }
    let manifest: Value = serde_json::from_slice(&exported[&export.join("export.json")]).unwrap();
    assert_eq!(manifest["sessions"].as_array().unwrap().len(), 3);
    for path in exported.keys() {
        assert_eq!(std::fs::symlink_metadata(path).unwrap().mode() & 0o077, 0, "{}", path.display());
    }
    let (done, said) = run(&place, &["user", "export", ALICE, "--to", &to], None);
    assert!(!done && said.contains("is not empty"), "{said}");

    let (done, said) = run(&place, &["user", "delete", ALICE], Some("http://127.0.0.1:1"));
    assert!(!done && said.contains("a server uses the data directory"), "{said}");
    let (done, said) = run(&place, &["user", "delete", ALICE], Some(&site.admin));
    assert!(done && said.contains("3 sessions"), "{said}");
    assert_gone(&place, ALICE, &alice);
    drop((site, program));
    let (done, said) = run(&place, &["user", "delete", BOB], None);
    assert!(done && said.contains("3 sessions"), "{said}");
    assert_gone(&place, BOB, &bob);
    let (done, said) = run(&place, &["user", "export", BOB, "--to", &format!("{to}-2")], None);
    assert!(!done && said.contains("no data"), "{said}");
}

/// Ids that are special in a URL, in a file system or on a command line, by the command and by the listener.
#[tokio::test(flavor = "multi_thread")]
async fn user_with_any_id_is_exported_and_deleted() {
    let place = place();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    let long = "x".repeat(256);
    let ids: [&[u8]; 13] = [
        b"..",
        b".",
        b"%2E%2E",
        b"%",
        b"../../etc/passwd",
        b"/",
        b"a/b",
        b"?user=b",
        b"a b+c&user=d#e",
        "\u{fc}n\u{ef}c\u{f6}de \u{1f525}".as_bytes(),
        b"\xff\xfe",
        b"\"quoted\"",
        long.as_bytes(),
    ];
    for (number, id) in ids.into_iter().enumerate() {
        let name = format!("{id:?}");
        let header = || reqwest::header::HeaderValue::from_bytes(id).unwrap();
        let query: String = id.iter().map(|byte| format!("%{byte:02X}")).collect();
        let say = async || {
            let asked = Answer::of(site.post().header("x-pilotlight-user", header()).json(&message("hello")));
            assert_eq!(asked.await.status, 200, "{name}");
        };
        say().await;
        // An operator's view of the user, by the same query.
        let listed = site.get(&format!("/v1/sessions?user={query}")).await.json();
        assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "{name}: {listed}");
        let to = place.path().join(format!("export-{number}"));
        let user = |command: &str, more: &[&std::ffi::OsStr]| {
            let mut run = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
            run.args(["user", command, "--data-dir"]).arg(place.data_dir()).args(more);
            run.env("PILOTLIGHT_ADMIN__LISTEN", site.admin.trim_start_matches("http://"));
            let output = run.arg("--").arg(std::ffi::OsStr::from_bytes(id)).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.contains("1 sessions"), "{name}: {said}");
        };
        user("export", &["--to".as_ref(), to.as_os_str()]);
        assert!(to.join("export.json").exists(), "{name}");
        user("delete", &[]);
        say().await;
        let by_query = site.web().delete(format!("{}/v1/users?user={query}", site.admin));
        assert_eq!(Answer::of(by_query).await.json(), json!({ "deleted": true, "sessions": 1 }), "{name}");
    }
    let left = everything(&place.data_dir());
    assert!(left.keys().all(|path| !path.ends_with("session.json")), "{:?}", left.keys());
    let none = Command::new(env!("CARGO_BIN_EXE_pilotlight")).args(["user", "delete", ""]).output().unwrap();
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let unnamed = site.web().delete(format!("{}/v1/users", site.admin));
    assert_eq!(Answer::of(unnamed).await.error().1, "invalid_user");
}

/// A turn that waits for another one when its user, or its session, is deleted learns why it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_turn_learns_of_the_deletion() {
    let place = place();
    let (_program, site) = Program::ready(&place, CONFIG).await;
    site.turn(ALICE, "hello").await.text();
    for code in ["user_deleted", "session_deleted"] {
        let ask = |text: &str| tokio::spawn(Answer::of(site.asking(ALICE, &message(text))));
        let running = ask("[[sleep:60000]] running");
        let is = async |state: &str, depth: u64| {
            let entry = site.entry(ALICE, "default").await;
            (entry["state"] == state && entry["queue_depth"] == depth).then_some(())
        };
        eventually_some("it runs", SOON, async || is("busy", 0).await).await;
        let waiting = ask("waiting");
        eventually_some("it waits", SOON, async || is("busy", 1).await).await;
        let deletion = match code {
            "user_deleted" => delete(&site, ALICE),
            _ => site.of("DELETE", "/v1/sessions/default?purge=true", ALICE),
        };
        assert_eq!(Answer::of(deletion).await.status, 200);
        let refused = waiting.await.unwrap();
        let (status, found, message) = refused.error();
        assert_eq!((status, found.as_str()), (409, code), "{message}");
        assert_eq!(refused.header("retry-after"), "1");
        drop(running.await);
        let begun = site.turn(ALICE, "later").await;
        assert_eq!(begun.text(), "echo 1: later");
        assert!(!begun.body.contains("context_lost"));
    }
}
