//! Faults, injected from outside into a running server with the simulated CLI. The number is that of the fault in the
//! project's list of what must be survived; [`attack`] holds what must be true after every one of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real processes live in real time"
)]

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

#[path = "../common/mod.rs"]
mod common;

mod attack;
mod clients;
mod clocks;
mod containment;
mod crashes;
mod first_process;
mod hangs;
mod input;
mod instance;
mod memory;
mod output;
mod panics;
mod starts;

use attack::{Attack, Told};
use common::process::Process;
use common::program;
use common::program::{Answer, Program, message, place};
use common::{SOON, eventually, eventually_some};

/// The user whose child suffers.
const MALLORY: &str = "mallory";
