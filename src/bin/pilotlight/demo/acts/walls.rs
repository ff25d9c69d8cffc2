//! A hostile tool: what its walls keep out of reach.

use super::super::process::Process;
use super::super::show::{Problem, Show};
use super::super::stage::Stage;
use super::{BOB, Plot};

const MALLORY: &str = "mallory";
/// The rungs that separate the tools of two users.
const SEPARATING: [&str; 3] = ["landlock", "namespaces", "uid"];
/// Name of the file that only one user may read.
const NOTE: &str = "note.txt";

pub(in crate::demo) async fn walls(stage: &Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let rungs = rungs(stage).await?;
    if !rungs.iter().any(|rung| SEPARATING.contains(&rung.as_str())) {
        return show.note(
            "Left out: this host offers neither Landlock nor namespaces, and the demo has no user ids to give away.",
        );
    }
    show.text(&format!(
        "Tools may run here, behind walls of {}. Bob's tool writes a file; mallory's tools try to leave their session.",
        rungs.join(", ")
    ))?;
    show.gap()?;
    let secret = plot.bob.as_str().to_owned();
    let place = run(stage, show, plot, BOB, &format!("echo {secret} > {NOTE} && pwd")).await?;
    let directory = place.trim();
    let bobs = stage.client.pid(BOB).await?;
    let process = Process::of(bobs).ok_or_else(|| Problem::seen(format!("there is no process {bobs}")))?;

    let read = run(stage, show, plot, MALLORY, &format!("cat {directory}/{NOTE}")).await?;
    let written = run(stage, show, plot, MALLORY, &format!("echo mine > {directory}/{NOTE}")).await?;
    let peeked = run(stage, show, plot, MALLORY, &format!("cat /proc/{bobs}/environ")).await?;
    let killed = run(stage, show, plot, MALLORY, &format!("kill -9 {bobs}")).await?;
    show.gap()?;

    show.claim(!read.contains(&secret), "mallory's tool cannot read bob's file", read)?;
    let kept = run_quietly(stage, plot, BOB, &format!("cat {NOTE}")).await?;
    show.claim(kept.contains(&secret), "nor change it: bob's file is as before", written)?;
    let is_hidden = !peeked.contains("HOME=");
    show.claim(is_hidden, "it cannot read the environment of bob's process", peeked)?;
    let lives = process.is_alive() && stage.client.pid(BOB).await? == bobs;
    show.claim(lives, "it cannot kill bob's process, which goes on", killed)
}

/// The rungs of isolation that this server has proven.
async fn rungs(stage: &Stage) -> Result<Vec<String>, Problem> {
    let metrics = stage.client.metrics().await?;
    let all = ["landlock", "seccomp", "namespaces", "uid", "cgroup"];
    let is_on = |rung: &&str| metrics.sum("isolation_info", &[&format!("rung=\"{rung}\"")]) == Some(1.0);
    Ok(all.into_iter().filter(is_on).map(str::to_owned).collect())
}

/// Runs a command by a tool of the user's CLI. Shows it, with short names of directories, and what it printed.
async fn run(
    stage: &Stage,
    show: &Show,
    plot: &mut Plot,
    user: &str,
    command: &str,
) -> Result<String, Problem> {
    show.said(user, &format!("$ {}", short(command)), "")?;
    let printed = run_quietly(stage, plot, user, command).await?;
    let last = short(printed.lines().last().unwrap_or_default());
    // A shell's message ends with the reason.
    show.said("", &format!("» {}", last.rsplit(": ").next().unwrap_or_default()), "")?;
    Ok(printed)
}

async fn run_quietly(stage: &Stage, plot: &mut Plot, user: &str, command: &str) -> Result<String, Problem> {
    let answer = stage.client.ask(user, &plot.script.run(command)).await?;
    plot.answered(&answer)?;
    answer.tool.ok_or_else(|| Problem::seen("the tool did not run"))
}

/// Long paths by their last part.
fn short(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.rsplit_once("/work") {
        Some((_, rest)) if word.starts_with('/') => format!("…{rest}"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}
