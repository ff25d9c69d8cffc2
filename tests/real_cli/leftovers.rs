//! What CLIs leave on disk is bounded, however many of them were killed, and little of it is left while a session rests.

use std::path::Path;

use pilotlight::Session;
use pilotlight::config::PermissionPolicy;

use super::bench::Bench;
use super::embedded::{child, say};
use crate::common::installed::is_long;
use crate::common::layout::{record_dir, session_dir};
use crate::common::{SOON, eventually};

/// Inodes of a session at rest that has no files of tools: its record, its transcript, the directories on the way, and its
/// entry in the list of its user.
const AT_REST: usize = 12;

/// All files and directories below a directory.
fn inodes(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(inodes(&entry.path()));
        }
        found.push(entry.path().display().to_string());
    }
    found
}

/// Those of the session of a user, with the directories themselves and its entry in the list.
fn of_session(data: &Path, user: &str) -> Vec<String> {
    let (record, directory) = (record_dir(data, user, "default"), session_dir(data, user, "default"));
    let mut found = [inodes(&record), inodes(&directory)].concat();
    found.extend([record, directory].map(|path| path.display().to_string()));
    found.push(format!("the entry of {user}"));
    // A save that is under way.
    found.retain(|path| !path.ends_with(".new"));
    found
}

async fn rests_with(data: &Path, session: &Session, user: &str, most: usize) {
    session.evict().await.expect("it is stopped");
    let found = of_session(data, user);
    assert!(found.len() <= most, "{} of {}: {found:#?}", found.len(), super::version());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_killed_clis_are_bounded() {
    let Some(bench) = Bench::for_long().await else { return };
    let system = bench
        .embed(|config| {
            config.permissions.policy = PermissionPolicy::Allow;
            config.restart.intensity = 1000;
        })
        .await;
    let data = bench.place.data_dir();
    let (alice, bob) = (system.alice(), system.pilot.session("bob"));
    let (mut warm, kills) = (0, if is_long() { 20 } else { 8 });
    for kill in 0..kills {
        say(&alice, r#"[[tool:Bash {"command":"echo hello"}]]"#).await;
        let found = of_session(&data, "alice");
        match kill {
            // The first start found nothing.
            0 => {}
            1 => warm = found.len(),
            // Whether a probe was running is left to chance.
            _ => assert!(
                found.len() <= warm + 4,
                "after {kill} kills: {} and not {warm}: {found:#?}",
                found.len()
            ),
        }
        let process = child(&alice);
        process.kill();
        eventually("the CLI is gone", SOON, || !process.is_alive()).await;
    }
    say(&alice, "hello").await;
    rests_with(&data, &alice, "alice", AT_REST).await;
    // One that is at rest after its first turn, and one that comes back from there.
    say(&bob, "the word is heliotrope").await;
    rests_with(&data, &bob, "bob", AT_REST).await;
    assert!(say(&bob, "[[recall]]").await.contains("heliotrope"));
    rests_with(&data, &bob, "bob", AT_REST).await;
    // The files of tools stay, and nothing else that the tool needed.
    let file = r#"[[tool:Bash {"command":"echo hello > made; echo hello > $TMPDIR/made"}]]"#;
    assert_eq!(say(&bob, file).await, "TOOLS:ok");
    rests_with(&data, &bob, "bob", AT_REST + 4).await;
    let directory = session_dir(&data, "bob", "default");
    assert!(directory.join("work/made").exists() && directory.join("tmp/made").exists());
    system.end().await;
}
