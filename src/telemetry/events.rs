//! Event log: the latest events in the lives of sessions, for live views.
//!
//! One ring per instance. Recording takes a lock and a push and never waits. Readers follow at their own pace; a slow
//! reader finds a gap in the numbers. The log holds no text of a conversation and no credentials. It names the owner
//! of each session: access control is the caller's task.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::model::ids::SessionKey;
use crate::support::lock::MutexExt;

/// Capacity of the ring. At 200 bytes each and a few per turn: the last minutes of a busy server.
const CAPACITY: usize = 512;

/// Event in the life of a session.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SessionEvent {
    /// Position in the log of this instance, from 1. A gap means that the reader was too slow.
    pub number: u64,
    /// Time of the event.
    pub at: SystemTime,
    /// The session.
    pub session: SessionKey,
    /// Kind of event, with its details.
    pub kind: EventKind,
}

/// Kind of a [`SessionEvent`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// The process of a child runs.
    Started {
        /// Number of this start within the session.
        generation: u64,
    },
    /// A child accepts turns.
    Ready {
        /// Time since its process was started.
        took: Duration,
    },
    /// A child could not be started.
    NotStarted {
        /// Reason, as [`crate::error::StartFailure::reason`].
        reason: &'static str,
    },
    /// A turn ended.
    TurnEnded {
        /// Outcome, as the label of `turns_total`.
        outcome: &'static str,
        /// Time since the turn was accepted.
        took: Duration,
    },
    /// The CLI ran a turn that no caller asked for, after its work in the background had ended.
    OwnTurn {
        /// Cost in US dollars. Part of the session's cost.
        cost_usd: f64,
    },
    /// A tool waits for a permission.
    PermissionNeeded {
        /// Id of the request, for its answer; cut off at 128 characters.
        request_id: String,
        /// Name of the tool; cut off at 128 characters.
        tool_name: String,
    },
    /// A turn was refused before a child saw it.
    Refused {
        /// Reason, as [`crate::TurnError::code`].
        reason: &'static str,
    },
    /// A child ended without a request of pilotlight.
    Crashed(Exit),
    /// A child is started again after the previous one died.
    Restarted {
        /// Cause, as the label of `restarts_total`.
        cause: &'static str,
    },
    /// The circuit opened after too many restarts: the session pauses.
    Paused,
    /// A child was stopped and its session kept.
    Evicted {
        /// Reason, as the label of `evictions_total`.
        reason: &'static str,
    },
    /// A session was deleted by the retention rules: its conversation and its files are gone.
    Expired {
        /// Reason, as the label of `retention_deleted_total`.
        reason: &'static str,
        /// Bytes that it occupied.
        bytes: u64,
    },
    /// A conversation was resumed without some or all of its turns.
    ContextLost {
        /// Extent, as the label of `contexts_lost_total`.
        kind: &'static str,
    },
    /// A damaged or missing transcript was restored without a loss.
    Recovered {
        /// Source, as the label of `conversations_recovered_total`.
        source: &'static str,
    },
}

/// End of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// Reason, as the label of `exits_total`.
    pub reason: &'static str,
    /// The same for people: an exit code, a signal, a reason to kill it. No output of the child.
    pub detail: String,
    /// Time of the end.
    pub at: SystemTime,
}

/// Event log of one instance.
#[derive(Debug)]
pub(crate) struct EventLog {
    ring: Mutex<Ring>,
    /// Number of the latest event.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Arc<SessionEvent>>,
    latest: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { ring: Mutex::default(), latest: watch::Sender::new(0) }
    }
}

impl EventLog {
    /// Appends an event. A refusal that repeats the latest event is left out.
    pub(crate) fn record(&self, session: &SessionKey, kind: EventKind) {
        let mut ring = self.lock();
        if repeats_refusal(ring.events.back(), session, &kind) {
            return;
        }
        ring.latest += 1;
        let number = ring.latest;
        if ring.events.len() == CAPACITY {
            ring.events.pop_front();
        }
        let session = session.clone();
        ring.events.push_back(Arc::new(SessionEvent { number, at: SystemTime::now(), session, kind }));
        drop(ring);
        // Two writers may arrive in the wrong order; the number that readers wait for never falls.
        self.latest.send_if_modified(|latest| {
            let grows = *latest < number;
            *latest = number.max(*latest);
            grows
        });
    }

    fn after(&self, number: u64) -> Option<Arc<SessionEvent>> {
        let ring = self.lock();
        let at = ring.events.partition_point(|event| event.number <= number);
        ring.events.get(at).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Consistent between two statements: a panic elsewhere leaves the ring usable.
        self.ring.lock_unpoisoned()
    }
}

/// Whether this is the latest refusal again. A flood of refusals must not evict all other events.
fn repeats_refusal(latest: Option<&Arc<SessionEvent>>, session: &SessionKey, kind: &EventKind) -> bool {
    matches!(kind, EventKind::Refused { .. })
        && latest.is_some_and(|latest| latest.kind == *kind && latest.session == *session)
}

/// Subscription to the event log. Cheap; any number of streams may follow, and none delays a writer.
#[derive(Debug)]
pub struct EventStream {
    log: Arc<EventLog>,
    /// Number of the last event that was read.
    read: u64,
    latest: watch::Receiver<u64>,
}

impl EventStream {
    pub(crate) fn of(log: Arc<EventLog>) -> Self {
        let latest = log.latest.subscribe();
        Self { log, read: 0, latest }
    }

    /// All events that can be read without waiting.
    #[cfg(test)]
    pub(crate) fn read_all(mut self) -> Vec<Arc<SessionEvent>> {
        std::iter::from_fn(|| {
            let event = self.log.after(self.read)?;
            self.read = event.number;
            Some(event)
        })
        .collect()
    }

    /// Returns the next event, and waits for it if there is none. Begins with the oldest event in the log.
    ///
    /// Cancellation-safe: a dropped future loses no event.
    pub async fn next(&mut self) -> Arc<SessionEvent> {
        loop {
            // Before the look-up: an event that is recorded afterwards wakes this stream.
            self.latest.mark_unchanged();
            if let Some(event) = self.log.after(self.read) {
                self.read = event.number;
                return event;
            }
            // Fails only without a sender, and `self.log` holds the sender.
            self.latest.changed().await.ok();
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

    fn started(generation: u64) -> EventKind {
        EventKind::Started { generation }
    }

    async fn now(reader: &mut EventStream) -> Option<u64> {
        let mut next = std::pin::pin!(reader.next());
        poll_fn(|context| {
            Poll::Ready(match next.as_mut().poll(context) {
                Poll::Ready(event) => Some(event.number),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn stream_reads_kept_then_new_events() {
        let log = Arc::new(EventLog::default());
        log.record(&session("a"), started(1));
        log.record(&session("b"), started(2));
        let mut stream = EventStream::of(log.clone());
        assert_eq!(stream.next().await.session, session("a"));
        assert_eq!((now(&mut stream).await, now(&mut stream).await), (Some(2), None));
        let waiting = async { stream.next().await.number };
        let ((), read) = tokio::join!(async { log.record(&session("a"), EventKind::Paused) }, waiting);
        assert_eq!(read, 3);
    }

    #[tokio::test]
    async fn slow_stream_finds_gap_in_bounded_log() {
        let log = Arc::new(EventLog::default());
        let mut stream = EventStream::of(log.clone());
        for generation in 1..=2 * CAPACITY as u64 {
            log.record(&session("a"), started(generation));
        }
        assert_eq!(log.lock().events.len(), CAPACITY);
        assert_eq!(stream.next().await.number, CAPACITY as u64 + 1);
    }

    #[test]
    fn repeated_refusals_are_recorded_once() {
        let log = EventLog::default();
        let refused = || EventKind::Refused { reason: "queue_full" };
        for _ in 0..100 {
            log.record(&session("a"), refused());
        }
        log.record(&session("b"), refused());
        log.record(&session("a"), refused());
        assert_eq!(log.lock().events.len(), 3);
    }
}
