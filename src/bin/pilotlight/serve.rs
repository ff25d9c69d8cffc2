//! `pilotlight serve`: the service as a process, with its signals.
//!
//! One source of signals, two levels: the first drains, the second ends at once. Children need no care of ours at the
//! second: each has a shim that ends it when this process is gone.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use pilotlight::Config;
use pilotlight::config::ConfigError;
use pilotlight::server::{ServeError, Server, raise_open_files};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{FAILED, MISUSED, Options, complain, runtime, start_log_with};
use crate::export::Export;

/// What blocking work (a file being read) may still take once everything else has ended.
const RUNTIME_STOP: Duration = Duration::from_secs(1);

pub(crate) fn run(options: &Options) -> ExitCode {
    let (config, export) = match prepare(options) {
        Ok(prepared) => prepared,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    // An image of our memory would hold keys and conversations. Children get the same limit from their shim.
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, nothing) {
        tracing::warn!(%error, "core files are not switched off");
    }
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it was given");
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let code = runtime.block_on(serve(config, export)).unwrap_or_else(|failure| failure.tell());
    runtime.shutdown_timeout(RUNTIME_STOP);
    code
}

/// The log, what goes to a collector beside it, and the configuration.
fn prepare(options: &Options) -> Result<(Config, Export), ConfigError> {
    let (export, layer) = Export::from_environment()?;
    start_log_with(layer)?;
    Ok((options.configuration()?, export))
}

/// Why the service did not serve.
enum Failure {
    Signals(std::io::Error),
    Start(ServeError),
}

impl Failure {
    fn tell(self) -> ExitCode {
        match self {
            Self::Signals(error) => complain(&format!("cannot listen for signals: {error}"), FAILED),
            Self::Start(error) => {
                complain(&error.to_string(), if error.is_usage() { MISUSED } else { FAILED })
            }
        }
    }
}

async fn serve(config: Config, export: Export) -> Result<ExitCode, Failure> {
    let grace = config.drain_timeout;
    let mut signals = Signals::new().map_err(Failure::Signals)?;
    // Asked for once, it never ends the process again, also where nobody waits for it.
    let mut hangup = signal(SignalKind::hangup()).map_err(Failure::Signals)?;
    let server = tokio::select! {
        server = Server::start(config) => server.map_err(Failure::Start)?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped before the service had started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    announce(&server);
    let name = loop {
        tokio::select! {
            name = signals.next() => break name,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: reading the keys again");
                server.reload();
            }
        }
    };
    tracing::info!(signal = name, ?grace, "draining: running turns may end, new ones are refused");
    server.drain();
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

/// The one line on standard output. Whoever started us may not read it; then we serve all the same.
fn announce(server: &Server) {
    let line = format!("listening http=http://{} admin=http://{}\n", server.http(), server.admin());
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        tracing::warn!(%error, "nobody reads standard output");
    }
}

/// The signals that ask for a stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
