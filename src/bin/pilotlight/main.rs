//! The `pilotlight` program: arguments and exit codes.
//!
//! Exit codes: 0 all is well, 1 something failed while running, 2 the arguments or the configuration are wrong.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod args;
mod check;
mod demo;
#[cfg_attr(not(feature = "otel"), path = "otel_disabled.rs")]
mod export;
mod init;
mod keys;
mod serve;

use args::Options;

/// Keeps one warm, supervised, resumable CLI process per user.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 all is well, 1 a failure while running, 2 wrong arguments or \
                                        configuration.\nPILOTLIGHT_LOG sets what is logged (error, warn, info, \
                                        debug, or a filter), PILOTLIGHT_LOG_FORMAT how (text, json); \
                                        PILOTLIGHT_SECTION__KEY=value sets any configuration \
                                        key."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP until SIGTERM or SIGINT; a second signal stops at once
    Serve(Options),
    /// Show what pilotlight does, each claim checked
    Demo(demo::DemoOptions),
    /// Make, list and revoke the keys that callers bring
    Keys(keys::KeysOptions),
    /// Check a configuration and its CLI: start it once, without spending a token
    Check(Options),
    /// Be the simulated CLI (`pilotlight sim --help` tells its own arguments)
    #[command(disable_help_flag = true)]
    Sim {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    // Before anything else, for these are other programs in the same file: no thread, no runtime, no logging.
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();

    let command = Arguments::parse().command;
    if init::is_needed() && matches!(command, Command::Serve(_) | Command::Demo(_)) {
        return init::run();
    }
    match command {
        Command::Serve(options) => serve::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Keys(options) => keys::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Sim { arguments } => pilotlight_sim::main(arguments.into_iter()),
    }
}
