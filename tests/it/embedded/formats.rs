//! Data directories of the first release, and the way back to it.

use std::path::Path;

use super::*;
use crate::common::layout::{record_dir, session_dir, session_dirs};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-1");
/// Where the fixture was made. The CLI files its transcripts by it.
const MADE_AT: &str = "/var/lib/pilotlight";

fn dashed(path: &Path) -> String {
    path.to_str().unwrap().chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '-' }).collect()
}

/// Copies the fixture as if it had been made at `data`.
fn lay(from: &Path, to: &Path, data: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let to = to.join(name.replace(&dashed(Path::new(MADE_AT)), &dashed(data)));
        if entry.file_type().unwrap().is_dir() {
            lay(&entry.path(), &to, data);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

fn first_release() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    // Short names, so that no folder of transcripts gets a hash.
    let data = place.path().canonicalize().unwrap().join("data");
    lay(Path::new(FIXTURE), &data, &data);
    // Empty directories are not under version control.
    for session in std::fs::read_dir(data.join("sessions")).unwrap().flatten() {
        for name in ["work", "home", "tmp"] {
            std::fs::create_dir_all(session.path().join(name)).unwrap();
        }
    }
    (place, data)
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_of_the_first_release_go_on() {
    let (_place, data) = first_release();
    let old = session_dir(&data, "alice", "default");
    let pilot = start(&data, |_| {}).await;
    let known = pilot.known_sessions(None).await.unwrap().0;
    assert_eq!(known.len(), 3);
    for (user, said, turns) in
        [("alice", "the word is heliotrope | the fruit is quince", 2), ("bob", "hello", 1)]
    {
        let session = pilot.session(user);
        assert_eq!(session.known().await.unwrap().unwrap().turns, turns);
        let outcome = ask(&session, "[[recall]]").await;
        assert_eq!((outcome.text.as_str(), outcome.context_lost), (said, false));
        assert_eq!(pilot.known_sessions(Some(&UserId::new(user).unwrap())).await.unwrap().0.len(), 1);
    }
    assert_eq!(session_dir(&data, "alice", "default"), old, "it keeps its directory");
    assert!(!old.join("session.json").exists() && record_dir(&data, "alice", "default").is_dir());
    pilot.session("bob").purge().await.unwrap();
    assert_eq!(session_dirs(&data).len(), 2);
    pilot.shutdown(Duration::from_secs(5)).await;
    // Nothing is done twice.
    let pilot = start(&data, |_| {}).await;
    assert!(!ask(&pilot.session("alice"), "[[recall]]").await.context_lost);
    pilot.shutdown(Duration::from_secs(5)).await;
}

/// The commands of the document, as they stand there.
fn way_back() -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/upgrade.md")).unwrap();
    let from = text.split("```sh\n").nth(1).expect("a block of commands");
    from.split("```").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_restores_the_old_layout_with_all() {
    let (_place, data) = first_release();
    let pilot = start(&data, |_| {}).await;
    say(&pilot.session("alice"), "the tree is rowan").await;
    // A session that the first release has never seen.
    say(&pilot.session("dora"), "the bird is wren").await;
    let haiku = TurnOptions::default().model("haiku");
    let turn = pilot.session("dora").send_with("the herb is marjoram", haiku).await.unwrap();
    assert!(turn.finish().await.is_ok());
    // A deletion that was not finished.
    say(&pilot.session("emil"), "forget me").await;
    let (unfinished, files) = (record_dir(&data, "emil", "default"), session_dir(&data, "emil", "default"));
    pilot.session("dora").evict().await.unwrap();
    pilot.shutdown(Duration::from_secs(5)).await;
    std::fs::create_dir_all(data.join("records/.deleted")).unwrap();
    std::fs::rename(unfinished, data.join("records/.deleted/1")).unwrap();
    let status = std::process::Command::new("sh")
        .args(["-eu", "-c", &way_back()])
        .env("DATA_DIR", &data)
        .status()
        .unwrap();
    assert!(status.success());
    assert!(!files.exists());
    let mut left: Vec<_> = std::fs::read_dir(&data).unwrap().flatten().map(|it| it.file_name()).collect();
    left.sort();
    assert_eq!(left, ["conversations", "lock", "sessions", "users"]);
    for user in ["alice", "bob", "dora"] {
        let key = SessionKey::new(UserId::new(user).unwrap(), "default").unwrap();
        let own = data.join("sessions").join(key.hash().as_str());
        for name in ["session.json", "work", "home", "tmp"] {
            assert!(own.join(name).exists(), "{user}: {name}");
        }
        // The first release looks for the transcript by the directory's name.
        let folder = own.join("home/.claude/projects").join(dashed(&own.join("work")));
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "{user}");
    }
    let key = SessionKey::new(UserId::new("dora").unwrap(), "default").unwrap();
    let doras = std::fs::read(data.join("sessions").join(key.hash().as_str()).join("session.json")).unwrap();
    let doras: serde_json::Value = serde_json::from_slice(&doras).unwrap();
    assert_eq!(doras["model"], "haiku", "where the first release looks for it");
    assert!(!data.join("sessions/.probe").exists());
    // And forth again.
    let pilot = start(&data, |_| {}).await;
    for (user, said) in [("alice", "rowan"), ("dora", "the bird is wren | the herb is marjoram")] {
        let outcome = ask(&pilot.session(user), "[[recall]]").await;
        assert!(outcome.text.ends_with(said) && !outcome.context_lost, "{outcome:?}");
    }
    pilot.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused_and_untouched() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("format"), "3\n").unwrap();
    let mut config = Config::new(data.path());
    config.cli.program = "sim".to_owned();
    config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
    let error = Pilotlight::start(config).await.unwrap_err().to_string();
    assert!(error.contains("format 3") && error.contains("data_dir"), "{error}");
    assert!(!data.path().join("sessions").exists());
}
