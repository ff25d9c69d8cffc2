//! A simulated `claude --print --input-format stream-json`: deterministic and offline.
//!
//! It serves as the CLI of the demo, of load and chaos tests, and of tests of programs that embed pilotlight. It reads and
//! writes the same lines, keeps the same files and exits on the same errors as claude. Markers in a message's text and
//! `--fault` flags control its answers and faults; `--help` lists them.
//!
//! It does not depend on pilotlight. Four threads: the main thread runs turns, the others read the input, handle signals
//! and write the transcript.
//!
//! A marker may run shell commands: use it with trusted text only.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

mod answer;
mod args;
mod catalogue;
mod clock;
mod command;
mod commands;
mod control;
mod conversation;
mod dispatch;
mod engine;
mod events;
mod faults;
mod help;
mod host_request;
mod input;
mod json;
mod mcp_config;
mod new_session;
mod output;
mod permission;
mod recorded;
mod result;
mod scenario;
mod script;
mod signals;
mod stream;
mod tasks;
mod tools;
mod transcript;
mod transcript_writer;
mod turn;
mod turn_faults;
mod workspace;

/// First argument that makes an embedding program run as the simulated CLI, see [`run_if_asked`].
pub const SIM_ARG: &str = "pilotlight-sim";

/// First argument with the same effect, as the subcommand of the `pilotlight` program.
const SIM_COMMAND: &str = "sim";

/// Runs as the simulated CLI and never returns, if the first argument is [`SIM_ARG`] or `sim`; else returns at once.
///
/// A program that embeds pilotlight calls this first in `main`, instead of shipping a second executable.
pub fn run_if_asked() {
    CAN_BE_SIM.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == SIM_ARG || first == SIM_COMMAND) {
        std::process::exit(i32::from(run(arguments)));
    }
}

/// The same for the first argument [`SIM_ARG`] only: `sim` may be an argument of the program's own, such as the filter of
/// a test run. Works before `main` as well.
pub fn run_if_asked_by_its_name() {
    CAN_BE_SIM.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == SIM_ARG) {
        std::process::exit(i32::from(run(arguments)));
    }
}

/// Whether this process called [`run_if_asked`], which lets its executable serve as the simulated CLI.
pub fn can_be_sim() -> bool {
    CAN_BE_SIM.load(Ordering::Relaxed)
}

static CAN_BE_SIM: AtomicBool = AtomicBool::new(false);

/// Runs the simulated CLI with the given arguments (without the word `sim`).
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(run(arguments))
}

/// First argument that makes this program run as the simulated CLI again.
fn selector() -> OsString {
    match std::env::args_os().nth(1) {
        Some(first) if first == SIM_COMMAND => first,
        _ => SIM_ARG.into(),
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == new_session::NEW_SESSION_ARG
    {
        return new_session::become_command(rest);
    }
    let words = arguments.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    match args::parse(words) {
        Ok(args::Invocation::Run(args)) => engine::run(*args),
        Ok(args::Invocation::Help) => help::print(),
        Ok(args::Invocation::Version) => help::print_version(),
        Err(refusal) => {
            output::write_error(&refusal.to_string());
            1
        }
    }
}
