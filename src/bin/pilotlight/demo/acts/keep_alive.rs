//! One warm process for three messages, against one process for each.

use std::time::Duration;

use tokio::time::sleep;

use super::super::client::Message;
use super::super::layout::Columns;
use super::super::process::Process;
use super::super::show::{Problem, Show};
use super::super::stage::{SIMULATED_START, Stage};
use super::super::text::took;
use super::{ALICE, Plot};

/// Pause between two messages.
const PAUSE: Duration = Duration::from_millis(400);
/// Message, first piece of the answer, whole answer, process.
const COLUMNS: Columns = Columns(&[46, 12, 14, 12]);
const NAMES: [&str; 4] = ["", "first word", "whole answer", "process"];

/// An answer with its times and process.
struct Given {
    first: Duration,
    whole: Duration,
    pid: i32,
    text: String,
}

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
    let apart = one_shot(stage, show, &messages).await?;
    show.gap()?;
    show.text("Then they go to pilotlight, which keeps the process.")?;
    show.gap()?;
    let together = warm(stage, show, plot, &messages).await?;
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

async fn one_shot(stage: &Stage, show: &Show, messages: &[Message]) -> Result<Vec<Given>, Problem> {
    let one_shot = stage.setup.one_shot()?;
    show.header(&COLUMNS, &NAMES)?;
    let mut all = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            sleep(PAUSE).await;
        }
        let answered = one_shot.ask(message, index > 0).await?;
        let pid = answered.pid.cast_signed();
        let given = Given { first: answered.first, whole: answered.whole, pid, text: answered.text };
        row(show, message, &given)?;
        all.push(given);
    }
    Ok(all)
}

async fn warm(
    stage: &Stage,
    show: &Show,
    plot: &mut Plot,
    messages: &[Message],
) -> Result<Vec<Given>, Problem> {
    show.header(&COLUMNS, &NAMES)?;
    let mut all = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if index > 0 {
            sleep(PAUSE).await;
        }
        let answer = stage.client.ask(ALICE, message).await?;
        plot.answered(&answer)?;
        let pid = stage.client.pid(ALICE).await?;
        let first = answer.first.unwrap_or(answer.whole);
        let given = Given { first, whole: answer.whole, pid, text: answer.text };
        row(show, message, &given)?;
        all.push(given);
    }
    Ok(all)
}

fn row(show: &Show, message: &Message, given: &Given) -> Result<(), Problem> {
    let cells = [message.shown.clone(), took(given.first), took(given.whole), given.pid.to_string()];
    show.row(&COLUMNS, &cells)
}

fn median<'a>(given: impl Iterator<Item = &'a Given>) -> Duration {
    let mut times: Vec<Duration> = given.map(|given| given.first).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
