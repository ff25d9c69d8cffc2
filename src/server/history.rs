//! The last hours of the whole service, for the operator's page: rates and latencies by quarter minutes, and the last
//! failures. In memory, and bounded.
//!
//! One task follows the event log and closes a bucket at a time. The [`Ring`] decides what is kept; it is pure.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::model::ids::UserId;
use crate::server::app::App;
use crate::support::lock::MutexExt;
use crate::telemetry::events::SessionEvent;
pub(crate) use ring::{Bucket, Failure, Ring, Sample};

mod ring;

/// Length of a bucket: a point every few pixels of an hour.
pub(crate) const BUCKET: Duration = Duration::from_secs(15);

/// What is kept of the last hours.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Ring>);

impl History {
    /// The buckets that ended after `since` (seconds since 1970), the oldest first.
    pub(crate) fn buckets(&self, since: u64) -> Vec<Bucket> {
        self.0.lock_unpoisoned().buckets(since)
    }

    /// The last failures, the latest first.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.0.lock_unpoisoned().failures()
    }

    /// Drops the failures of a deleted user.
    pub(crate) fn forget(&self, user: &UserId) {
        self.0.lock_unpoisoned().forget(user);
    }

    /// Drops the failures of a deleted session.
    pub(crate) fn forget_session(&self, user: &UserId, name: &str) {
        self.0.lock_unpoisoned().forget_session(user, name);
    }

    fn record(&self, event: &SessionEvent) {
        self.0.lock_unpoisoned().record(event);
    }

    fn close(&self, sample: Sample) {
        self.0.lock_unpoisoned().close(sample);
    }
}

/// Follows the events, and samples what is no event. Never ends.
pub(crate) async fn keep(app: Arc<App>) {
    let mut events = app.pilot.events();
    let mut ends = interval_at(Instant::now() + BUCKET, BUCKET);
    // After a stall of the disk no empty buckets follow.
    ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => app.history.record(&event),
            _ = ends.tick() => {
                let load = app.pilot.load().await;
                app.history.close(Sample {
                    ends_at: SystemTime::now(),
                    children: load.starts.children,
                    busy: load.busy,
                    waiting: load.starts.waiting,
                    memory_bytes: load.memory_bytes,
                    charged_usd: app.pilot.spend().charged_usd(),
                });
            }
        }
    }
}
