//! Brings journals to the disk. One thread at a time for all sessions: what is asked for meanwhile is done together.

use std::fs::File;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::support::lock::MutexExt as _;

/// A file, and who waits for it.
type Request = (Arc<File>, oneshot::Sender<bool>);

#[derive(Debug, Default)]
pub(crate) struct Syncer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// At most one for each running turn.
    requests: Vec<Request>,
    is_running: bool,
}

impl Syncer {
    /// Asks for the file to be brought to the disk. Gives whether it was.
    pub(super) fn sync(self: &Arc<Self>, file: Arc<File>) -> oneshot::Receiver<bool> {
        let (done, synced) = oneshot::channel();
        let mut state = self.0.lock_unpoisoned();
        state.requests.push((file, done));
        if !std::mem::replace(&mut state.is_running, true) {
            let syncer = self.clone();
            tokio::task::spawn_blocking(move || syncer.run());
        }
        synced
    }

    fn run(&self) {
        loop {
            let requests = {
                let mut state = self.0.lock_unpoisoned();
                state.is_running = !state.requests.is_empty();
                std::mem::take(&mut state.requests)
            };
            if requests.is_empty() {
                return;
            }
            for (file, done) in requests {
                // Who waits may have given up.
                done.send(file.sync_data().is_ok()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
