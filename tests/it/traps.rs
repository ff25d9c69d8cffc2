//! The traps of the CLI's protocol, one test each, through the public API on the simulated CLI. The number is the
//! trap's; each test shows the trap in the CLI's own behaviour and that nobody who uses pilotlight falls into it.

use std::time::{Duration, Instant};

use pilotlight::config::JournalMode;
use pilotlight::model::Decision;
use pilotlight::turn::Status;
use pilotlight::{Config, Outcome, TurnError, TurnOptions};
use rustix::process::Signal;

mod answers;
mod ends;
mod input;
mod limits;
mod memory;
mod processes;
mod workspace;

use crate::common::bench::{
    Bench, arguments, ask, clis_of, eventually, is_alive, is_childless, killed_idle, pid, processes_in, say,
    signal, transcript, written_down,
};

/// How a turn failed that the CLI itself ended.
fn failure(outcome: &Outcome) -> &pilotlight::model::Failure {
    match &outcome.status {
        Status::Failed(failure) => failure,
        other => panic!("not failed by the CLI: {other:?}"),
    }
}
