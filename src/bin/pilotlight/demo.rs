//! `pilotlight demo`: a guided tour of the running system.
//!
//! The demo starts a real server in a temporary directory and calls it over HTTP. Each part ([`acts`]) shows something
//! and then claims what it has checked. The layout ([`layout`]) and the messages ([`script`]) are pure; [`stage`] owns
//! the server. After every run, also a failed or interrupted one, the server is stopped and its leftovers are searched.
//! Only public names of the crate are used.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use pilotlight::Config;
use pilotlight::config::ConfigError;
use tokio::time::Instant;

use crate::args::{FAILED, LOG_VARIABLE, MISUSED, Options, block_on, complain, start_log};
use crate::serve;
use crate::signals::Signals;

mod acts;
mod client;
#[cfg(feature = "cluster")]
mod cluster;
mod layout;
mod metrics;
mod one_shot;
mod process;
mod script;
mod show;
mod stage;
mod text;

use acts::Plot;
use script::Script;
use show::{Problem, Show};
use stage::{DemoStartError, Ended, SIMULATION, Setup, Stage};

/// Exit code after a signal, as shells encode SIGINT.
const INTERRUPTED: u8 = 130;
/// Maximum characters shown of the CLI's path and version, which is free text.
const CLI_SHOWN: usize = 200;

/// Arguments of `pilotlight demo`.
#[derive(Args, Debug, Clone)]
pub(crate) struct DemoOptions {
    /// CLI: `sim` (built-in simulation, default without --config), `claude` (found in PATH) or a path
    #[arg(long, value_name = "claude|sim|PATH")]
    cli: Option<String>,
    /// Configuration file (TOML); the demo sets data directory, listeners and idle timeout
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the temporary directory and print its path
    #[arg(long)]
    keep: bool,
    /// Demonstrate a cluster instead: three nodes and etcd on this machine
    #[cfg(feature = "cluster")]
    #[arg(long, conflicts_with_all = ["cli", "config"])]
    cluster: bool,
    /// etcd's program; default is PILOTLIGHT_ETCD, then `etcd` in PATH
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "PATH", requires = "cluster")]
    etcd: Option<PathBuf>,
    /// Be the process that ends what a killed demo has started
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "MARK", requires = "cluster", hide = true)]
    guard: Option<String>,
}

impl DemoOptions {
    fn configuration(&self) -> Result<Config, ConfigError> {
        // Without both arguments no installed CLI is assumed.
        let default = self.config.is_none().then(|| SIMULATION.to_owned());
        let cli = self.cli.clone().or(default);
        Options { config: self.config.clone(), cli, ..Options::default() }.configuration()
    }
}

pub(crate) fn run(options: &DemoOptions) -> ExitCode {
    #[cfg(feature = "cluster")]
    if options.cluster {
        return cluster::run(options);
    }
    // By default there is no log: the demo's kills would fill it with warnings.
    let wants_log = std::env::var_os(LOG_VARIABLE).is_some();
    let log = if wants_log { start_log() } else { Ok(()) };
    let config = match log.and_then(|()| options.configuration()) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), MISUSED),
    };
    block_on(async {
        match Signals::new() {
            Ok(mut interrupts) => play(config, options.keep, &mut interrupts).await,
            Err(error) => complain(&format!("cannot listen for signals: {error}"), FAILED),
        }
    })
}

async fn play(config: Config, keep: bool, interrupts: &mut Signals) -> ExitCode {
    let begin = Instant::now();
    let set = async { Stage::set(Setup::prepare(config, keep).await?).await };
    let stage = tokio::select! {
        stage = set => stage,
        _ = interrupts.next() => return ExitCode::from(INTERRUPTED),
    };
    let stage = match stage {
        Ok(stage) => stage,
        Err(DemoStartError::Serve(error)) => return serve::refuse(&error),
        Err(error) => return complain(&error.to_string(), FAILED),
    };
    let mut show = Show::new();
    let shown = tokio::select! {
        shown = all_parts(&stage, &mut show) => Some(shown),
        _ = interrupts.next() => None,
    };
    // Always, except after a second signal: each child has a shim that kills it when this process exits.
    let (setup, ended) = tokio::select! {
        ended = stage.strike() => ended,
        _ = interrupts.next() => return ExitCode::from(INTERRUPTED),
    };
    match shown {
        Some(shown) => {
            let all_is_well = shown.and_then(|()| last_part(&mut show, &setup, &ended, keep));
            let all_is_well = all_is_well.and_then(|()| show.verdict(begin.elapsed()));
            if all_is_well.unwrap_or(false) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        None => {
            let left = ended.left.len();
            complain(&format!("interrupted; {left} of {} processes are left", ended.before), INTERRUPTED)
        }
    }
}

/// Runs all parts. Fails only if the output is closed.
async fn all_parts(stage: &Stage, show: &mut Show) -> Result<(), Problem> {
    introduction(stage, show)?;
    let plot = &mut Plot::new(Script { is_simulated: stage.setup.is_simulated() });
    part(stage, show, plot, "Three messages, one process", acts::keep_alive).await?;
    part(stage, show, plot, "Two users side by side", acts::users).await?;
    part(stage, show, plot, "A process is killed, the conversation goes on", acts::kills).await?;
    part(stage, show, plot, "An idle process gives its memory back", acts::idle).await?;
    if stage.setup.is_simulated() {
        part(stage, show, plot, "A hostile tool stays in its session", acts::walls).await?;
    }
    part(stage, show, plot, "What the server says of it", acts::metrics).await?;
    part(stage, show, plot, "The end", acts::goodbye).await
}

/// Runs one part. An incomplete one counts as a failed claim; the next part runs all the same.
async fn part(
    stage: &Stage,
    show: &mut Show,
    plot: &mut Plot,
    title: &str,
    act: impl AsyncFnOnce(&Stage, &mut Show, &mut Plot) -> Result<(), Problem>,
) -> Result<(), Problem> {
    show.heading(title)?;
    match act(stage, show, plot).await {
        Err(Problem::Seen(what)) => show.claim(false, "this part completes", what),
        other => other,
    }
}

fn introduction(stage: &Stage, show: &Show) -> Result<(), Problem> {
    let setup = &stage.setup;
    show.title("pilotlight", "keeps one warm, supervised, resumable CLI process per user")?;
    show.gap()?;
    let version = setup.version.as_deref().unwrap_or("unknown version");
    let cli = if setup.is_simulated() {
        format!("the built-in simulation, {version}")
    } else {
        format!("{}, {version}", setup.program.display())
    };
    show.field("CLI", text::cut(&cli, CLI_SHOWN))?;
    let memory = match setup.probed.memory_bytes {
        0 => String::new(),
        bytes => format!(", {}", text::size(bytes as f64)),
    };
    show.field("start", format_args!("{} until it is ready{memory}", text::took(setup.probed.ready_after)))?;
    show.field(
        "server",
        format_args!("http://{}, metrics at http://{}/metrics", stage.server.http(), stage.server.admin()),
    )?;
    show.field("directory", setup.directory.path().display())
}

fn last_part(show: &mut Show, setup: &Setup, ended: &Ended, keep: bool) -> Result<(), Problem> {
    let text = format!(
        "the server has stopped, in {}, and of {} processes that ran none is left",
        text::took(ended.took),
        ended.before
    );
    let pids: Vec<String> = ended.left.iter().map(|process| process.pid.to_string()).collect();
    let holds = ended.left.is_empty() && ended.before > 0;
    show.claim(holds, &text, format!("{} before, left: {}", ended.before, pids.join(", ")))?;
    if keep {
        show.note(&format!("The sessions are kept in {}", setup.directory.path().display()))?;
    }
    Ok(())
}
