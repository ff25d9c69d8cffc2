//! Faults, injected from outside into a running server with the simulated CLI. The number is that of the fault in the
//! project's list of what must be survived; [`attack`] holds what must be true after every one of them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

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

use crate::common::process::Process;
use crate::common::program;
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, eventually, eventually_some};
pub(crate) use attack::processor_time;
use attack::{Attack, Reply};

/// The user whose child suffers.
const MALLORY: &str = "mallory";
