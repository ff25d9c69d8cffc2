//! What the readers of a session's turns get, for others who watch. Nothing is kept, and no reader waits for a watcher.

use std::sync::OnceLock;

use bytes::Bytes;
use tokio::sync::broadcast::Sender;
#[cfg(feature = "server")]
use tokio::sync::broadcast::{Receiver, channel};

/// Reads that may wait for a watcher; older ones are dropped. Some seconds of a fast model.
#[cfg(feature = "server")]
const MAX_READS: usize = 256;
/// Longer reads are left out: together with `MAX_READS` it bounds what a slow watcher holds to 16 MiB.
const MAX_BYTES: usize = 64 << 10;

/// The lines of a session's turns as they are read.
#[derive(Debug, Default)]
pub(crate) struct Live(OnceLock<Sender<Bytes>>);

impl Live {
    /// Watches from now on.
    #[cfg(feature = "server")]
    pub(crate) fn watch(&self) -> Receiver<Bytes> {
        self.0.get_or_init(|| channel(MAX_READS).0).subscribe()
    }

    /// Shows whole lines to those who watch. Sessions that nobody has watched pay one look.
    pub(crate) fn show(&self, lines: &Bytes) {
        let watched = self.0.get().filter(|sender| sender.receiver_count() > 0);
        if let Some(sender) = watched.filter(|_| lines.len() <= MAX_BYTES) {
            // The watchers may be gone meanwhile.
            // A copy: the lines are a part of a block that may be a thousand times as large.
            sender.send(Bytes::copy_from_slice(lines)).ok();
        }
    }
}

#[cfg(feature = "server")]
#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    #[test]
    fn slow_watcher_loses_the_oldest_reads() {
        let live = Live::default();
        live.show(&Bytes::from_static(b"before\n"));
        let mut watcher = live.watch();
        let read = Bytes::from(vec![b'x'; 100]);
        live.show(&read.slice(..1));
        assert_ne!(watcher.try_recv().unwrap().as_ptr(), read.as_ptr(), "the rest of the read is not held");
        for number in 0..=MAX_READS {
            live.show(&format!("{number}\n").into());
        }
        live.show(&vec![b'x'; MAX_BYTES + 1].into());
        assert_eq!(watcher.try_recv(), Err(TryRecvError::Lagged(1)));
        assert_eq!(watcher.try_recv().unwrap(), "1\n");
        assert_eq!((1..MAX_READS).filter(|_| watcher.try_recv().is_ok()).count(), MAX_READS - 1);
        assert_eq!(watcher.try_recv(), Err(TryRecvError::Empty));
    }
}
