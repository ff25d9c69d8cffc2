//! The simulated CLI from outside: real processes, and the recorded streams of the real one as the measure.

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
