//! Deletions beside everything else of their users: what is deleted leaves nothing behind.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use pilotlight::telemetry::events::EventKind;
use tokio::task::JoinSet;

use super::*;
use crate::common::layout::{directory_of, record_dir, session_dirs};

/// Session directories that no record names.
fn unnamed(data: &Path) -> Vec<PathBuf> {
    let records = std::fs::read_dir(data.join("records")).unwrap().flatten();
    let named: HashSet<_> = records.map(|record| directory_of(data, &record.path())).collect();
    session_dirs(data).into_iter().filter(|directory| !named.contains(directory)).collect()
}

/// Credentials that arrive while their session is deleted are written before, or for the next session.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_beside_a_purge_belong_to_a_session() {
    const ROUNDS: i64 = 20;
    const WRITERS: i64 = 8;
    let bench = Bench::new().await;
    let alice = bench.pilot.session("alice");
    for round in 0..ROUNDS {
        say(&alice, "hello").await;
        let mut writers = JoinSet::new();
        for number in 1..=WRITERS {
            let (alice, round) = (alice.clone(), round);
            writers.spawn(async move {
                let credentials = OauthCredentials::new("access", "refresh", round * WRITERS + number);
                // A write that comes during the stop may be refused.
                alice.write_credentials(&credentials).await.ok();
                alice.workspace().await.ok();
            });
        }
        alice.purge().await.unwrap();
        writers.join_all().await;
        // Its last files may be on their way out.
        eventually("each directory has its session", || unnamed(bench.data.path()).is_empty()).await;
    }
    bench.end().await;
}

/// A user who is deleted while an expired session is removed has nothing left afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn user_is_deleted_after_expired_files_are_gone() {
    let data = tempfile::tempdir().unwrap();
    let pilot = start(data.path(), |_| {}).await;
    let alice = pilot.session("alice");
    say(&alice, "hello").await;
    // Many, so that their removal takes a while.
    let work = alice.workspace().await.unwrap().work;
    for number in 0..20_000 {
        std::fs::write(work.join(number.to_string()), "").unwrap();
    }
    pilot.shutdown(Duration::from_secs(5)).await;
    let file = record_dir(data.path(), "alice", "default").join("session.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["last_used"]["secs_since_epoch"] = 1_000_000_000.into();
    std::fs::write(&file, record.to_string()).unwrap();

    let pilot = start(data.path(), |config| {
        config.retention.idle_days = Some(1);
        config.retention.sweep_interval = Duration::from_millis(100);
    })
    .await;
    let mut events = pilot.events();
    while !matches!(events.next().await.kind, EventKind::Expired { .. }) {}
    pilot.delete_user(&UserId::new("alice").unwrap()).await.unwrap();
    assert_eq!(session_dirs(data.path()), Vec::<PathBuf>::new());
    pilot.shutdown(Duration::from_secs(5)).await;
}
