//! Arguments, configuration and log setup shared by the subcommands.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use pilotlight::Config;
use pilotlight::config::{ConfigError, listen_address};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Exit code of a failure while running.
pub(crate) const FAILED: u8 = 1;
/// Exit code of invalid arguments or configuration.
pub(crate) const MISUSED: u8 = 2;

/// Maximum wait for blocking work (a file being read) after everything else has stopped.
const RUNTIME_STOP: Duration = Duration::from_secs(1);
/// Environment variable with the log filter.
pub(crate) const LOG_VARIABLE: &str = "PILOTLIGHT_LOG";
const DEFAULT_LOG: &str = "info";
/// Environment variable with the log format.
const LOG_FORMAT_VARIABLE: &str = "PILOTLIGHT_LOG_FORMAT";
/// Prefix of environment variables that set configuration keys.
const PREFIX: &[u8] = b"PILOTLIGHT_";

/// Subscriber layer that exports spans, with its own filter.
pub(crate) type ExportLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Arguments that override the environment, which overrides the file.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Options {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Public listener: address, localhost or port; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS:PORT|PORT", value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Operator's listener, serves /metrics
    #[arg(long, value_name = "ADDRESS:PORT|PORT", value_parser = listen_address)]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// Key file (see `pilotlight keys`); every caller then needs a key
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Trust every caller, also on listeners that other machines can reach
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
    /// Directory of sessions and workspaces
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
    /// CLI: a path, `claude` (found in PATH) or `sim` (the built-in simulation)
    #[arg(long, value_name = "PATH|claude|sim")]
    pub(crate) cli: Option<String>,
}

impl Options {
    /// Loads and validates the configuration.
    pub(crate) fn configuration(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref(), environment()?)?;
        if let Some(listen) = self.listen {
            config.http.listen = listen;
        }
        if let Some(listen) = self.admin_listen {
            config.admin.listen = listen;
        }
        if let Some(file) = &self.keys {
            config.auth.keys_file = Some(file.clone());
        }
        config.auth.allow_unauthenticated |= self.allow_unauthenticated;
        if let Some(directory) = &self.data_dir {
            config.data_dir.clone_from(directory);
        }
        if let Some(program) = &self.cli {
            config.cli.program.clone_from(program);
        }
        config.validate()?;
        Ok(config)
    }
}

/// Environment variables with the prefix. Others need not be UTF-8.
pub(crate) fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let prefixed = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX));
    prefixed
        .map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            let problem = "the environment variable's value is not UTF-8".to_owned();
            value
                .into_string()
                .map_err(|_| ConfigError::Key { key: name.clone(), problem })
                .map(|value| (name, value))
        })
        .collect()
}

/// Starts the log on standard error. Standard output is for machine-readable lines.
pub(crate) fn start_log() -> Result<(), ConfigError> {
    start_log_with(None)
}

/// Starts the log and, beside it, the export of spans.
pub(crate) fn start_log_with(export: Option<ExportLayer>) -> Result<(), ConfigError> {
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    let filter = EnvFilter::builder().parse(&filter).map_err(|error| {
        let problem = format!("{error}; allowed are error, warn, info, debug, trace, off, or target=level,…");
        ConfigError::Key { key: LOG_VARIABLE.to_owned(), problem }
    })?;
    let is_json = match std::env::var(LOG_FORMAT_VARIABLE).as_deref() {
        Ok("text") | Err(_) => false,
        Ok("json") => true,
        Ok(_) => {
            let problem = "must be text or json".to_owned();
            return Err(ConfigError::Key { key: LOG_FORMAT_VARIABLE.to_owned(), problem });
        }
    };
    let started = match export {
        // A global filter skips disabled events before any layer.
        None => tracing_subscriber::registry().with(filter).with(lines(is_json)).try_init(),
        Some(export) => {
            tracing_subscriber::registry().with(export).with(lines(is_json).with_filter(filter)).try_init()
        }
    };
    // Fails only when a log is set already, which then is used.
    started.ok();
    Ok(())
}

fn lines<S>(is_json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // One object per line: the event's fields at the top, its spans' fields in a list.
    if is_json { lines.json().flatten_event(true).with_current_span(false).boxed() } else { lines.boxed() }
}

/// Runs the asynchronous part of a subcommand.
pub(crate) fn block_on(work: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start the runtime: {error}"), FAILED),
    };
    let code = runtime.block_on(work);
    runtime.shutdown_timeout(RUNTIME_STOP);
    code
}

/// Prints a result for people to standard error.
pub(crate) fn note(text: &str) {
    // A closed standard error leaves no place to report to.
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Prints a problem to standard error and returns the exit code.
pub(crate) fn complain(problem: &str, code: u8) -> ExitCode {
    // A closed standard error leaves no place to report to.
    writeln!(std::io::stderr(), "pilotlight: {problem}").ok();
    ExitCode::from(code)
}
