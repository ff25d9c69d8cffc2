//! `pilotlight demo`: the whole system at work, for somebody who sees it for the first time.
//!
//! Theory of operation: the demo starts a real server in a directory of its own and is a client of it over HTTP. Each
//! part ([`acts`]) shows something and then claims what it has checked. What is printed ([`page`]) and what the users
//! say ([`script`]) is pure; [`stage`] owns the server, and whatever happens (a failed part, a signal, a reader that has
//! gone away) the server is stopped in order and what it left is looked for. Nothing here reaches into the core: it
//! uses the public names alone.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pilotlight::Config;
use pilotlight::config::ConfigError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::args::{FAILED, MISUSED, Options, complain, runtime, start_log};

mod acts;
mod alone;
mod client;
mod metrics;
mod page;
mod process;
mod script;
mod show;
mod stage;

use acts::Plot;
use script::Script;
use show::{Problem, Show};
use stage::{CannotBegin, Ended, Ground, SIMULATION, Stage};

/// Stopped by a signal, as shells say it of SIGINT.
const INTERRUPTED: u8 = 130;
/// Its presence means that a log is wanted; without it the kills of the demo would fill the page with warnings.
const LOG_VARIABLE: &str = "PILOTLIGHT_LOG";
/// The most characters of the CLI's path and version: the version is its own text.
const CLI_SHOWN: usize = 200;
/// What blocking work may still take once everything else has ended.
const RUNTIME_STOP: std::time::Duration = std::time::Duration::from_secs(1);

/// The arguments.
#[derive(Args, Debug, Clone)]
pub(crate) struct DemoOptions {
    /// The CLI: `sim` (the built-in simulation, and the default without --config), `claude` (found in PATH) or a path
    #[arg(long, value_name = "claude|sim|PATH")]
    cli: Option<String>,
    /// A configuration file (TOML); its data directory, listeners and idle timeout are the demo's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the temporary directory and say where it is
    #[arg(long)]
    keep: bool,
}

impl DemoOptions {
    fn configuration(&self) -> Result<Config, ConfigError> {
        // Who names neither has nothing installed.
        let default = self.config.is_none().then(|| SIMULATION.to_owned());
        let cli = self.cli.clone().or(default);
        Options { config: self.config.clone(), cli, ..Options::default() }.configuration()
    }
}

pub(crate) fn run(options: &DemoOptions) -> ExitCode {
    let wants_log = std::env::var_os(LOG_VARIABLE).is_some();
    let log = if wants_log { start_log() } else { Ok(()) };
    let config = match log.and_then(|()| options.configuration()) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    let code = runtime.block_on(async {
        match Interrupts::new() {
            Ok(mut interrupts) => play(config, options.keep, &mut interrupts).await,
            Err(error) => complain(&format!("cannot listen for signals: {error}"), FAILED),
        }
    });
    runtime.shutdown_timeout(RUNTIME_STOP);
    code
}

/// From the first line to the last.
async fn play(config: Config, keep: bool, interrupts: &mut Interrupts) -> ExitCode {
    let begin = Instant::now();
    let set = async { Stage::set(Ground::prepare(config, keep).await?).await };
    let stage = tokio::select! {
        stage = set => stage,
        () = interrupts.next() => return ExitCode::from(INTERRUPTED),
    };
    let stage = match stage {
        Ok(stage) => stage,
        Err(error) => return refuse(&error),
    };
    let mut show = Show::new();
    let shown = tokio::select! {
        shown = all_parts(&stage, &mut show) => Some(shown),
        () = interrupts.next() => None,
    };
    // In any case, but a second signal does not wait for it: each child has a shim that ends it when we are gone.
    let (ground, ended) = tokio::select! {
        ended = stage.strike() => ended,
        () = interrupts.next() => return ExitCode::from(INTERRUPTED),
    };
    match shown {
        Some(shown) => {
            let all_is_well = shown.and_then(|()| last_part(&mut show, &ground, &ended, keep));
            let all_is_well = all_is_well.and_then(|()| show.verdict(begin.elapsed()));
            if all_is_well.unwrap_or(false) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        None => {
            let left = ended.left.len();
            complain(&format!("interrupted; {left} of {} processes are left", ended.before), INTERRUPTED)
        }
    }
}

fn refuse(error: &CannotBegin) -> ExitCode {
    let is_usage = matches!(error, CannotBegin::Serve(error) if error.is_usage());
    complain(&error.to_string(), if is_usage { MISUSED } else { FAILED })
}

/// Fails only if nobody reads.
async fn all_parts(stage: &Stage, show: &mut Show) -> Result<(), Problem> {
    introduction(stage, show)?;
    let mut plot = Plot::new(Script { is_simulated: stage.ground.is_simulated() });
    show.heading("Three messages, one process")?;
    let shown = acts::keep_alive(stage, show, &mut plot).await;
    settle(show, shown)?;
    show.heading("Two users side by side")?;
    let shown = acts::users(stage, show, &mut plot).await;
    settle(show, shown)?;
    show.heading("A process is killed, the conversation goes on")?;
    let shown = acts::kills(stage, show, &mut plot).await;
    settle(show, shown)?;
    show.heading("An idle process gives its memory back")?;
    let shown = acts::idle(stage, show, &mut plot).await;
    settle(show, shown)?;
    show.heading("What the server says of it")?;
    let shown = acts::figures(stage, show, &mut plot).await;
    settle(show, shown)?;
    show.heading("The end")?;
    let shown = acts::goodbye(stage, show, &mut plot).await;
    settle(show, shown)
}

/// A part that could not be shown to its end has failed; the next one comes all the same.
fn settle(show: &mut Show, shown: Result<(), Problem>) -> Result<(), Problem> {
    match shown {
        Err(Problem::Seen(what)) => show.claim(false, "this part can be shown to its end", what),
        other => other,
    }
}

fn introduction(stage: &Stage, show: &Show) -> Result<(), Problem> {
    let ground = &stage.ground;
    show.title("pilotlight", "keeps one warm, supervised, resumable CLI process per user")?;
    show.gap()?;
    let version = ground.version.as_deref().unwrap_or("version not told");
    let cli = if ground.is_simulated() {
        format!("the built-in simulation, {version}")
    } else {
        format!("{}, {version}", ground.program.display())
    };
    show.field("CLI", page::cut(&cli, CLI_SHOWN))?;
    let memory = match ground.probed.memory_bytes {
        0 => String::new(),
        bytes => format!(", {}", page::size(bytes as f64)),
    };
    show.field("start", format_args!("{} until it is ready{memory}", page::took(ground.probed.ready_after)))?;
    show.field(
        "server",
        format_args!("http://{}, metrics at http://{}/metrics", stage.http(), stage.admin()),
    )?;
    show.field("directory", ground.place.path.display())
}

fn last_part(show: &mut Show, ground: &Ground, ended: &Ended, keep: bool) -> Result<(), Problem> {
    let text = format!(
        "the server has stopped, in {}, and of {} processes that ran none is left",
        page::took(ended.took),
        ended.before
    );
    let pids: Vec<String> = ended.left.iter().map(|process| process.pid.to_string()).collect();
    let holds = ended.left.is_empty() && ended.before > 0;
    show.claim(holds, &text, format!("{} before, left: {}", ended.before, pids.join(", ")))?;
    if keep {
        show.note(&format!("The sessions are kept in {}", ground.place.path.display()))?;
    }
    Ok(())
}

/// The signals that ask for an end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
