//! What has happened lately: a bounded log of the events in the sessions' lives, for people who watch.
//!
//! One ring per instance. Writing costs a lock and a push, waits for nobody and is done beside the metric of the same
//! happening; readers follow at their own pace, and one that is too slow finds a gap in the numbers. Holds no text of
//! a conversation and no credentials, but knows whose session it was: whoever shows it decides who may see that. Never
//! spawns, never logs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::model::ids::SessionKey;
use crate::support::lock::MutexExt;

/// Happenings that are kept. Some 200 bytes each; at a few per turn the last minutes of a busy server.
const KEPT: usize = 512;

/// Something that happened in a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    /// Counts up from 1 within one instance. A gap means that a reader was too slow.
    pub number: u64,
    /// When.
    pub at: SystemTime,
    /// To which session.
    pub session: SessionKey,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum What {
    /// A child's process runs.
    Started {
        /// Which start of the session's child it is.
        generation: u64,
    },
    /// A child takes turns.
    Ready {
        /// Since its process was started.
        took: Duration,
    },
    /// No child could be started.
    NotStarted {
        /// As [`crate::error::StartFailure::reason`].
        reason: &'static str,
    },
    /// A turn has its outcome.
    TurnEnded {
        /// The metric's word for it.
        outcome: &'static str,
        /// Since it was accepted.
        took: Duration,
    },
    /// The CLI ran a turn that nobody asked for, because work in the background had ended.
    OwnTurn {
        /// What it cost, in US dollars. Part of the session's cost.
        cost_usd: f64,
    },
    /// A turn was refused: no child has seen it.
    Refused {
        /// As [`crate::TurnError::code`].
        reason: &'static str,
    },
    /// A child ended unasked.
    Crashed(Exit),
    /// A child is started again because one had died.
    Restarted {
        /// The metric's word for why.
        cause: &'static str,
    },
    /// The restarts were too many: the session pauses.
    Paused,
    /// A child was stopped and its session kept.
    Evicted {
        /// The metric's word for why.
        reason: &'static str,
    },
    /// Some or all of a conversation was missing when it was taken up again.
    ContextLost {
        /// The metric's word for what.
        kind: &'static str,
    },
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The metric's word for it.
    pub reason: &'static str,
    /// The same for people: an exit code, a signal, a verdict. Nothing that the child wrote.
    pub detail: String,
    /// When.
    pub at: SystemTime,
}

/// The log of one instance.
#[derive(Debug)]
pub(crate) struct Log {
    ring: Mutex<Ring>,
    /// The number of the latest.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Arc<Happening>>,
    latest: u64,
}

impl Default for Log {
    fn default() -> Self {
        Self { ring: Mutex::default(), latest: watch::Sender::new(0) }
    }
}

impl Log {
    /// Writes it down.
    pub(crate) fn note(&self, session: &SessionKey, what: What) {
        let mut ring = self.lock();
        if repeats(ring.kept.back(), session, &what) {
            return;
        }
        ring.latest += 1;
        let number = ring.latest;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        let session = session.clone();
        ring.kept.push_back(Arc::new(Happening { number, at: SystemTime::now(), session, what }));
        drop(ring);
        // Two writers may come here in the wrong order; the number that readers wait for never falls.
        self.latest.send_if_modified(|latest| {
            let grows = *latest < number;
            *latest = number.max(*latest);
            grows
        });
    }

    fn after(&self, number: u64) -> Option<Arc<Happening>> {
        let ring = self.lock();
        let at = ring.kept.partition_point(|kept| kept.number <= number);
        ring.kept.get(at).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Whole between two statements: a panic elsewhere leaves it usable.
        self.ring.lock_unpoisoned()
    }
}

/// Whether it is the same refusal once more: a flood of them would push out everything else.
fn repeats(last: Option<&Arc<Happening>>, session: &SessionKey, what: &What) -> bool {
    matches!(what, What::Refused { .. })
        && last.is_some_and(|last| last.what == *what && last.session == *session)
}

/// Follows what happens. Cheap; any number may follow, and none holds anything up.
#[derive(Debug)]
pub struct Happenings {
    log: Arc<Log>,
    /// The number of the last one that was read.
    read: u64,
    latest: watch::Receiver<u64>,
}

impl Happenings {
    pub(crate) fn of(log: Arc<Log>) -> Self {
        let latest = log.latest.subscribe();
        Self { log, read: 0, latest }
    }

    /// The next one, as soon as there is one. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Arc<Happening> {
        loop {
            // Before looking: what is written after that wakes us.
            self.latest.mark_unchanged();
            if let Some(happening) = self.log.after(self.read) {
                self.read = happening.number;
                return happening;
            }
            // It fails only without a sender, and we hold the log that has it.
            drop(self.latest.changed().await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;
    use crate::model::ids::UserId;

    fn session(user: &str) -> SessionKey {
        SessionKey::new(UserId::new(user).unwrap(), "default").unwrap()
    }

    fn started(generation: u64) -> What {
        What::Started { generation }
    }

    async fn now(reader: &mut Happenings) -> Option<u64> {
        let mut next = std::pin::pin!(reader.next());
        poll_fn(|context| {
            Poll::Ready(match next.as_mut().poll(context) {
                Poll::Ready(happening) => Some(happening.number),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_reader_hears_what_was_kept_and_what_comes() {
        let log = Arc::new(Log::default());
        log.note(&session("a"), started(1));
        log.note(&session("b"), started(2));
        let mut all = Happenings::of(log.clone());
        assert_eq!(all.next().await.session, session("a"));
        assert_eq!((now(&mut all).await, now(&mut all).await), (Some(2), None));
        let waiting = async { all.next().await.number };
        let ((), heard) = tokio::join!(async { log.note(&session("a"), What::Paused) }, waiting);
        assert_eq!(heard, 3);
    }

    #[tokio::test]
    async fn a_slow_reader_finds_a_gap_and_the_log_stays_short() {
        let log = Arc::new(Log::default());
        let mut reader = Happenings::of(log.clone());
        for generation in 1..=2 * KEPT as u64 {
            log.note(&session("a"), started(generation));
        }
        assert_eq!(log.lock().kept.len(), KEPT);
        assert_eq!(reader.next().await.number, KEPT as u64 + 1);
    }

    #[test]
    fn a_flood_of_refusals_is_told_once() {
        let log = Log::default();
        let refused = || What::Refused { reason: "queue_full" };
        for _ in 0..100 {
            log.note(&session("a"), refused());
        }
        log.note(&session("b"), refused());
        log.note(&session("a"), refused());
        assert_eq!(log.lock().kept.len(), 3);
    }
}
