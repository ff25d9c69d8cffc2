//! From arguments, environment and file to a configuration and a log; what the subcommands share.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pilotlight::Config;
use pilotlight::config::{ConfigError, listen_address};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// Something failed while running.
pub(crate) const FAILED: u8 = 1;
/// The arguments or the configuration are wrong.
pub(crate) const MISUSED: u8 = 2;

/// The variable with the log's filter.
const LOG_VARIABLE: &str = "PILOTLIGHT_LOG";
const DEFAULT_LOG: &str = "info";
/// The variable with the log's form.
const LOG_FORMAT_VARIABLE: &str = "PILOTLIGHT_LOG_FORMAT";
/// Variables with this prefix may be configuration.
const PREFIX: &[u8] = b"PILOTLIGHT_";

/// What else gets the spans beside the log; it has a filter of its own.
pub(crate) type ExportLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Each wins over its key in the environment, which wins over the file.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct Options {
    /// A configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The public listener: an address, localhost or a port alone; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT|PORT", value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// The operator's listener, with /metrics
    #[arg(long, value_name = "ADDRESS:PORT|PORT", value_parser = listen_address)]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// The file of keys (see `pilotlight keys`); then every caller needs one
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Trust everybody who reaches a listener, also where that is not this machine alone
    #[arg(long)]
    pub(crate) allow_unauthenticated: bool,
    /// Where sessions and workspaces are kept
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The CLI: a path, `claude` (found in PATH) or `sim` (the built-in simulation)
    #[arg(long, value_name = "PATH|claude|sim")]
    pub(crate) cli: Option<String>,
}

impl Options {
    /// The configuration that these options ask for, checked.
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

/// Our variables; those of others need not be text.
pub(crate) fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let ours = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX));
    ours.map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        let problem = "the environment variable's value is not UTF-8".to_owned();
        value
            .into_string()
            .map_err(|_| ConfigError::Key { key: name.clone(), problem })
            .map(|value| (name, value))
    })
    .collect()
}

/// Logs go to standard error: standard output belongs to what a program reads.
pub(crate) fn start_log() -> Result<(), ConfigError> {
    start_log_with(None)
}

/// The same, with somebody else who gets the spans.
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
        // The filter before everything: what nobody logs is not even looked at.
        None => tracing_subscriber::registry().with(filter).with(lines(is_json)).try_init(),
        Some(export) => {
            tracing_subscriber::registry().with(export).with(lines(is_json).with_filter(filter)).try_init()
        }
    };
    // Fails only if there is a log already, which then is as good.
    started.ok();
    Ok(())
}

/// What writes the log.
fn lines<S>(is_json: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // One object to a line, the fields of the event at its top, those of its spans in a list.
    if is_json { lines.json().flatten_event(true).with_current_span(false).boxed() } else { lines.boxed() }
}

/// The runtime of a subcommand.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|error| complain(&format!("cannot start the runtime: {error}"), FAILED))
}

/// Says what is wrong, for a person, and gives the exit code.
pub(crate) fn complain(problem: &str, code: u8) -> ExitCode {
    // Without a standard error there is nobody to tell.
    writeln!(std::io::stderr(), "pilotlight: {problem}").ok();
    ExitCode::from(code)
}
