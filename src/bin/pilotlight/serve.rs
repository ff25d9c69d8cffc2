//! `pilotlight serve`: runs the service until a signal.
//!
//! The first SIGTERM or SIGINT drains, the second exits at once. Each child has a shim that kills it when this process
//! exits. SIGHUP reloads keys and configuration.

use std::io::Write;
use std::process::ExitCode;

use pilotlight::Config;
use pilotlight::config::ConfigError;
use pilotlight::server::{ServeError, Server, raise_open_files};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{FAILED, MISUSED, Options, block_on, complain, start_log_with};
use crate::export::Export;
use crate::signals::Signals;

pub(crate) fn run(options: &Options) -> ExitCode {
    let (config, export) = match prepare(options) {
        Ok(prepared) => prepared,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    // A core file would hold keys and conversations. Children get the same limit from their shim.
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, nothing) {
        tracing::warn!(%error, "cannot disable core files");
    }
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    block_on(async { serve(options, config, export).await.unwrap_or_else(|code| code) })
}

/// Starts the log and the span export, and loads the configuration.
fn prepare(options: &Options) -> Result<(Config, Export), ConfigError> {
    let (export, layer) = Export::from_environment()?;
    start_log_with(layer)?;
    Ok((options.configuration()?, export))
}

/// Exit code of a service that could not start.
pub(crate) fn refuse(error: &ServeError) -> ExitCode {
    complain(&error.to_string(), if error.is_usage() { MISUSED } else { FAILED })
}

async fn serve(options: &Options, config: Config, export: Export) -> Result<ExitCode, ExitCode> {
    let no_signals = |error| complain(&format!("cannot listen for signals: {error}"), FAILED);
    let mut signals = Signals::new().map_err(no_signals)?;
    // Once registered, SIGHUP no longer terminates the process, also when nothing waits for it.
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    let server = tokio::select! {
        server = Server::start(config) => server.map_err(|error| refuse(&error))?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before the service started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    announce(&server);
    let name = loop {
        tokio::select! {
            name = signals.next() => break name,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: reloading the keys and the configuration");
                server.reload_files();
                // A disk that does not answer holds up no stop.
                tokio::select! {
                    name = signals.next() => break name,
                    () = reload(&server, options) => {}
                }
            }
        }
    };
    let grace = server.pilot().current().drain_timeout;
    // Not drained before: a node of a cluster answers requests of its users until they have left.
    tracing::info!(signal = name, ?grace, "draining: running turns finish, new ones are refused");
    let stop = async {
        server.shutdown(grace).await;
        export.flush().await;
    };
    tokio::select! {
        () = stop => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        name = signals.next() => {
            tracing::warn!(signal = name, "second signal: stopping at once");
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// Reads the configuration again, with the arguments and the environment of the start.
async fn reload(server: &Server, options: &Options) {
    let options = options.clone();
    let read = move || {
        // A pipe may be the file of a start. Here it could wait for its other end for ever, and so would all later signals.
        match &options.config {
            Some(path) if path.metadata().is_ok_and(|found| !found.is_file()) => {
                let problem =
                    format!("{} is no regular file, and can only be read at the start", path.display());
                Err(ConfigError::Key { key: "--config".to_owned(), problem })
            }
            _ => options.configuration(),
        }
    };
    let Ok(read) = tokio::task::spawn_blocking(read).await else {
        tracing::error!("reading the configuration failed; it stays as it was");
        return;
    };
    match read {
        // The server logs both outcomes.
        Ok(config) => drop(server.reload(&config).await),
        Err(error) => server.refuse_reload(&error),
    }
}

/// Prints the addresses as the one line on standard output. A closed output does not stop the service.
fn announce(server: &Server) {
    let line = format!("listening http=http://{} admin=http://{}\n", server.http(), server.admin());
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        tracing::warn!(%error, "cannot write to standard output");
    }
}
