//! The parts of the demo of a cluster. A part shows something and claims what it has checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::super::client::Answer;
use super::super::layout::Columns;
use super::super::process::Process;
use super::super::script::{CodeWord, Script};
use super::super::show::{Problem, Show};
use super::super::stage::until;
use super::super::text::took;
use super::stage::{NODE_ENDS_WITHIN, Stage};

/// Each has a code word. They are spread over the nodes.
const USERS: [&str; 6] = ["alice", "bob", "carol", "dave", "erin", "frank"];
/// Promise of the documentation for conversations of a node that is killed.
const GOES_ON_WITHIN: Duration = Duration::from_secs(5);
/// Duration of the answer that is cut short by the death of a node.
const LONG_ANSWER: Duration = Duration::from_secs(20);
/// Pause of a user between two messages while a node leaves.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum time until children of a dead node are gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Users who come when nodes are back: each node gets some of them.
const GUESTS: usize = 12;
const SCRIPT: Script = Script { is_simulated: true };
const TABLE: Columns = Columns(&[30, 12, 14, 12]);

pub(super) struct Plot {
    words: BTreeMap<&'static str, CodeWord>,
    /// The node of each user, as the last answer named it.
    owners: BTreeMap<&'static str, String>,
    killed: Option<String>,
    drained: Option<String>,
}

impl Plot {
    pub(super) fn new() -> Self {
        let word = |user: &&'static str| (*user, CodeWord::new(user, fastrand::u32(100..1000)));
        Self { words: USERS.iter().map(word).collect(), owners: BTreeMap::new(), killed: None, drained: None }
    }

    fn owner(&self, user: &str) -> Result<&str, Problem> {
        let owner = self.owners.get(user).map(String::as_str);
        owner.ok_or_else(|| Problem::seen(format!("no answer has named {user}'s node")))
    }

    fn users_of(&self, node: &str) -> Vec<&'static str> {
        self.owners.iter().filter(|(_, owner)| *owner == node).map(|(user, _)| *user).collect()
    }

    /// Whether an answer knows the user's code word, and that nothing was lost.
    fn knows(&self, user: &str, answer: &Answer) -> bool {
        self.words.get(user).is_some_and(|word| word.is_in(&answer.text)) && !answer.context_lost
    }
}

/// Each user talks to one node, and asks at all.
pub(super) async fn anywhere(stage: &mut Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let (nodes, mut wrong) = (stage.running(), Vec::new());
    show.text("Six users say a code word at one node, and ask for it at each.")?;
    show.gap()?;
    show.header(&TABLE, &["", "sent to", "answered by", "whole"])?;
    for (number, (user, word)) in plot.words.iter().enumerate() {
        let first = nodes.get(number % nodes.len().max(1)).ok_or_else(|| Problem::seen("no node runs"))?;
        let message = SCRIPT.introduce(word);
        let answer = stage.ask(first, user, &message).await?;
        show.row(
            &TABLE,
            &[format!("{user}: {}", word.as_str()), first.name().to_owned(), of(&answer), took(answer.whole)],
        )?;
        plot.owners.insert(user, of(&answer));
        for node in &nodes {
            let answer = stage.ask(node, user, &SCRIPT.ask_back()).await?;
            if !plot.knows(user, &answer) || Some(&of(&answer)) != plot.owners.get(user) {
                wrong.push(format!("{user} at {}: {} by {}", node.name(), answer.seen(), of(&answer)));
            }
        }
    }
    let mut children = Vec::new();
    for user in USERS {
        children.push(stage.pids(user).await?.len());
    }
    let asked = USERS.len() * nodes.len();
    show.gap()?;
    let text = format!(
        "all {asked} questions, at any node, were answered with the code word by the node that has the user"
    );
    show.claim(wrong.is_empty(), &text, wrong.join("; "))?;
    let is_one = children.iter().all(|count| *count == 1);
    show.claim(is_one, "each user has one process in the whole cluster", format!("{children:?}"))?;
    let with_users = nodes.iter().filter(|node| !plot.users_of(node.name()).is_empty()).count();
    show.claim(with_users > 1, &format!("the users are spread: {}", spread(plot)), with_users)
}

/// SIGKILL of a node, in the middle of an answer.
pub(super) async fn killed(stage: &mut Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let victim = plot.owner("alice")?.to_owned();
    let users = plot.users_of(&victim);
    let mut pids = Vec::new();
    for user in &users {
        pids.extend(stage.pids(user).await?);
    }
    let children: Vec<Process> = pids.into_iter().filter_map(Process::of).collect();
    let other = stage.running().into_iter().find(|node| node.name() != victim);
    let other = other.ok_or_else(|| Problem::seen("one node runs"))?;
    let (entry, client) = (other.name(), other.client()?.clone());
    let message = SCRIPT.take(LONG_ANSWER);
    show.said("alice", &message.shown, &format!("at node {entry}"))?;
    // The node is killed while its answer comes through another one.
    let mut killed_at = None;
    let cut = client.ask_watching("alice", &message, async |_| {
        stage.node(&victim)?.kill().await?;
        killed_at = Some(Instant::now());
        Ok(())
    });
    let cut = cut.await?;
    let killed_at = killed_at.ok_or_else(|| Problem::seen("the answer came without a first piece"))?;
    plot.killed = Some(victim.clone());
    show.said("kill -9", &format!("node {victim}, in the middle of its answer"), "")?;
    show.said("", &format!("» error: {}", cut.error.as_deref().unwrap_or("none")), &took(cut.whole))?;
    let mut wrong = Vec::new();
    let mut last = Duration::ZERO;
    let mut asked = JoinSet::new();
    for user in users {
        let client = client.clone();
        asked.spawn(async move { (user, client.ask(user, &SCRIPT.ask_back()).await, killed_at.elapsed()) });
    }
    while let Some(asked) = asked.join_next().await {
        let (user, answer, after) = asked.map_err(|error| Problem::seen(error.to_string()))?;
        let answer = answer?;
        last = last.max(after);
        let (by, knows) = (of(&answer), plot.knows(user, &answer) && answer.is_ok());
        if user == "alice" {
            let word = plot.words.get(user).map_or("", CodeWord::as_str);
            let gist = if knows { format!("… {word} …") } else { answer.text.clone() };
            show.said(user, &SCRIPT.ask_back().shown, &format!("at node {entry}"))?;
            show.said("", &format!("» {gist}"), &format!("{} after the kill, by node {by}", took(after)))?;
        }
        if !knows || by == victim {
            wrong.push(format!("{user}: {} by {by}", answer.seen()));
        }
        plot.owners.insert(user, by);
    }
    show.gap()?;
    let is_reported = cut.error.is_some() && cut.done;
    let text = "one error event informed the caller that this answer is lost, and ended the stream";
    show.claim(is_reported, text, cut.seen())?;
    let all = "all conversations of the dead node go on at others and know everything that was answered";
    show.claim(wrong.is_empty(), all, wrong.join("; "))?;
    let text = format!("that took {}, of which etcd waits 2 s for a sign of life", took(last));
    show.claim(last < GOES_ON_WITHIN, &text, format!("more than {}", took(GOES_ON_WITHIN)))?;
    let gone = until("the children of the dead node are gone", GONE_WITHIN, async || {
        Ok(children.iter().all(|child| !child.is_alive()).then_some(()))
    });
    let is_gone = gone.await.is_ok() && !children.is_empty();
    show.claim(
        is_gone,
        &format!("no child of it is left; {} ran", children.len()),
        "a child of the dead node runs",
    )
}

/// SIGTERM of a node, while its users go on talking.
pub(super) async fn drained(stage: &mut Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    // One with users, so that something moves.
    let leaving = stage.running().into_iter().max_by_key(|node| plot.users_of(node.name()).len());
    let leaving = leaving.map(|node| node.name()).ok_or_else(|| Problem::seen("no node runs"))?;
    let entry = stage.running().into_iter().find(|node| node.name() != leaving);
    let entry = entry.ok_or_else(|| Problem::seen("one node runs"))?;
    let (entry, client) = (entry.name(), entry.client()?.clone());
    let moved = plot.users_of(leaving).len();
    show.text(&format!(
        "All users go on talking at node {entry}, without a pause to speak of. Node {leaving}, which has {moved} of them, \
         gets SIGTERM."
    ))?;
    show.gap()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut talks = JoinSet::new();
    for user in USERS {
        let (client, is_over) = (client.clone(), is_over.clone());
        talks.spawn(async move { talk(user, &client, &is_over).await });
    }
    // Talks have begun before the signal.
    sleep(PAUSE).await;
    let begin = Instant::now();
    let node = stage.node(leaving)?;
    node.terminate();
    let code = node.ended(NODE_ENDS_WITHIN).await;
    let ended_in = begin.elapsed();
    plot.drained = Some(leaving.to_owned());
    is_over.store(true, Ordering::Release);
    let (mut count, mut longest, mut failed) = (0, Duration::ZERO, Vec::new());
    while let Some(talk) = talks.join_next().await {
        let talk = talk.map_err(|error| Problem::seen(error.to_string()))?;
        count += talk.count;
        longest = longest.max(talk.longest);
        failed.extend(talk.failed);
    }
    let mut wrong = Vec::new();
    for user in USERS {
        let answer = client.ask(user, &SCRIPT.ask_back()).await?;
        if !plot.knows(user, &answer) || of(&answer) == leaving {
            wrong.push(format!("{user}: {} by {}", answer.seen(), of(&answer)));
        }
        plot.owners.insert(user, of(&answer));
    }
    let text =
        format!("{count} messages were sent meanwhile, and none failed; the longest took {}", took(longest));
    show.claim(failed.is_empty() && count >= USERS.len(), &text, failed.join("; "))?;
    let text = format!("node {leaving} ended in order, in {}", took(ended_in));
    show.claim(code == Some(0), &text, format!("exit code {code:?}"))?;
    let text = format!("its users are at node {entry}, and each knows the code word");
    show.claim(wrong.is_empty(), &text, wrong.join("; "))
}

/// What became of the messages of one user.
struct Talk {
    count: usize,
    longest: Duration,
    failed: Vec<String>,
}

/// One message after the other until it is over; at least one after that.
async fn talk(user: &'static str, client: &super::super::client::Client, is_over: &AtomicBool) -> Talk {
    let mut talk = Talk { count: 0, longest: Duration::ZERO, failed: Vec::new() };
    loop {
        let was_over = is_over.load(Ordering::Acquire);
        let answer = client.ask(user, &SCRIPT.repeat("still here")).await;
        talk.count += 1;
        match answer {
            Ok(answer) if answer.is_ok() && !answer.context_lost => {
                talk.longest = talk.longest.max(answer.whole)
            }
            Ok(answer) => talk.failed.push(format!("{user}: {}", answer.seen())),
            Err(problem) => talk.failed.push(format!("{user}: {problem}")),
        }
        if was_over {
            return talk;
        }
        sleep(PAUSE).await;
    }
}

/// Both nodes start again with what they had, and take users.
pub(super) async fn back(stage: &mut Stage, show: &mut Show, plot: &mut Plot) -> Result<(), Problem> {
    let entry =
        stage.running().first().map(|node| node.name()).ok_or_else(|| Problem::seen("no node runs"))?;
    let returned: Vec<String> = [plot.killed.take(), plot.drained.take()].into_iter().flatten().collect();
    for name in &returned {
        let begin = Instant::now();
        stage.node(name)?.start().await?;
        show.said("start", &format!("node {name}"), &format!("{} until it is ready", took(begin.elapsed())))?;
    }
    let client = stage.node(entry)?.client()?.clone();
    let mut guests = BTreeMap::new();
    for number in 1..=GUESTS {
        let answer = client.ask(&format!("guest-{number}"), &SCRIPT.repeat("hello")).await?;
        if !answer.is_ok() {
            return Err(Problem::Seen(answer.seen()));
        }
        *guests.entry(of(&answer)).or_insert(0) += 1;
    }
    show.gap()?;
    let shares: Vec<String> = guests.iter().map(|(node, count)| format!("node {node} {count}")).collect();
    let text = format!("of {GUESTS} new users each node that came back gets some: {}", shares.join(", "));
    let all_get = !returned.is_empty() && returned.iter().all(|node| guests.contains_key(node));
    show.claim(all_get, &text, shares.join(", "))?;
    let moved = client.rebalance().await?;
    let mut wrong = Vec::new();
    let settled = until("the users have moved", GONE_WITHIN, async || {
        wrong.clear();
        for user in USERS {
            let answer = client.ask(user, &SCRIPT.ask_back()).await?;
            if !plot.knows(user, &answer) {
                wrong.push(format!("{user}: {}", answer.seen()));
            }
            plot.owners.insert(user, of(&answer));
        }
        Ok(returned.iter().any(|node| !plot.users_of(node).is_empty()).then_some(()))
    });
    let settled = settled.await;
    show.said("move", &format!("pilotlight cluster rebalance at node {entry}"), &format!("{moved} users"))?;
    show.gap()?;
    show.claim(
        settled.is_ok() && wrong.is_empty(),
        &format!("users moved back, and each knows the code word: {}", spread(plot)),
        wrong.join("; "),
    )
}

/// The node that an answer names.
fn of(answer: &Answer) -> String {
    answer.node.clone().unwrap_or_else(|| "none".to_owned())
}

fn spread(plot: &Plot) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for owner in plot.owners.values() {
        *counts.entry(owner).or_default() += 1;
    }
    counts.iter().map(|(node, count)| format!("node {node} has {count}")).collect::<Vec<_>>().join(", ")
}
