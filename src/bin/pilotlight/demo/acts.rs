//! The parts of the demo, one file each. A part shows something and claims what it has checked; if it cannot be shown to
//! its end, that is a failed claim too, and the next part comes all the same.

mod idle;
mod keep_alive;
mod kills;
mod metrics;
mod users;

pub(super) use idle::idle;
pub(super) use keep_alive::keep_alive;
pub(super) use kills::kills;
pub(super) use metrics::figures;
pub(super) use users::users;

use super::client::{Answer, Message};
use super::script::{CodeWord, Script};
use super::show::{Problem, Show};
use super::stage::Stage;

/// The first user.
const ALICE: &str = "alice";
/// The second.
const BOB: &str = "bob";

/// What the parts hand on to each other.
pub(super) struct Plot {
    script: Script,
    alice: CodeWord,
    bob: CodeWord,
    /// Turns that were answered, for the comparison with the server's own count.
    answered: u32,
    /// Turns that were lost because their process was killed.
    lost: u32,
    /// Kills of ours.
    kills: u32,
}

impl Plot {
    pub(super) fn new(script: Script) -> Self {
        let number = || fastrand::u32(100..1000);
        Self {
            script,
            alice: CodeWord::new("amber", number()),
            bob: CodeWord::new("basil", number()),
            answered: 0,
            lost: 0,
            kills: 0,
        }
    }

    /// Counts an answer that must be a good one.
    fn answered(&mut self, answer: &Answer) -> Result<(), Problem> {
        if !answer.is_ok() {
            return Err(Problem::Seen(answer.seen()));
        }
        self.answered += 1;
        Ok(())
    }
}

/// Last words: however long the part before took, there is a process to be stopped.
pub(super) async fn goodbye(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let message = plot.script.repeat("goodbye");
    exchange(stage, show, plot, ALICE, &message).await?;
    show.gap()
}

/// One exchange, shown: what was said, what came back, how soon, from which process.
async fn exchange(
    stage: &Stage,
    show: &Show,
    plot: &mut Plot,
    user: &str,
    message: &Message,
) -> Result<(Answer, i32), Problem> {
    let answer = stage.client.ask(user, message).await?;
    plot.answered(&answer)?;
    let pid = stage.client.pid(user).await?;
    show.said(user, &message.shown, "")?;
    let remark = format!("{}, process {pid}", super::page::took(answer.whole));
    show.said("", &format!("» {}", gist(&answer, plot)), &remark)?;
    Ok((answer, pid))
}

/// An answer in short: the simulation recalls the whole conversation where a model would say one word.
fn gist(answer: &Answer, plot: &Plot) -> String {
    let known = [&plot.alice, &plot.bob].into_iter().find(|word| word.is_in(&answer.text));
    match known {
        Some(word) if answer.text.trim() != word.as_str() => format!("… {} …", word.as_str()),
        _ => answer.text.trim().to_owned(),
    }
}
