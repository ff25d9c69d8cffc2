//! Instructions for a turn and for a delta of it, with their upper bounds: of the library in this process, and of
//! `pilotlight serve`. They depend neither on the speed nor on the load of the machine.
//!
//! callgrind counts whole runs of the library that differ in their length alone; the difference is that of the turns between. Of a
//! server it counts the turns themselves. One thread runs everything, and the child is [`instant`].
//!
//! `cargo bench --bench instructions` needs valgrind; with `--profile dev` it has the bounds of a build without optimisation.
//! `--no-default-features --features server` counts a program that cannot be a node of a cluster.
//! `-- off keepalive` counts some cases only. `-- run written 200 50` is one run of the library: to be watched by any tool.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking"
)]

#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../ratios/floor.rs"]
mod floor;
mod http;
#[path = "../common/instant.rs"]
mod instant;
#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../ratios/ours.rs"]
mod ours;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pilotlight::Pilotlight;
use pilotlight::config::JournalMode;

/// Turns of the short run. The start and what is made once are in both.
const WARM: usize = 20;
/// Further turns of the long run.
const MORE: usize = 50;
/// Deltas of a usual turn, and of a long one.
const DELTAS: usize = 50;
const LONG: usize = 450;

/// A way to serve turns.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    /// By hand, without pilotlight.
    Floor,
    Library(JournalMode),
    Http(http::Dialect),
}

/// Upper bounds for a turn of [`DELTAS`] and for one more delta.
type Bounds = Option<(u64, u64)>;

/// The cases by name, with the bounds of a released build and of one without optimisation.
///
/// Runs differ a little, because the reader meets more or fewer lines at once. The bounds are 15 % above what was
/// measured of a released build, and 10 % of the other.
const CASES: [(&str, Case, Bounds, Bounds); 7] = [
    ("floor", Case::Floor, None, None),
    ("off", Case::Library(JournalMode::Off), Some((115_000, 590)), Some((869_000, 3_310))),
    ("written", Case::Library(JournalMode::Written), Some((126_000, 590)), Some((957_000, 3_410))),
    ("keepalive", Case::Http(http::Dialect::Keepalive), Some((268_000, 950)), Some((1_805_000, 4_740))),
    ("anthropic", Case::Http(http::Dialect::Anthropic), Some((385_000, 1_740)), Some((4_150_000, 42_500))),
    ("responses", Case::Http(http::Dialect::Responses), Some((657_000, 2_720)), Some((5_450_000, 47_200))),
    ("tools", Case::Http(http::Dialect::Tools), Some((978_000, 1_750)), Some((7_580_000, 42_600))),
];

fn main() {
    pilotlight::shim::run_if_asked();
    instant::run_if_asked();
    pilotlight::sim::run_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", case, turns, deltas] => run(case, turns.parse().unwrap(), deltas),
        ref wanted => measure(wanted),
    }
}

/// The cases of these names, or all.
fn measure(wanted: &[&str]) {
    println!("{:<10} {:>10} {:>10} {:>10} {:>10}", "", "a turn", "bound", "a delta", "bound");
    let mut is_within = true;
    let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
    for (name, case, released, unoptimised) in CASES.into_iter().filter(|it| is_wanted(it.0)) {
        let bounds = if cfg!(debug_assertions) { unoptimised } else { released };
        let (turns, long) = match case {
            Case::Http(dialect) => http::count(dialect),
            Case::Floor | Case::Library(_) => differences(name),
        };
        let turn = turns / MORE as u64;
        let delta = long.saturating_sub(turn * WARM as u64) / (WARM * (LONG - DELTAS)) as u64;
        let (turn_bound, delta_bound) = bounds.unzip();
        let text = |bound: Option<u64>| bound.map_or("-".to_owned(), |bound| bound.to_string());
        println!("{name:<10} {turn:>10} {:>10} {delta:>10} {:>10}", text(turn_bound), text(delta_bound));
        is_within &= turn_bound.is_none_or(|bound| turn <= bound);
        is_within &= delta_bound.is_none_or(|bound| delta <= bound);
    }
    if !is_within {
        println!("\nAt least one value exceeds its bound.");
        std::process::exit(1);
    }
}

/// callgrind, for a program and its arguments. `out`: what it writes, as the beginning of file names.
fn callgrind(out: &Path) -> Command {
    let mut command = Command::new("valgrind");
    // What is inlined where takes longer to read than a short run.
    command.args(["--tool=callgrind", "--read-inline-info=no"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command
}

/// Instructions of the library for [`MORE`] turns of [`DELTAS`], and for [`WARM`] of [`LONG`].
fn differences(case: &'static str) -> (u64, u64) {
    // Side by side, for each needs one processor. All are spawned before the first is waited for.
    let [short, many, long] = std::thread::scope(|scope| {
        [(WARM, DELTAS), (WARM + MORE, DELTAS), (WARM, LONG)]
            .map(|(turns, deltas)| scope.spawn(move || count(case, turns, deltas)))
            .map(|run| run.join().unwrap())
    });
    let more = many.saturating_sub(short);
    (more, long.saturating_sub(short) + more * WARM as u64 / MORE as u64)
}

/// The number that callgrind has written.
fn collected(said: &str) -> u64 {
    let line = said.lines().find_map(|line| line.split_once("Collected : "));
    line.unwrap_or_else(|| panic!("no count: {said}")).1.trim().parse().unwrap()
}

/// Instructions of a whole run of this program.
fn count(case: &str, turns: usize, deltas: usize) -> u64 {
    let counted = callgrind(Path::new("/dev/null"))
        .arg(std::env::current_exe().unwrap())
        .args(["run", case, &turns.to_string(), &deltas.to_string()])
        .output()
        .expect("valgrind is to be installed");
    let said = String::from_utf8_lossy(&counted.stderr);
    assert!(counted.status.success(), "{said}");
    collected(&said)
}

fn run(case: &str, turns: usize, deltas: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (home, text) = (tempfile::tempdir().unwrap(), format!("[[deltas:{deltas}]]"));
    runtime.block_on(async {
        let case = CASES.iter().find(|(name, ..)| *name == case).expect("no such case").1;
        if case == Case::Floor {
            let mut floor = floor::Floor::start(home.path());
            for _ in 0..turns {
                floor.turn(&text, floor::Look::Peek).await;
            }
            return floor.end().await;
        }
        let mut config = ours::config(home.path());
        // A measurement of memory would be in one run and not in the other.
        config.metrics.sample_interval = Duration::from_secs(3600);
        let Case::Library(journal) = case else { panic!("a server is no run of this program") };
        config.session.journal = journal;
        let pilot = Pilotlight::start(config).await.unwrap();
        let session = pilot.session("one");
        for _ in 0..turns {
            ours::turn(&session, &text).await;
        }
        pilot.shutdown(Duration::from_secs(10)).await;
    });
}
