//! Records that are damaged: the journal has the conversation; without one it is lost, aloud, and nothing else is.

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
async fn broken_record_without_journal_loses_one() {
    for (what, damage) in damages() {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), |_| {}).await;
        say(&pilot.session("bob"), "the fruit is quince").await;
        say(&pilot.session("alice"), "the word is heliotrope").await;
        let work = pilot.session("alice").workspace().await.unwrap().work;
        std::fs::write(work.join("kept"), "").unwrap();
        pilot.shutdown(Duration::from_secs(5)).await;
        let record = record_dir(data.path(), "alice", "default");
        let damage = |file: &Path| {
            damage(file);
            std::fs::remove_file(record.join("journal")).unwrap();
        };
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
async fn broken_record_goes_on_by_its_journal() {
    for (what, damage) in damages() {
        let data = tempfile::tempdir().unwrap();
        let pilot = start(data.path(), |_| {}).await;
        say(&pilot.session("bob"), "the fruit is quince").await;
        say(&pilot.session("alice"), "the word is heliotrope").await;
        pilot.shutdown(Duration::from_secs(5)).await;
        let record = record_dir(data.path(), "alice", "default");
        damage(&record.join("session.json"));
        let pilot = start(data.path(), |_| {}).await;
        let alice = pilot.session("alice");
        let outcome = ask(&alice, "[[recall]]").await;
        assert_eq!(
            (outcome.text.as_str(), outcome.context_lost),
            ("the word is heliotrope", false),
            "{what}"
        );
        say(&alice, "the tree is rowan").await;
        pilot.shutdown(Duration::from_secs(5)).await;
        // And with the transcript.
        damage(&record.join("session.json"));
        std::fs::remove_dir_all(session_dir(data.path(), "alice", "default").join("home/.claude/projects"))
            .unwrap();
        let pilot = start(data.path(), |_| {}).await;
        let outcome = ask(&pilot.session("alice"), "[[recall]]").await;
        assert!(
            outcome.text.starts_with("the word is heliotrope") && !outcome.context_lost,
            "{what}: {outcome:?}"
        );
        assert!(outcome.text.ends_with("the tree is rowan"), "{what}: {outcome:?}");
        assert_eq!(pilot.session("alice").status().unwrap().turns, 4, "{what}");
        pilot.shutdown(Duration::from_secs(5)).await;
    }
}

/// A name, and what it does to the bytes of a journal.
type Harm = (&'static str, fn(&mut Vec<u8>));

/// What may have become of a journal.
const JOURNAL_DAMAGES: [Harm; 12] = [
    ("empty", |journal| journal.clear()),
    ("cut", |journal| journal.truncate(journal.len() / 2)),
    ("without its last byte", |journal| journal.truncate(journal.len() - 1)),
    ("a bit of the first mark", |journal| journal[40] ^= 4),
    ("a bit in the middle", |journal| {
        let middle = journal.len() / 2;
        journal[middle] ^= 1;
    }),
    ("a bit of the last mark", |journal| {
        let last = journal.len() - 500;
        journal[last] ^= 16;
    }),
    ("zeros", |journal| journal.fill(0)),
    ("garbage", |journal| {
        let mut random = fastrand::Rng::with_seed(12);
        journal.iter_mut().for_each(|byte| *byte = random.u8(..));
    }),
    ("of another version", |journal| {
        let at: Vec<_> = memchr::memmem::find_iter(journal, b"PLJ1").collect();
        at.into_iter().for_each(|at| journal[at + 3] = b'2');
    }),
    ("a huge length", |journal| journal[8..12].fill(0xff)),
    ("huge lengths", |journal| {
        let at: Vec<_> = memchr::memmem::find_iter(journal, b"PLJ1").collect();
        at.into_iter().for_each(|at| journal[at + 8..at + 12].fill(0xff));
    }),
    ("with something behind it", |journal| journal.extend([7; 1000])),
];

#[tokio::test(flavor = "multi_thread")]
async fn broken_journal_costs_no_more_than_none() {
    let data = tempfile::tempdir().unwrap();
    let users = || JOURNAL_DAMAGES.map(|(what, _)| what).into_iter().chain(["missing"]);
    let pilot = start(data.path(), |_| {}).await;
    for user in users() {
        say(&pilot.session(user), "first").await;
        say(&pilot.session(user), "second").await;
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    let file = |user: &str| record_dir(data.path(), user, "default").join("journal");
    for (what, damage) in JOURNAL_DAMAGES {
        let mut journal = std::fs::read(file(what)).unwrap();
        damage(&mut journal);
        std::fs::write(file(what), journal).unwrap();
    }
    std::fs::remove_file(file("missing")).unwrap();
    let pilot = start(data.path(), |_| {}).await;
    for user in users() {
        let outcome = ask(&pilot.session(user), "third").await;
        assert_eq!((outcome.text.as_str(), outcome.context_lost), ("echo 3: third", false), "{user}");
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    // It has begun again with all that the transcript had.
    for user in users() {
        let home = session_dir(data.path(), user, "default").join("home/.claude/projects");
        std::fs::remove_dir_all(home).unwrap();
    }
    let pilot = start(data.path(), |_| {}).await;
    for user in users() {
        let outcome = ask(&pilot.session(user), "[[recall]]").await;
        let text = outcome.text.as_str();
        assert_eq!((text, outcome.context_lost), ("first | second | third", false), "{user}");
    }
    pilot.shutdown(Duration::from_secs(5)).await;
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

/// A session that could not be deleted stays in the list of its user, by which a deletion of the user finds it.
#[tokio::test(flavor = "multi_thread")]
async fn failed_purge_keeps_the_session_listed() {
    let bench = Bench::new().await;
    let (alice, user) = (bench.pilot.session("alice"), UserId::new("alice").unwrap());
    say(&alice, "x").await;
    alice.evict().await.unwrap();
    let deleted = bench.data.path().join("records/.deleted");
    std::fs::remove_dir_all(&deleted).ok();
    // Nothing can be moved there.
    std::fs::write(&deleted, "").unwrap();
    assert!(matches!(alice.purge().await, Err(TurnError::Storage(_))));
    let known = async || bench.pilot.known_sessions(Some(&user)).await.unwrap().0.len();
    assert_eq!(known().await, 1);
    std::fs::remove_file(&deleted).unwrap();
    alice.purge().await.unwrap();
    assert_eq!((known().await, session_dirs(bench.data.path()).len()), (0, 0));
    bench.end().await;
}
