//! The simulated CLI from outside: real processes, and the recorded streams of the real one as the measure.

mod harness;

mod control;
mod conversation;
mod faults;
mod samples;
mod tools;
