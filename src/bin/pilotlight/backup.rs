//! `pilotlight backup` and `pilotlight restore`: copies of a data directory, also of a running server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pilotlight::Config;
use pilotlight::at_rest::{self, AtRestError, Copied};
use pilotlight::config::ConfigError;

use crate::args::{FAILED, MISUSED, Options, complain, note};

/// Where the data is.
#[derive(Args, Debug, Clone)]
pub(crate) struct DataOptions {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory; default is data_dir of the configuration
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
}

impl DataOptions {
    pub(crate) fn configuration(&self) -> Result<Config, ConfigError> {
        let (config, data_dir) = (self.config.clone(), self.data_dir.clone());
        Options { config, data_dir, ..Options::default() }.configuration()
    }
}

#[derive(Args)]
pub(crate) struct BackupOptions {
    /// New or empty directory for the backup
    directory: PathBuf,
    #[command(flatten)]
    data: DataOptions,
}

#[derive(Args)]
pub(crate) struct RestoreOptions {
    /// Directory of the backup
    directory: PathBuf,
    #[command(flatten)]
    data: DataOptions,
}

pub(crate) fn back_up(options: &BackupOptions) -> ExitCode {
    let config = match options.data.configuration() {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    report("backed up", at_rest::backup(&config.data_dir, &options.directory))
}

pub(crate) fn restore(options: &RestoreOptions) -> ExitCode {
    let config = match options.data.configuration() {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    report("restored", at_rest::restore(&options.directory, &config.data_dir, &config.cli))
}

/// Prints what was copied, or why not.
pub(crate) fn report(done: &str, copied: Result<Copied, AtRestError>) -> ExitCode {
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) => return complain(&error.to_string(), FAILED),
    };
    let Copied { sessions, files, bytes, left_out, .. } = copied;
    note(&format!("{done}: {sessions} sessions, {files} files, {bytes} bytes; {left_out} files left out"));
    ExitCode::SUCCESS
}
