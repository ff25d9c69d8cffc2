//! An idle child is stopped and releases its memory; a busy one is not stopped.

use std::time::Duration;

use tokio::time::Instant;

use super::super::process::Process;
use super::super::show::{Problem, Show};
use super::super::stage::{IDLE_TIMEOUT, Stage, until};
use super::super::text::{size, took};
use super::{ALICE, BOB, Plot, exchange};

/// Excess of the long answer over the idle timeout.
const BEYOND: Duration = Duration::from_millis(700);
/// Maximum time of an orderly stop, on a slow machine.
const STOPPED_WITHIN: Duration = Duration::from_secs(12);

pub(in crate::demo) async fn idle(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let limit = IDLE_TIMEOUT.as_secs();
    show.text(&format!("This server stops a process that has had nothing to do for {limit} s."))?;
    show.gap()?;
    let script = plot.script;
    // The idle time begins after this turn.
    let (_, pid) = exchange(stage, show, plot, ALICE, &script.ask_back()).await?;
    let begin = Instant::now();
    let process = Process::of(pid).ok_or_else(|| Problem::seen(format!("there is no process {pid}")))?;
    let before = stage.client.session_stats(ALICE).await?.unwrap_or_default();
    let long = script.take(IDLE_TIMEOUT + BEYOND);
    show.said(BOB, &long.shown, "")?;
    let gone = until("the idle process is stopped", IDLE_TIMEOUT + STOPPED_WITHIN, async || {
        Ok((!process.is_alive()).then(|| begin.elapsed()))
    });
    let (answer, gone) = tokio::join!(stage.client.ask(BOB, &long), gone);
    let (answer, gone) = (answer?, gone?);
    let text = if answer.whole > IDLE_TIMEOUT {
        format!("» an answer that took longer than {limit} s")
    } else {
        "» an answer, all of it".to_owned()
    };
    show.said("", &text, &took(answer.whole))?;
    let was_served = answer.is_ok();
    plot.answered += u32::from(was_served);
    let (resumed, next) = exchange(stage, show, plot, ALICE, &script.ask_back()).await?;
    let after = stage.client.session_stats(ALICE).await?.unwrap_or_default();
    show.gap()?;

    let text = format!(
        "alice's process {pid} ended after {} of silence and gave back {}",
        took(gone),
        size(before.memory_bytes)
    );
    let in_time = gone + Duration::from_millis(100) >= IDLE_TIMEOUT && before.memory_bytes > 0.0;
    show.claim(in_time, &text, format!("{} and {}", took(gone), size(before.memory_bytes)))?;
    show.claim(was_served, "bob's answer was not cut short meanwhile: who works is not idle", answer.seen())?;
    let knows = plot.alice.is_in(&resumed.text) && !resumed.context_lost && next != pid;
    let text = format!("alice's next message started process {next}, which knows the conversation");
    show.claim(knows, &text, format!("{} of process {next}", resumed.seen()))?;
    let same = after.restarts == before.restarts;
    show.claim(same, "that was no crash: the count of restarts is as before", after.restarts)
}
