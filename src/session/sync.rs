//! Brings journals and records to the disk. One thread at a time for all sessions: what is asked for meanwhile is done
//! together.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::store::Record;
use crate::support::atomic_file::{Durability, put_in_place};
use crate::support::lock::MutexExt as _;
use crate::workspace::Workspace;

/// Records written together. The ends of turns wait for no more of them (`journal = "synced"`).
const RECORDS_AT_ONCE: usize = 64;

/// A file to be synchronised, and who waits for it.
type SyncRequest = (Arc<File>, oneshot::Sender<bool>);

/// A record to be written, and who waits for it.
type SaveRequest = (Record, Workspace, Durability, oneshot::Sender<io::Result<()>>);

#[derive(Debug, Default)]
pub(crate) struct Syncer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// At most one for each running turn.
    syncs: Vec<SyncRequest>,
    /// At most one for each session ([`RecordWriter`](super::RecordWriter)).
    saves: VecDeque<SaveRequest>,
    is_running: bool,
}

impl Syncer {
    /// Asks for the file to be brought to the disk. Gives whether it was.
    pub(super) fn sync(self: &Arc<Self>, file: Arc<File>) -> oneshot::Receiver<bool> {
        let (done, synced) = oneshot::channel();
        self.ask(|state| state.syncs.push((file, done)));
        synced
    }

    /// Writes a record.
    pub(super) async fn save(
        self: &Arc<Self>,
        record: Record,
        workspace: Workspace,
        durability: Durability,
    ) -> io::Result<()> {
        let (done, saved) = oneshot::channel();
        self.ask(|state| state.saves.push_back((record, workspace, durability, done)));
        saved.await.map_err(io::Error::other)?
    }

    fn ask(self: &Arc<Self>, ask: impl FnOnce(&mut State)) {
        let mut state = self.0.lock_unpoisoned();
        ask(&mut state);
        if !std::mem::replace(&mut state.is_running, true) {
            let syncer = self.clone();
            tokio::task::spawn_blocking(move || syncer.run());
        }
    }

    fn run(&self) {
        loop {
            let (syncs, saves) = {
                let mut state = self.0.lock_unpoisoned();
                state.is_running = !(state.syncs.is_empty() && state.saves.is_empty());
                let count = state.saves.len().min(RECORDS_AT_ONCE);
                (std::mem::take(&mut state.syncs), state.saves.drain(..count).collect::<Vec<_>>())
            };
            if syncs.is_empty() && saves.is_empty() {
                return;
            }
            for (file, done) in syncs {
                // Who waits may have given up.
                done.send(file.sync_data().is_ok()).ok();
            }
            save_all(saves);
        }
    }
}

fn save_all(saves: Vec<SaveRequest>) {
    let (mut staged, mut waiting) = (Vec::new(), Vec::new());
    for (record, workspace, durability, done) in saves {
        match record.stage(&workspace, durability) {
            Ok(file) => {
                staged.push(file);
                waiting.push(done);
            }
            Err(error) => drop(done.send(Err(error))),
        }
    }
    for (done, result) in waiting.into_iter().zip(put_in_place(&mut staged)) {
        drop(done.send(result));
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::model::ids::{SessionKey, UserId};
    use crate::workspace::DirectoryName;

    #[tokio::test]
    async fn all_that_ask_are_served() {
        let syncer = Arc::new(Syncer::default());
        let file = Arc::new(tempfile::tempfile().unwrap());
        for _ in 0..3 {
            let asked: Vec<_> = (0..20).map(|_| syncer.sync(file.clone())).collect();
            for synced in asked {
                assert!(synced.await.unwrap());
            }
        }
        // A pipe cannot be synchronised.
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
        assert!(!syncer.sync(pipe).await.unwrap());
    }

    #[tokio::test]
    async fn records_together_one_failure_leaves_the_others() {
        let data = tempfile::tempdir().unwrap();
        let syncer = Arc::new(Syncer::default());
        let session = |number: usize| {
            let user = UserId::new(format!("user {number}")).unwrap();
            let key = SessionKey::new(user, "default").unwrap();
            let workspace = Workspace::of(data.path(), &key.hash(), &DirectoryName::random());
            (Record::new(&key, &workspace), workspace, key)
        };
        let sessions: Vec<_> = (0..2 * RECORDS_AT_ONCE + 1).map(session).collect();
        let (_, broken, _) = &sessions[RECORDS_AT_ONCE];
        std::fs::create_dir_all(broken.record().session_file()).unwrap();
        let mut saves = JoinSet::new();
        for (number, (record, workspace, _)) in sessions.iter().enumerate() {
            let (syncer, record, workspace) = (syncer.clone(), record.clone(), workspace.clone());
            saves.spawn(async move { (number, syncer.save(record, workspace, Durability::Disk).await) });
        }
        for (number, saved) in saves.join_all().await {
            let (record, _, key) = &sessions[number];
            assert_eq!(saved.is_ok(), number != RECORDS_AT_ONCE, "{number}: {saved:?}");
            if saved.is_ok() {
                assert_eq!(Record::load(data.path(), key).unwrap().as_ref(), Some(record));
            }
        }
    }
}
