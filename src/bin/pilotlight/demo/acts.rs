//! The parts of the demo, one file each. A part shows something and claims what it has checked. An incomplete part counts
//! as a failed claim.

mod idle;
mod keep_alive;
mod kills;
mod metrics;
mod users;
mod walls;

pub(super) use idle::idle;
pub(super) use keep_alive::keep_alive;
pub(super) use kills::kills;
pub(super) use metrics::metrics;
pub(super) use users::users;
pub(super) use walls::walls;

use super::client::{Answer, Message};
use super::script::{CodeWord, Script};
use super::show::{Problem, Show};
use super::stage::Stage;

const ALICE: &str = "alice";
const BOB: &str = "bob";

pub(super) struct Plot {
    script: Script,
    alice: CodeWord,
    bob: CodeWord,
    /// Answered turns, compared with the server's count.
    answered: u32,
    lost: u32,
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

    /// Counts a successful answer; any other is an error.
    fn answered(&mut self, answer: &Answer) -> Result<(), Problem> {
        if !answer.is_ok() {
            return Err(Problem::Seen(answer.seen()));
        }
        self.answered += 1;
        Ok(())
    }
}

/// Last message: starts a process, so that the shutdown has one to stop.
pub(super) async fn goodbye(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let message = plot.script.repeat("goodbye");
    exchange(stage, show, plot, ALICE, &message).await?;
    show.gap()
}

/// Sends one message and shows question, answer, duration and process.
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
    let remark = format!("{}, process {pid}", super::text::took(answer.whole));
    show.said("", &format!("» {}", gist(&answer, plot)), &remark)?;
    Ok((answer, pid))
}

/// Short form of an answer: the simulation recalls the whole conversation instead of one word.
fn gist(answer: &Answer, plot: &Plot) -> String {
    let known = [&plot.alice, &plot.bob].into_iter().find(|word| word.is_in(&answer.text));
    match known {
        Some(word) if answer.text.trim() != word.as_str() => format!("… {} …", word.as_str()),
        _ => answer.text.trim().to_owned(),
    }
}
