//! Records that are damaged: they cost their conversation, aloud, and nothing else.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::common::layout::{record_dir, session_dir, session_dirs};

type Damage = (&'static str, fn(&Path));

/// What may have become of a record.
fn damages() -> [Damage; 8] {
    [
        ("empty", |file| std::fs::write(file, "").unwrap()),
        ("cut", |file| {
            let content = std::fs::read(file).unwrap();
            std::fs::write(file, content.get(..content.len() / 2).unwrap()).unwrap();
        }),
        ("flipped", |file| {
            let content = std::fs::read_to_string(file).unwrap();
            std::fs::write(file, content.replace("\"user\": \"", "\"user\": \"e")).unwrap();
        }),
        ("zeros", |file| std::fs::write(file, [0; 4096]).unwrap()),
        ("long", |file| std::fs::File::create(file).unwrap().set_len(10 << 30).unwrap()),
        ("directory", |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir_all(file.join("in/it")).unwrap();
        }),
        ("circle", |file| {
            std::fs::remove_file(file).unwrap();
            symlink(file, file).unwrap();
        }),
        ("another's", |file| {
            let bobs = record_dir(file.ancestors().nth(3).unwrap(), "bob", "default");
            std::fs::copy(bobs.join("session.json"), file).unwrap();
        }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_record_costs_its_conversation_only() {
    for (what, damage) in damages() {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), |_| {}).await;
        say(&pilot.session("bob"), "the fruit is quince").await;
        say(&pilot.session("alice"), "the word is heliotrope").await;
        let work = pilot.session("alice").workspace().await.unwrap().work;
        std::fs::write(work.join("kept"), "").unwrap();
        pilot.shutdown(Duration::from_secs(5)).await;
        let record = record_dir(data.path(), "alice", "default");
        damage(&record.join("session.json"));

        let pilot = start(data.path(), |_| {}).await;
        let alice = pilot.session("alice");
        assert!(alice.known().await.unwrap().is_some(), "{what}: it exists");
        let outcome = ask(&alice, "[[recall]]").await;
        assert!(outcome.is_ok() && outcome.context_lost, "{what}: {outcome:?}");
        assert_eq!(outcome.text, "", "{what}");
        assert!(!ask(&alice, "again").await.context_lost, "{what}: said once");
        assert!(work.join("kept").exists(), "{what}: its files stay");
        assert!(std::fs::symlink_metadata(record.join("session.json.broken")).is_ok(), "{what}: kept aside");
        let bob = ask(&pilot.session("bob"), "[[recall]]").await;
        assert_eq!((bob.text.as_str(), bob.context_lost), ("the fruit is quince", false));
        pilot.shutdown(Duration::from_secs(5)).await;
        // A second damage takes the first one's place aside.
        damage(&record.join("session.json"));
        let pilot = start(data.path(), |_| {}).await;
        assert!(ask(&pilot.session("alice"), "again").await.context_lost, "{what}");
        assert!(std::fs::read_dir(&record).unwrap().count() <= 5, "{what}: bounded");
        pilot.session("alice").purge().await.unwrap();
        assert!(!work.exists() && !record.exists(), "{what}");
        pilot.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_of_a_broken_record_deletes_the_files() {
    for (what, damage) in damages() {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), |_| {}).await;
        say(&pilot.session("bob"), "x").await;
        say(&pilot.session("alice"), "x").await;
        pilot.shutdown(Duration::from_secs(5)).await;
        damage(&record_dir(data.path(), "alice", "default").join("session.json"));
        let pilot = start(data.path(), |_| {}).await;
        pilot.session("alice").purge().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(session_dirs(data.path()).len(), 1, "{what}");
        assert!(!record_dir(data.path(), "alice", "default").exists(), "{what}");
        assert!(pilot.session("alice").known().await.unwrap().is_none(), "{what}");
        assert!(!ask(&pilot.session("alice"), "x").await.context_lost, "{what}: it is another session");
        pilot.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_directories_do_not_stop_a_purge() {
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    say(&alice, "x").await;
    let own = session_dir(bench.data.path(), "alice", "default");
    std::fs::create_dir_all(own.join("work/a/b")).unwrap();
    std::fs::write(own.join("work/a/b/c"), "").unwrap();
    for directory in ["work/a/b", "work/a", "work"] {
        std::fs::set_permissions(own.join(directory), std::fs::Permissions::from_mode(0o0)).unwrap();
    }
    alice.purge().await.unwrap();
    assert!(!own.exists());
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_of_a_record_may_flip() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    say(&pilot.session("alice"), "x").await;
    pilot.shutdown(Duration::from_secs(5)).await;
    let file = record_dir(data.path(), "alice", "default").join("session.json");
    let whole = std::fs::read(&file).unwrap();
    let pilot = start(data.path(), |_| {}).await;
    // Asked for while it is not in memory; no child is started for it.
    for bit in (0..whole.len() * 8).step_by(7) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, flipped).unwrap();
        let known = pilot.session("alice").known().await;
        assert!(matches!(known, Ok(Some(_))), "bit {bit}: {known:?}");
    }
    pilot.shutdown(Duration::from_secs(5)).await;
}
