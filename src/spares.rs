//! Spares: children that are started ahead for users who are not known yet (`spares.min`, `spares.max`).
//!
//! [`plan`] decides, purely, which spare starts and which end; [`run`] carries it out; [`keeper`] is the life of one spare.
//! The sessions take them from the [`Shelf`](crate::session::shelf::Shelf).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep};

use crate::model::ids::SessionHash;
use crate::session::sessions::Sessions;
use crate::session::shelf::{SpareKind, SparePhase};
use crate::session::{Record, store::SettingsRecord};
use crate::support::blocking::blocking;
use crate::telemetry::metrics::SpareState;
use crate::workspace::{DirectoryName, RecordDir, records_dir, sweep_spares};

mod keeper;
mod plan;

/// How often the spares are looked at without an event: ages and the end of a pause have none.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks for processes that may have the user id of an ended spare: a look reads the whole process table.
const REVIEW: Duration = Duration::from_secs(5);

/// Keeps the configured number of spares, until the task is dropped or the system drains.
pub(crate) async fn run(sessions: Arc<Sessions>) {
    let config = &sessions.env.config;
    if config.spares.min == 0 {
        return;
    }
    let default = SpareKind::wanted(&config.cli, &SettingsRecord::default(), false).unwrap_or_default();
    let limits = plan::Limits { min: config.spares.min, max: config.spares.most(), default };
    let mut reviewed = Instant::now();
    loop {
        look(&sessions, &limits);
        if sessions.env.isolation.has_doubts() && reviewed.elapsed() >= REVIEW {
            reviewed = Instant::now();
            review(&sessions);
        }
        if sessions.is_draining() {
            return;
        }
        tokio::select! {
            () = sessions.shelf.changed.notified() => {}
            () = sessions.admission.waits.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}

fn look(sessions: &Arc<Sessions>, limits: &plan::Limits) {
    let (admission, shelf, metrics) = (&sessions.admission, &sessions.shelf, &sessions.env.telemetry.metrics);
    let demand = admission.demand();
    let decision =
        shelf.read(|shelf| plan::decide(limits, &plan::View { shelf, demand, now: Instant::now() }));
    for (id, why) in decision.end {
        shelf.end(id, why);
    }
    metrics.spares_wanted.set(decision.wanted as f64);
    metrics.spares.set(SpareState::Warming, shelf.count(SparePhase::Warming) as f64);
    metrics.spares.set(SpareState::Ready, shelf.count(SparePhase::Ready) as f64);
    let Some(kind) = decision.start else { return };
    // Between the decision and this a start may have come.
    let Some(permits) = admission.admit_spare() else { return };
    if let Some((id, (orders, gone))) = shelf.add(kind.clone()) {
        let keeper = keeper::Keeper { sessions: sessions.clone(), id, kind, _gone: gone };
        sessions.env.tasks.spawn(shelf.keepers.track_future(keeper.keep(permits, orders)));
    }
}

fn review(sessions: &Sessions) {
    let env = sessions.env.clone();
    sessions.env.spawn_until_end(async move {
        let reviewed = blocking(move || {
            env.isolation.review();
            Ok(())
        });
        reviewed.await.ok();
    });
}

/// Removes the directories of spares that a former server has left. Blocking.
pub(crate) fn sweep(data_dir: &Path) {
    sweep_spares(data_dir, || named(data_dir));
}

/// The directories of all sessions.
fn named(data_dir: &Path) -> HashSet<DirectoryName> {
    let entries = std::fs::read_dir(records_dir(data_dir)).into_iter().flatten().flatten();
    let hashes = entries.filter_map(|entry| SessionHash::parse(entry.file_name().to_str()?));
    let directory = |hash: SessionHash| {
        RecordDir::of(data_dir, &hash).directory().or_else(|| {
            let (_, record) = Record::read(data_dir, &hash)?;
            Some(record.workspace(data_dir, &hash).name().clone())
        })
    };
    hashes.filter_map(directory).collect()
}
