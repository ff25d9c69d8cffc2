//! A killed child: between two messages, and in the middle of an answer.

use std::time::Duration;

use tokio::time::sleep;

use super::super::client::Answer;
use super::super::show::{Problem, Show};
use super::super::stage::Stage;
use super::super::text::took;
use super::{ALICE, Plot, exchange};

/// Delay until the CLI has written the conversation to disk, which takes some 100 ms after an answer. An earlier kill
/// loses the last answer; the next turn then begins with a notice.
const WRITTEN_DOWN: Duration = Duration::from_millis(500);
/// Duration of the answer that is cut short.
const LONG_ANSWER: Duration = Duration::from_secs(20);

pub(in crate::demo) async fn kills(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    between_messages(stage, show, plot).await?;
    show.gap()?;
    within_an_answer(stage, show, plot).await
}

async fn between_messages(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    // Ensures that a process is running.
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
    let is_reported = cut.error.as_deref() == Some("session_lost");
    plot.lost += u32::from(is_reported);
    show.said("", &format!("» error: {}", cut.error.as_deref().unwrap_or("none")), &took(cut.whole))?;
    let (answer, pid) = exchange(stage, show, plot, ALICE, &plot.script.ask_back()).await?;
    show.gap()?;
    show.claim(
        is_reported && cut.done,
        "one error event informed the caller at once that this answer is lost",
        cut.seen(),
    )?;
    goes_on(show, plot, &answer, killed, pid)
}

fn goes_on(show: &mut Show, plot: &Plot, answer: &Answer, killed: i32, pid: i32) -> Result<(), Problem> {
    let knows = plot.alice.is_in(&answer.text) && !answer.context_lost;
    let text = format!("the conversation goes on in process {pid}, and knows what was said to {killed}");
    show.claim(knows && pid != killed, &text, format!("{} of process {pid}", answer.seen()))
}
