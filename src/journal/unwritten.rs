//! Frames that wait in memory until the disk takes them, and the bound on those of all sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that wait for one file. Some hundred ordinary turns.
pub(super) const MOST: usize = 8 << 20;

/// Bytes that wait for all files of a system. A full disk stops all of them at once: some thousand sessions with a few
/// ordinary turns each, and no more memory than that of one busy CLI.
pub(super) const MOST_OF_ALL: usize = 64 << 20;

/// The bytes that wait for all files of a system.
#[derive(Debug, Default)]
pub(crate) struct Waiting(AtomicUsize);

/// The frames that wait for one file.
#[derive(Debug)]
pub(super) struct Unwritten {
    frames: Vec<u8>,
    waiting: Arc<Waiting>,
}

impl Unwritten {
    pub(super) fn new(waiting: Arc<Waiting>) -> Self {
        Self { frames: Vec::new(), waiting }
    }

    pub(super) fn frames(&self) -> &[u8] {
        &self.frames
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        let frames = std::mem::take(&mut self.frames);
        self.waiting.0.fetch_sub(frames.len(), Ordering::Relaxed);
        frames
    }

    /// Keeps these frames in place of those before. `false`: there is no room for them.
    pub(super) fn keep(&mut self, frames: Vec<u8>) -> bool {
        drop(self.take());
        let with_these = |waiting: usize| {
            let waiting = waiting.saturating_add(frames.len());
            (frames.len() <= MOST && waiting <= MOST_OF_ALL).then_some(waiting)
        };
        let has_room = self.waiting.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_these).is_ok();
        if has_room {
            self.frames = frames;
        }
        has_room
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        drop(self.take());
    }
}
