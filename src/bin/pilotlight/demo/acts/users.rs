//! Two users at the same time.

use super::super::script::Script;
use super::super::show::{Problem, Show};
use super::super::stage::Stage;
use super::{ALICE, BOB, Plot, exchange};

const ROUNDS: usize = 10;

pub(in crate::demo) async fn users(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let (script, hello) = (plot.script, plot.script.introduce(&plot.bob));
    exchange(stage, show, plot, BOB, &hello).await?;
    let (swapped, answered) = send_concurrently(stage, script).await?;
    plot.answered += answered;
    show.said("both", &format!("{ROUNDS} messages each, at the same time"), "")?;
    let (to_alice, alice) = exchange(stage, show, plot, ALICE, &script.ask_back()).await?;
    let (to_bob, bob) = exchange(stage, show, plot, BOB, &script.ask_back()).await?;
    show.gap()?;

    show.claim(
        alice != bob,
        &format!("each has a process: {alice} and {bob}"),
        format!("{alice} and {bob}"),
    )?;
    let text = format!("{} answers came back, each to the one who had asked", 2 * ROUNDS);
    show.claim(swapped.is_empty(), &text, swapped.join(", "))?;
    let [a, b] = [&plot.alice, &plot.bob];
    let knows = a.is_in(&to_alice.text) && b.is_in(&to_bob.text);
    let seen = || format!("{} and {}", to_alice.seen(), to_bob.seen());
    show.claim(knows, "each conversation knows its own code word", seen())?;
    let leaks = b.is_in(&to_alice.text) || a.is_in(&to_bob.text);
    show.claim(!leaks, "neither knows the other's", seen())
}

/// Sends from both users concurrently; returns wrong answers and the count of right ones.
async fn send_concurrently(stage: &Stage, script: Script) -> Result<(Vec<String>, u32), Problem> {
    let side = async |user: &str| {
        let mut wrong = Vec::new();
        for round in 0..ROUNDS {
            let word = format!("{user}-{round}");
            let answer = stage.client.ask(user, &script.repeat(&word)).await?;
            if !answer.is_ok() || !answer.text.to_lowercase().contains(&word) {
                wrong.push(format!("{} instead of {word}", answer.seen()));
            }
        }
        Ok::<_, Problem>(wrong)
    };
    let (alice, bob) = tokio::try_join!(side(ALICE), side(BOB))?;
    let wrong = [alice, bob].concat();
    let answered = u32::try_from(2 * ROUNDS - wrong.len()).unwrap_or_default();
    Ok((wrong, answered))
}
