//! One warm process for three messages, against one process for each.

use std::time::Duration;

use tokio::time::sleep;

use super::super::client::Message;
use super::super::layout::Columns;
use super::super::one_shot::Answered;
use super::super::process::Process;
use super::super::show::{Problem, Show};
use super::super::stage::{SIMULATED_START, Stage};
use super::super::text::took;
use super::{ALICE, Plot};

const PAUSE: Duration = Duration::from_millis(400);
/// Message, first piece of the answer, whole answer, process.
const COLUMNS: Columns = Columns(&[46, 12, 14, 12]);
const NAMES: [&str; 4] = ["", "first word", "whole answer", "process"];

pub(in crate::demo) async fn keep_alive(
    stage: &Stage,
    show: &mut Show,
    plot: &mut Plot,
) -> Result<(), Problem> {
    let messages = [plot.script.introduce(&plot.alice), plot.script.repeat("hello"), plot.script.ask_back()];
    show.text(
        "The same conversation twice: three messages, with pauses. First each message starts its own CLI process.",
    )?;
    show.gap()?;
    let cli = stage.setup.one_shot()?;
    let apart = ask_all(show, &messages, async |message, resumes| cli.ask(message, resumes).await).await?;
    show.gap()?;
    show.text("Then they go to pilotlight, which keeps the process.")?;
    show.gap()?;
    let warm = async |message: &Message, _| {
        let answer = stage.client.ask(ALICE, message).await?;
        plot.answered(&answer)?;
        let (pid, first) = (stage.client.pid(ALICE).await?, answer.first.unwrap_or(answer.whole));
        Ok(Answered { pid, text: answer.text, first, whole: answer.whole })
    };
    let together = ask_all(show, &messages, warm).await?;
    show.gap()?;

    let pids = || together.iter().map(|given| given.pid.to_string()).collect::<Vec<_>>().join(", ");
    let one = together.iter().all(|given| Some(given.pid) == together.first().map(|first| first.pid));
    let lives = together.first().is_some_and(|first| Process::of(first.pid).is_some());
    show.claim(one && lives, "one process answered all three messages, and it still waits for more", pids())?;
    let knows =
        [&apart, &together].map(|given| given.last().is_some_and(|last| plot.alice.is_in(&last.text)));
    show.claim(
        knows == [true, true],
        "the third answer knew the first message, both ways",
        format!("{knows:?}"),
    )?;
    let (cold, hot) = (median(apart.iter()), median(together.iter().skip(1)));
    if !stage.setup.is_simulated() {
        // No claim: a model's own time differs by more than a start takes.
        return show.note(&format!(
            "A warm process began to answer after {} instead of {}; in both is the model's own time.",
            took(hot),
            took(cold)
        ));
    }
    let factor = cold.as_secs_f64() / hot.as_secs_f64().max(f64::EPSILON);
    let text = format!(
        "a warm process begins to answer {factor:.0} times sooner: after {} instead of {}",
        took(hot),
        took(cold)
    );
    show.claim(hot * 2 < cold, &text, format!("{} and {}", took(hot), took(cold)))?;
    let start = SIMULATED_START.as_millis();
    show.note(&format!(
        "The simulation takes {start} ms to start, about as long as the real CLI, and does not think; a model's own time \
         comes on top in both."
    ))
}

/// Sends all messages by `ask`, whose argument is whether a message resumes the conversation, and shows the answers.
async fn ask_all(
    show: &Show,
    messages: &[Message],
    mut ask: impl AsyncFnMut(&Message, bool) -> Result<Answered, Problem>,
) -> Result<Vec<Answered>, Problem> {
    show.header(&COLUMNS, &NAMES)?;
    let mut all = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            sleep(PAUSE).await;
        }
        let given = ask(message, index > 0).await?;
        let cells = [message.shown.clone(), took(given.first), took(given.whole), given.pid.to_string()];
        show.row(&COLUMNS, &cells)?;
        all.push(given);
    }
    Ok(all)
}

fn median<'a>(given: impl Iterator<Item = &'a Answered>) -> Duration {
    let mut times: Vec<Duration> = given.map(|given| given.first).collect();
    times.sort_unstable();
    // Of an even number, the mean of those in the middle: one of two is either the luckier or the worse.
    let middle = [times.len().saturating_sub(1) / 2, times.len() / 2];
    middle.into_iter().filter_map(|at| times.get(at)).sum::<Duration>() / 2
}
