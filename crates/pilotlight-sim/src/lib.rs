//! The simulated CLI: a deterministic, offline stand-in for `claude --print --input-format stream-json`.
//!
//! Purpose: children for the demo, for load and chaos tests, and for the continuous integration of programs that
//! embed pilotlight. It speaks the same lines, keeps the same files and dies of the same mistakes as the real one;
//! markers in a message's text and `--fault` switches make it answer, work or break on request (`--help` lists them).
//!
//! Owned by whoever runs it as a child; it must not know anything of supervisors, sessions of pilotlight or HTTP.
//! One thread reads the input all the time, the main thread runs turns, one thread owns signals, one the transcript.
//!
//! A marker may run shell commands: never give it text from people you do not trust.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

mod answer;
mod args;
mod asking;
mod catalogue;
mod clock;
mod commands;
mod control;
mod conversation;
mod engine;
mod events;
mod faults;
mod help;
mod input;
mod json;
mod output;
mod own_session;
mod permission;
mod script;
mod signals;
mod stream;
mod tasks;
mod tools;
mod transcript;
mod turn;
mod workspace;

/// First argument that turns an embedding program into the simulated CLI (see [`run_if_asked`]).
pub const SIM_ARG: &str = "pilotlight-sim";

/// The short name of the same, as the `pilotlight` program has it.
const SIM_COMMAND: &str = "sim";

/// Becomes the simulated CLI, and never returns, if the first argument is [`SIM_ARG`] or `sim`.
///
/// A program that embeds pilotlight calls this first thing in its `main`; it then needs no second executable.
pub fn run_if_asked() {
    CAN_BE_SIM.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == SIM_ARG || first == SIM_COMMAND) {
        std::process::exit(i32::from(run(arguments)));
    }
}

/// Whether [`run_if_asked`] was called in this process, so that its own executable may serve as the simulation.
pub fn can_be_sim() -> bool {
    CAN_BE_SIM.load(Ordering::Relaxed)
}

static CAN_BE_SIM: AtomicBool = AtomicBool::new(false);

/// Runs the simulated CLI with the given arguments (those after the word `sim`) until its end.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run(arguments))
}

/// What to put as first argument to start this very program as the simulated CLI once more.
fn selector() -> OsString {
    match std::env::args_os().nth(1) {
        Some(first) if first == SIM_COMMAND => first,
        _ => SIM_ARG.into(),
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == own_session::OWN_SESSION_ARG
    {
        return own_session::become_command(rest);
    }
    let words = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    match args::parse(words) {
        Ok(args::Asked::Run(args)) => engine::run(*args),
        Ok(args::Asked::Help) => help::print(),
        Ok(args::Asked::Version) => help::print_version(),
        Err(refusal) => {
            output::complain(&refusal.to_string());
            1
        }
    }
}
