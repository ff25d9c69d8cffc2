//! The simulated CLI from outside: real processes, and the recorded streams of the real one as the measure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "that is how a test's helper fails")]
#![allow(unreachable_pub, reason = "the modules of a test are read together")]

#[path = "sim/harness.rs"]
mod harness;

#[path = "sim/control.rs"]
mod control;
#[path = "sim/conversation.rs"]
mod conversation;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/samples.rs"]
mod samples;
#[path = "sim/tools.rs"]
mod tools;
