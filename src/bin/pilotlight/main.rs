//! The `pilotlight` program: arguments and exit codes.
//!
//! Exit codes: 0 success, 1 failure while running, 2 invalid arguments or configuration.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

mod args;
mod attach;
mod backup;
mod check;
mod demo;
mod doctor;
#[cfg_attr(not(feature = "otel"), path = "otel_disabled.rs")]
mod export;
mod init;
mod keys;
mod operate;
mod serve;
mod signals;
mod temp_dir;
mod user;

use args::Options;
use operate::Verb;

/// Keeps one warm, supervised, resumable CLI process per user.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 success, 1 failure while running, 2 invalid arguments or \
                                        configuration.\nPILOTLIGHT_LOG sets the log level (error, warn, info, \
                                        debug) or a filter, PILOTLIGHT_LOG_FORMAT the format (text, json). \
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
    /// Demonstrate pilotlight in seconds; every claim is checked
    Demo(demo::DemoOptions),
    /// Create, list and revoke API keys
    Keys(keys::KeysOptions),
    /// Export or delete the data of a user
    User(user::UserOptions),
    /// Copy the data directory, also of a running server
    Backup(backup::BackupOptions),
    /// Create a data directory from a backup
    Restore(backup::RestoreOptions),
    /// Be the CLI of an Agent SDK: its lines go to a child of a running server (`pilotlight attach --help` explains it)
    #[command(disable_help_flag = true)]
    Attach {
        /// The arguments of the SDK
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// List the sessions of a running server
    Sessions(operate::SessionsOptions),
    /// Show a session of a running server, with what its tools wait for
    Session(operate::SessionOptions),
    /// Print the events of a running server as they occur
    Tail(operate::TailOptions),
    /// Stop the child of a session; the next message resumes the conversation
    Evict(operate::SessionOptions),
    /// Start the child of a session ahead of its next message
    Warm(operate::SessionOptions),
    /// End the running turn of a session
    Interrupt(operate::SessionOptions),
    /// Show the cost and tokens of a user per day
    Usage(operate::UsageOptions),
    /// Show and change the nodes of a cluster
    #[cfg(feature = "cluster")]
    Cluster(operate::cluster::ClusterOptions),
    /// Say what is wrong with this host, the configuration or the running server, and what to do
    Doctor(doctor::DoctorOptions),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, for `man`
    Man,
    /// Check the configuration and start its CLI once, without spending tokens
    Check(Options),
    /// Run the simulated CLI (`pilotlight sim --help` lists its arguments)
    #[command(disable_help_flag = true)]
    Sim {
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    // Must come first: these are other programs in the same binary. No thread, runtime or log exists yet.
    pilotlight::shim::run_if_asked();
    pilotlight::sim::run_if_asked();

    if attach::is_called_so() {
        return attach::run(std::env::args_os().skip(1));
    }
    let command = Arguments::parse().command;
    if init::is_needed() && matches!(command, Command::Serve(_) | Command::Demo(_)) {
        return init::run();
    }
    match command {
        Command::Serve(options) => serve::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Keys(options) => keys::run(&options),
        Command::User(options) => user::run(&options),
        Command::Backup(options) => backup::back_up(&options),
        Command::Restore(options) => backup::restore(&options),
        Command::Sessions(options) => operate::sessions(&options),
        Command::Session(options) => operate::session(&options, Verb::Show),
        Command::Tail(options) => operate::tail(&options),
        Command::Evict(options) => operate::session(&options, Verb::Evict),
        Command::Warm(options) => operate::session(&options, Verb::Warm),
        Command::Interrupt(options) => operate::session(&options, Verb::Interrupt),
        Command::Usage(options) => operate::usage(&options),
        #[cfg(feature = "cluster")]
        Command::Cluster(options) => operate::cluster::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Completions { shell } => {
            let mut scripts = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "pilotlight", &mut scripts);
            print(&scripts)
        }
        Command::Man => {
            let mut page = Vec::new();
            // A vector takes every write.
            clap_mangen::Man::new(Arguments::command()).render(&mut page).ok();
            print(&page)
        }
        Command::Attach { arguments } => attach::run(arguments.into_iter()),
        Command::Check(options) => check::run(&options),
        Command::Sim { arguments } => pilotlight_sim::main(arguments.into_iter()),
    }
}

fn print(text: &[u8]) -> ExitCode {
    // A closed standard output leaves nothing to print to.
    std::io::stdout().write_all(text).ok();
    ExitCode::SUCCESS
}
