//! `pilotlight demo --cluster`: three nodes and etcd on this machine.
//!
//! Each node is a process of this program (`pilotlight serve`) with a data directory of its own; a directory is their object
//! storage. One node is killed, one leaves, both come back. Whatever becomes of the demo, the nodes and
//! etcd end with it ([`guard`]).

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::time::Instant;

use super::show::{Problem, Show};
use super::text::took;
use super::{DemoOptions, INTERRUPTED};
use crate::args::{FAILED, LOG_VARIABLE, MISUSED, block_on, complain, start_log};
use crate::signals::Signals;

mod acts;
mod etcd;
mod guard;
mod node;
mod stage;

use acts::Plot;
use stage::{Ended, Stage};

pub(super) fn run(options: &DemoOptions) -> ExitCode {
    if let Some(mark) = &options.guard {
        return guard::watch(mark, options.keep);
    }
    let wants_log = std::env::var_os(LOG_VARIABLE).is_some();
    if let Err(error) = if wants_log { start_log() } else { Ok(()) } {
        return complain(&error.to_string(), MISUSED);
    }
    let program = match etcd::find(options.etcd.as_deref()) {
        Ok(program) => program,
        Err(missing) => return complain(&missing.to_string(), MISUSED),
    };
    let keep = options.keep;
    block_on(async {
        match Signals::new() {
            Ok(mut interrupts) => play(program, keep, &mut interrupts).await,
            Err(error) => complain(&format!("cannot listen for signals: {error}"), FAILED),
        }
    })
}

async fn play(etcd: PathBuf, keep: bool, interrupts: &mut Signals) -> ExitCode {
    let begin = Instant::now();
    let mut stage = match Stage::prepare(etcd, keep) {
        Ok(stage) => stage,
        Err(error) => return complain(&format!("cannot make a temporary directory: {error}"), FAILED),
    };
    let mut show = Show::new();
    let shown = tokio::select! {
        shown = all_parts(&mut stage, &mut show) => Some(shown),
        _ = interrupts.next() => None,
    };
    // Always. After a second signal everything is killed.
    let ended = tokio::select! {
        ended = stage.strike() => ended,
        _ = interrupts.next() => return ExitCode::from(INTERRUPTED),
    };
    match shown {
        Some(Err(Problem::Seen(problem))) => {
            complain(&format!("the cluster does not start: {problem}"), FAILED)
        }
        Some(shown) => {
            let all_is_well = shown.and_then(|()| last_part(&mut show, &stage, &ended, keep));
            let all_is_well = all_is_well.and_then(|()| show.verdict(begin.elapsed()));
            if all_is_well.unwrap_or(false) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
        }
        None => {
            let left = ended.left.len();
            complain(&format!("interrupted; {left} of {} processes are left", ended.before), INTERRUPTED)
        }
    }
}

/// Runs all parts. Fails if the output is closed, or the cluster does not start.
async fn all_parts(stage: &mut Stage, show: &mut Show) -> Result<(), Problem> {
    show.title(
        "pilotlight",
        "as a cluster: any node takes any request, and no node's end loses a conversation",
    )?;
    show.gap()?;
    let begin = Instant::now();
    stage.start().await?;
    introduction(stage, show, begin.elapsed())?;
    let plot = &mut Plot::new();
    part(stage, show, plot, "Any node takes any request", acts::anywhere).await?;
    part(stage, show, plot, "A node is killed, its conversations go on", acts::killed).await?;
    part(stage, show, plot, "A node leaves, and no request fails", acts::drained).await?;
    part(stage, show, plot, "Both nodes come back", acts::back).await?;
    show.heading("The end")
}

/// Runs one part. An incomplete one counts as a failed claim; the next part runs all the same.
async fn part(
    stage: &mut Stage,
    show: &mut Show,
    plot: &mut Plot,
    title: &str,
    act: impl AsyncFnOnce(&mut Stage, &mut Show, &mut Plot) -> Result<(), Problem>,
) -> Result<(), Problem> {
    show.heading(title)?;
    match act(stage, show, plot).await {
        Err(Problem::Seen(what)) => show.claim(false, "this part completes", what),
        other => other,
    }
}

fn introduction(stage: &Stage, show: &Show, started_in: std::time::Duration) -> Result<(), Problem> {
    show.field("CLI", "the built-in simulation (pilotlight sim)")?;
    show.field("etcd", stage.etcd_program().display())?;
    let nodes = stage.nodes().map(|node| format!("{} http://{}", node.name(), node.address()));
    show.field("nodes", nodes.collect::<Vec<_>>().join(", "))?;
    show.field("start", format_args!("{} until all are ready", took(started_in)))?;
    show.field("directory", stage.directory().display())
}

fn last_part(show: &mut Show, stage: &Stage, ended: &Ended, keep: bool) -> Result<(), Problem> {
    let codes = ended.codes.iter().map(|code| code.map_or("killed".to_owned(), |code| code.to_string()));
    let codes: Vec<_> = codes.collect();
    let text = format!("all nodes have ended in order, in {}", took(ended.took));
    let is_orderly = !ended.codes.is_empty() && ended.codes.iter().all(|code| *code == Some(0));
    show.claim(is_orderly, &text, format!("exit codes {}", codes.join(", ")))?;
    let pids: Vec<String> = ended.left.iter().map(|process| process.pid.to_string()).collect();
    let text = format!("of {} processes that ran, etcd among them, none is left", ended.before);
    let holds = ended.left.is_empty() && ended.before > 0;
    show.claim(holds, &text, format!("left: {}", pids.join(", ")))?;
    if keep {
        show.note(&format!("Data, logs and objects are kept in {}", stage.directory().display()))?;
    }
    Ok(())
}
