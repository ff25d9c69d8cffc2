//! No answered turn is lost, whatever is killed and whatever becomes of the transcript. A twentieth of the kills by default, of the
//! CLI with each version, most with the newest one, of shims, servers and disks with the first one;
//! all of them with `tests/run --long` (`PILOTLIGHT_LONG=1 cargo test --release --test real_cli -- journal`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotlight::{Session, Turn};
use tokio::time::{sleep, timeout};

use super::bench::Bench;
use super::embedded::{Embedded, ask, child, finish, say, send, until, until_or_end};
use super::traps_files::{Mount, fill, home};
use crate::common::SOON;
use crate::common::installed::{NEWEST, is_long};
use crate::common::process::Process;

/// Sessions that are killed side by side.
const SESSIONS: usize = 4;

/// All of them, or a twentieth.
fn rounds(all: usize) -> usize {
    // Each kind of damage comes once.
    if is_long() { all } else { (all / 20).max(5) }
}

/// The delay of a kill: spread over 0 to 150 ms.
fn delay(number: usize) -> Duration {
    Duration::from_millis((number * 37 % 151) as u64)
}

/// What a user has said that was answered.
#[derive(Default)]
struct Answered(Vec<String>);

impl Answered {
    /// All that was answered is known, and no loss is reported.
    async fn is_known(&self, session: &Session) {
        let recalled = ask(session, "[[recall]]").await;
        assert!(recalled.is_ok() && !recalled.context_lost, "{recalled:?}");
        let mut rest = recalled.text.as_str();
        for word in &self.0 {
            let found = rest.split_once(word.as_str());
            rest = found.unwrap_or_else(|| panic!("{word} is missing: {}", recalled.text)).1;
        }
    }
}

/// The process that is killed: the CLI, or its parent.
fn shim(cli: Process) -> Process {
    let mut parent = cli;
    while let Some(next) = parent.parent().and_then(Process::of) {
        parent = next;
        if parent.program().is_some_and(|program| program.ends_with("pilotlight-shim")) {
            break;
        }
    }
    parent
}

/// One turn, with a kill around its end. Notes the word if it was answered. Gives the CLI that dies.
async fn killed_turn(
    session: &Session,
    answered: &mut Answered,
    number: usize,
    victim: fn(Process) -> Process,
) -> Option<Process> {
    let word = format!("word-{number}-end");
    let mut turn: Turn = send(session, &format!("the word is {word}")).await;
    until_or_end(&mut turn, |event| event["subtype"] == "init").await;
    // The kill before may have reached this turn's child only now.
    let cli = session.status().and_then(|status| Process::of(status.pid?.cast_signed()));
    let process = cli.map(victim);
    if number.is_multiple_of(2) {
        // After the answer is shown.
        until_or_end(&mut turn, |event| event["type"] == "result").await;
    } else {
        until_or_end(&mut turn, |event| event["event"]["delta"]["type"] == "text_delta").await;
    }
    sleep(delay(number)).await;
    process.inspect(|process| process.kill());
    if finish(turn).await.is_ok() {
        answered.0.push(word);
    }
    cli
}

/// Waits until the process has ended.
async fn gone(process: Option<Process>) {
    let ended = async {
        while process.is_some_and(Process::is_alive) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, ended).await.expect("the CLI is gone");
}

async fn kills(system: &Embedded, all: usize, victim: fn(Process) -> Process) {
    let each = rounds(all).div_ceil(SESSIONS);
    let mut users = tokio::task::JoinSet::new();
    for user in 0..SESSIONS {
        let session = system.pilot.session(format!("user {user}"));
        users.spawn(async move {
            let mut answered = Answered::default();
            for number in 0..each {
                let number_of_all = number * SESSIONS + user;
                let dying = killed_turn(&session, &mut answered, number_of_all, victim).await;
                if number % 5 == 4 || number + 1 == each {
                    // A turn that reaches the dying CLI may begin there, and ends with it.
                    gone(dying).await;
                    answered.is_known(&session).await;
                }
            }
            answered.0.len()
        });
    }
    let answered: usize = users.join_all().await.into_iter().sum();
    // Kills after the answer are half of all.
    assert!(answered * 2 >= rounds(all), "{answered} turns were answered");
}

fn tireless(config: &mut pilotlight::Config) {
    // Each kill is a crash.
    config.restart.intensity = 10_000;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_kills_of_the_cli() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(tireless).await;
    // By default fewer with the version that fewer have.
    let all = if is_long() || super::version() == NEWEST { 1000 } else { 200 };
    kills(&system, all, |cli| cli).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_kills_of_the_shim() {
    let Some(bench) = Bench::for_long().await else { return };
    let system = bench.embed(tireless).await;
    kills(&system, 200, shim).await;
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_kills_of_the_server() {
    let Some(bench) = Bench::for_long().await else { return };
    let mut answered: Vec<String> = Vec::new();
    for number in 0..rounds(200) {
        let server = bench.serve("").await;
        let client = server.client();
        let word = format!("word-{number}-end");
        let mut stream = client.stream("alice", &format!("the word is {word}")).await;
        stream.until("the result", |event| event["type"] == "result").await;
        answered.push(word);
        sleep(delay(number)).await;
        server.kill().await;
        if number % 5 != 4 && number + 1 != rounds(200) {
            continue;
        }
        let server = bench.serve("").await;
        let recalled = server.client().turn("alice", "[[recall]]").await;
        assert!(
            !recalled.events.iter().any(|event| event["subtype"] == "context_lost"),
            "a loss is reported"
        );
        for word in &answered {
            assert!(recalled.text().contains(word.as_str()), "{word} is missing: {}", recalled.text());
        }
        server.stop().await;
    }
}

/// The CLI can write nothing: its mirror falls silent too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_full_and_read_only_disks() {
    let Some(bench) = Bench::for_long().await else { return };
    // Files on such a disk cannot be given to another user.
    let system = bench
        .embed(|config| {
            tireless(config);
            config.isolation.rungs.retain(|rung| *rung != pilotlight::config::Rung::Uid);
        })
        .await;
    let session = system.alice();
    let home = home(&session).await;
    // The transcript of all turns needs more than half of 16 MB, and is written beside the old one when it is restored.
    let Some(disk) = Mount::on(&home, "size=128m") else { return system.end().await };
    let mut answered = Answered::default();
    for number in 0..rounds(200) {
        say(&session, "[[say:ready]]").await;
        // 2.1.332 keeps a file open there, which the kernel does not make read-only.
        let is_full = number.is_multiple_of(2) || super::is_since_332();
        if is_full {
            fill(&home);
        } else {
            disk.read_only();
        }
        for part in ["a", "b"] {
            let word = format!("word-{number}-{part}");
            say(&session, &format!("the word is {word}")).await;
            answered.0.push(word);
        }
        sleep(delay(number)).await;
        // Room first: a child that is started on a full disk is refused, and so is its turn.
        if is_full {
            std::fs::remove_file(home.join("filler")).expect("removed");
        } else {
            disk.writable();
        }
        child(&session).kill();
        answered.is_known(&session).await;
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_damaged_transcripts() {
    let Some(bench) = Bench::new().await else { return };
    let system = bench.embed(tireless).await;
    let session = system.alice();
    let mut answered = Answered::default();
    for number in 0..rounds(50) {
        let word = format!("word-{number}-end");
        say(&session, &format!("the word is {word}")).await;
        answered.0.push(word);
        session.evict().await.expect("it is stopped");
        let file = transcript(&home(&session).await);
        let content = std::fs::read(&file).expect("a transcript");
        match number % 4 {
            0 => std::fs::write(&file, &content[..content.len() * (number + 1) / (rounds(50) + 1)]),
            1 => std::fs::write(&file, ""),
            2 => std::fs::remove_file(&file),
            _ => std::fs::remove_dir_all(home(&session).await),
        }
        .expect("damaged");
        answered.is_known(&session).await;
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_survives_kills_at_the_answer() {
    let Some(bench) = Bench::new().await else { return };
    at_the_answer(&bench).await;
}

/// Killed in the instant of each answer. A version without a mirror is started again without it, and loses nothing either.
pub(crate) async fn at_the_answer(bench: &Bench) {
    let system = bench.embed(tireless).await;
    let session = system.alice();
    let mut answered = Answered::default();
    for number in 0..4 {
        let word = format!("word-{number}-end");
        let mut turn = send(&session, &format!("the word is {word}")).await;
        until(&mut turn, "the result", |event| event["type"] == "result").await;
        child(&session).kill();
        assert!(finish(turn).await.is_ok());
        answered.0.push(word);
        answered.is_known(&session).await;
    }
    system.end().await;
}

/// The only transcript of a session.
fn transcript(home: &Path) -> PathBuf {
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten().map(|it| it.path());
    let files = entries(home.join(".claude/projects")).flat_map(entries);
    let mut found = files.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    found.next().expect("a transcript")
}
