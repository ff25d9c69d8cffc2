//! Exhaustion: forks, memory, processors, disk, descriptors, output. Others must be served meanwhile. Shares of processors
//! are the subject of `shares`.

use std::time::Duration;

use tokio::time::Instant;

use crate::common::installed::say;
use crate::common::process::descendants;
use crate::common::program::Answer;
use crate::common::{SOON, eventually_some};
use crate::findings::Findings;
use crate::observers::status;
use crate::rungs::{Term, Walls, all_walls};
use crate::scene::{Cli, MALLORY, Scene, read, tool};

/// Processes that the attack starts, and those that a session may have where the kernel counts them.
const FORKS: &str = "200";
const FORKS_ALLOWED: usize = 100;
/// MiB that the attack takes, and those that a session may have.
const MEMORY: &str = "700";
const MEMORY_ALLOWED: u64 = 350;
/// MiB and names that the attack writes, and those that a session may have.
const DISK: &str = "100";
const DISK_ALLOWED: u64 = 40;
const FILES: &str = "5000";
const FILES_ALLOWED: u64 = 2000;
/// Maximum time until a session's files are counted: at the end of its turn, or some seconds later.
const COUNTED_WITHIN: Duration = Duration::from_secs(15);
/// Highest cost in US dollars of all turns that were forged. The API of the tests costs cents.
const FORGED_ALLOWED: f64 = 10_000.0;
/// Longer than any turn of others takes on a machine that is busy with other tests.
const UNDISTURBED: Duration = Duration::from_secs(10);
/// Pause between two turns of the witness.
const PAUSE: Duration = Duration::from_millis(20);

fn config(walls: &Walls) -> String {
    // RLIMIT_NPROC counts all processes of a user id, also those of other tests.
    let forks =
        if walls.has(Term::Cgroup) { format!("child_processes = {FORKS_ALLOWED}\n") } else { String::new() };
    format!(
        "[limits]\nmemory_per_session = \"{MEMORY_ALLOWED}MiB\"\nworkspace_bytes = {}\n\
         workspace_files = {FILES_ALLOWED}\n{forks}",
        DISK_ALLOWED << 20
    )
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
    say(&format!("a turn of others with {walls}: {quiet:?}; beside four busy processes: {spun:?}"));

    disk(&scene, findings).await;
    during(&scene, async { drop(scene.holding(&["open", "100000"], async || true).await) }).await;
    during(&scene, async { drop(scene.turn(MALLORY, &tool("/usr/bin/perl attack.pl flood 64")).await) })
        .await;
    forged(&scene, findings).await;
    findings.judge(walls, "others-served", false, "");
    assert_eq!(
        read(&scene.victim.dir.join("work/private")),
        scene.secrets.file,
        "files of others are intact"
    );
    scene.end().await;
}

/// More bytes and more names than the session may have. It gets no turn until they are gone.
async fn disk(scene: &Scene, findings: &mut Findings) {
    for (words, limit) in [
        (["fill", "filled", DISK], "limits.workspace_bytes"),
        (["files", "filled", FILES], "limits.workspace_files"),
    ] {
        during(scene, async { drop(scene.attempt(&words).await) }).await;
        let refused = async {
            eventually_some("it is refused", SOON, async || {
                let answer = scene.turn(MALLORY, "[[say:more]]").await;
                answer.body.contains(limit).then_some(())
            })
            .await;
        };
        let refused = tokio::time::timeout(COUNTED_WITHIN, refused).await;
        findings.judge(&scene.walls, "disk-fill", refused.is_err(), limit);
        let filled = scene.work.join("filled");
        std::fs::remove_file(&filled).or_else(|_| std::fs::remove_dir_all(&filled)).unwrap();
        assert_eq!(scene.turn(MALLORY, "[[say:below]]").await.text(), "below", "{limit}");
    }
}

/// Ends of turns that a tool writes to the output of its CLI. They may end its own turns, and cost nobody anything.
async fn forged(scene: &Scene, findings: &mut Findings) {
    during(scene, async { drop(scene.attempt(&["forge", "64"]).await) }).await;
    for user in [MALLORY, "bob"] {
        let usage = Answer::of(scene.request("GET", &format!("/v1/usage?user={user}"), user)).await;
        let session = Answer::of(scene.request("GET", "/v1/sessions/default", user)).await;
        let (usage, session) = (usage.json(), session.json());
        let days = usage["days"].as_array().expect("days").iter().map(|day| &day["cost_usd"]);
        let costs: Vec<_> = days.chain([&session["total_cost_usd"]]).collect();
        let is_cost =
            |cost: &&serde_json::Value| cost.as_f64().is_some_and(|usd| (0.0..FORGED_ALLOWED).contains(&usd));
        let gained = !costs.iter().all(is_cost);
        findings.judge(&scene.walls, "forged-cost", gained, &format!("{user}: {costs:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_hogs_leave_others_served() {
    let mut findings = Findings::default();
    for walls in all_walls() {
        attack(&walls, &mut findings).await;
    }
    findings.report();
}
