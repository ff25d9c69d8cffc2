//! Exhaustion: forks, memory, processors, disk, descriptors, output. Others must be served meanwhile.

use std::time::Duration;

use tokio::time::Instant;

use crate::common::installed::say;
use crate::common::process::descendants;
use crate::findings::Findings;
use crate::observers::status;
use crate::rungs::{Term, Walls, all_walls};
use crate::scene::{Cli, Scene};

/// Processes that the attack starts, and those that a session may have where the kernel counts them.
const FORKS: &str = "200";
const FORKS_ALLOWED: usize = 100;
/// MiB that the attack takes, and those that a session may have.
const MEMORY: &str = "700";
const MEMORY_ALLOWED: u64 = 350;
/// Longer than any turn of others takes on a machine that is busy with other tests.
const UNDISTURBED: Duration = Duration::from_secs(10);
/// Pause between two turns of the witness.
const PAUSE: Duration = Duration::from_millis(20);

fn config(walls: &Walls) -> String {
    // RLIMIT_NPROC counts all processes of a user id, also those of other tests.
    let forks =
        if walls.has(Term::Cgroup) { format!("child_processes = {FORKS_ALLOWED}\n") } else { String::new() };
    format!("[limits]\nmemory_per_session = \"{MEMORY_ALLOWED}MiB\"\n{forks}")
}

/// The times of another user's turns while an attempt goes on.
async fn during(scene: &Scene, attempt: impl Future<Output = ()>) -> Vec<Duration> {
    let mut times = Vec::new();
    tokio::pin!(attempt);
    loop {
        let begin = Instant::now();
        let turn = tokio::time::timeout(UNDISTURBED, scene.turn("bob", "[[say:served]]"));
        let mut ended = false;
        tokio::pin!(turn);
        let answer = loop {
            tokio::select! {
                answer = &mut turn => break answer,
                () = &mut attempt, if !ended => ended = true,
            }
        };
        assert_eq!(answer.expect("bob is answered in time").text(), "served");
        times.push(begin.elapsed());
        if ended {
            return times;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = &mut attempt => return times,
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Memory of the server's whole family that is not shared with files, at its largest process.
fn largest(scene: &Scene) -> u64 {
    let all = descendants(scene.program.process().pid).into_iter();
    let of = |text: String| text.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024;
    all.map(|process| of(status(process, "RssAnon"))).max().unwrap_or_default()
}

async fn attack(walls: &Walls, findings: &mut Findings) {
    let scene = Scene::with(&Cli::Simulated, walls, &config(walls)).await;
    let quiet = median(during(&scene, tokio::time::sleep(Duration::from_millis(300))).await);

    let name = format!("forks-{}", uuid::Uuid::new_v4());
    let most = std::sync::atomic::AtomicUsize::new(0);
    let count = async || {
        let seen = scene.with_argument(&name).len();
        most.fetch_max(seen, std::sync::atomic::Ordering::SeqCst);
        true
    };
    during(&scene, async { drop(scene.holding(&["forks", FORKS, &name], count).await) }).await;
    let most = most.into_inner();
    findings.judge(walls, "fork-bomb", most > FORKS_ALLOWED, &format!("{most} processes"));

    // The tree is ended, by the kernel or by the server; the next turn has another child.
    let most = std::sync::atomic::AtomicU64::new(0);
    let hog = async {
        let look = async {
            loop {
                most.fetch_max(largest(&scene), std::sync::atomic::Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            _ = scene.holding(&["hog", MEMORY], async || true) => {}
            () = look => {}
        }
    };
    during(&scene, hog).await;
    let most = most.into_inner();
    let gained = most > MEMORY_ALLOWED + MEMORY_ALLOWED / 4;
    // On a machine that is busy, the server's sample may come before the attacker has got that far.
    if gained || walls.has(Term::Cgroup) {
        findings.judge(walls, "memory-hog", gained, &format!("{most} MiB"));
    } else {
        say(&format!("the server ended the memory hog in time with {walls}: {most} MiB"));
    }

    let spun = median(during(&scene, async { drop(scene.attempt(&["spin", "4", "2"]).await) }).await);
    for words in
        [&["fill", "filled", "100"][..], &["files", "many", "5000"], &["flood", "64"], &["open", "100000"]]
    {
        if words[0] == "open" {
            during(&scene, async { drop(scene.holding(words, async || true).await) }).await;
        } else {
            during(&scene, async { drop(scene.attempt(words).await) }).await;
        }
    }
    say(&format!("a turn of others with {walls}: {quiet:?}; beside four busy processes: {spun:?}"));
    findings.judge(walls, "others-served", false, "");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_hogs_leave_others_served() {
    let mut findings = Findings::default();
    for walls in all_walls() {
        attack(&walls, &mut findings).await;
    }
    findings.report();
}
