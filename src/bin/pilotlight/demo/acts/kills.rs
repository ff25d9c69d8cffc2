//! A child that is killed, between two messages and in the middle of an answer.

use std::time::Duration;

use tokio::time::sleep;

use super::super::client::Answer;
use super::super::page::took;
use super::super::show::{Problem, Show};
use super::super::stage::Stage;
use super::{ALICE, Plot, exchange};

/// The CLI writes the conversation to disk some 100 ms after the answer's end. Who is killed before has not written the
/// last answer down; then the next turn begins with a notice that says so.
const WRITTEN_DOWN: Duration = Duration::from_millis(500);
/// The answer that is cut short would take so long.
const LONG_ANSWER: Duration = Duration::from_secs(20);

pub(in crate::demo) async fn kills(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    between_messages(stage, show, plot).await?;
    show.gap()?;
    within_an_answer(stage, show, plot).await
}

async fn between_messages(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    // However long the part before took, there is a process now.
    let script = plot.script;
    exchange(stage, show, plot, ALICE, &script.repeat("here I am")).await?;
    sleep(WRITTEN_DOWN).await;
    let killed = stage.kill(ALICE).await?;
    plot.kills += 1;
    show.said("kill -9", &format!("process {killed}, while it waits"), "")?;
    let (answer, pid) = exchange(stage, show, plot, ALICE, &plot.script.ask_back()).await?;
    show.gap()?;
    goes_on(show, plot, &answer, killed, pid)
}

async fn within_an_answer(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    sleep(WRITTEN_DOWN).await;
    let message = plot.script.take(LONG_ANSWER);
    show.said(ALICE, &message.shown, "")?;
    let mut killed = None;
    let cut = stage.client.ask_watching(ALICE, &message, async |_| {
        killed = Some(stage.kill(ALICE).await?);
        Ok(())
    });
    let cut = cut.await?;
    let killed = killed.ok_or_else(|| Problem::seen("the answer came without a first piece"))?;
    plot.kills += 1;
    show.said("kill -9", &format!("process {killed}, in the middle of its answer"), "")?;
    let told = cut.error.as_deref() == Some("session_lost");
    plot.lost += u32::from(told);
    show.said("", &format!("» error: {}", cut.error.as_deref().unwrap_or("none")), &took(cut.whole))?;
    let (answer, pid) = exchange(stage, show, plot, ALICE, &plot.script.ask_back()).await?;
    show.gap()?;
    show.claim(
        told && cut.done,
        "the caller was told at once that this answer is lost, by one error event",
        cut.seen(),
    )?;
    goes_on(show, plot, &answer, killed, pid)
}

fn goes_on(show: &mut Show, plot: &Plot, answer: &Answer, killed: i32, pid: i32) -> Result<(), Problem> {
    let knows = plot.alice.is_in(&answer.text) && !answer.context_lost;
    let text = format!("the conversation goes on in process {pid}, and knows what was said to {killed}");
    show.claim(knows && pid != killed, &text, format!("{} of process {pid}", answer.seen()))
}
