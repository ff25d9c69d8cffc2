//! Instructions of this process for a turn and for a delta of it, with their upper bounds. They depend neither on the speed
//! nor on the load of the machine.
//!
//! callgrind counts whole runs that differ in their length alone; the difference is that of the turns between. One
//! thread runs everything, and the child is [`instant`].
//!
//! `cargo bench --bench instructions` needs valgrind. `-- run written 200 50` is one run: to be watched by any tool.

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
#[path = "../common/instant.rs"]
mod instant;
#[allow(dead_code, reason = "another bench needs the rest")]
#[path = "../ratios/ours.rs"]
mod ours;

use std::process::Command;
use std::time::Duration;

use pilotlight::Pilotlight;
use pilotlight::config::JournalMode;

/// Turns of the short run. The start and what is made once are in both.
const WARM: usize = 20;
/// Further turns of the long run.
const MORE: usize = 100;
/// Deltas of a usual turn, and of a long one.
const DELTAS: usize = 50;
const LONG: usize = 1050;

/// What serves the turns; upper bounds for a turn of [`DELTAS`] and for one more delta, where there are any.
///
/// Runs differ a little, because the reader meets more or fewer lines at once. The bounds are 15 % above what was measured.
const CASES: [(&str, Option<(u64, u64)>); 3] =
    [("floor", None), ("off", Some(BOUND_OFF)), ("written", Some(BOUND_WRITTEN))];
const BOUND_OFF: (u64, u64) = (115_000, 590);
const BOUND_WRITTEN: (u64, u64) = (126_000, 590);

fn main() {
    pilotlight::shim::run_if_asked();
    instant::run_if_asked();
    pilotlight::sim::run_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", case, turns, deltas] => run(case, turns.parse().unwrap(), deltas),
        _ => measure(),
    }
}

fn measure() {
    println!("{:<10} {:>10} {:>10} {:>10} {:>10}", "", "a turn", "bound", "a delta", "bound");
    let mut is_within = true;
    for (case, bounds) in CASES {
        let short = count(case, WARM, DELTAS);
        let turn = count(case, WARM + MORE, DELTAS).saturating_sub(short) / MORE as u64;
        let delta = count(case, WARM, LONG).saturating_sub(short) / (WARM * (LONG - DELTAS)) as u64;
        let (turn_bound, delta_bound) = bounds.unzip();
        let text = |bound: Option<u64>| bound.map_or("-".to_owned(), |bound| bound.to_string());
        println!("{case:<10} {turn:>10} {:>10} {delta:>10} {:>10}", text(turn_bound), text(delta_bound));
        is_within &= turn_bound.is_none_or(|bound| turn <= bound);
        is_within &= delta_bound.is_none_or(|bound| delta <= bound);
    }
    if !is_within {
        println!("\nAt least one value exceeds its bound.");
        std::process::exit(1);
    }
}

/// Instructions of a whole run.
fn count(case: &str, turns: usize, deltas: usize) -> u64 {
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["run", case, &turns.to_string(), &deltas.to_string()])
        .output()
        .expect("valgrind is to be installed");
    let said = String::from_utf8_lossy(&counted.stderr);
    assert!(counted.status.success(), "{said}");
    let line = said.lines().find_map(|line| line.split_once("Collected : ")).expect("no count");
    line.1.trim().parse().unwrap()
}

fn run(case: &str, turns: usize, deltas: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (home, text) = (tempfile::tempdir().unwrap(), format!("[[deltas:{deltas}]]"));
    runtime.block_on(async {
        if case == "floor" {
            let mut floor = floor::Floor::start(home.path());
            for _ in 0..turns {
                floor.turn(&text, floor::Look::Peek).await;
            }
            return floor.end().await;
        }
        let mut config = ours::config(home.path());
        // A measurement of memory would be in one run and not in the other.
        config.metrics.sample_interval = Duration::from_secs(3600);
        config.session.journal = if case == "off" { JournalMode::Off } else { JournalMode::Written };
        let pilot = Pilotlight::start(config).await.unwrap();
        let session = pilot.session("one");
        for _ in 0..turns {
            ours::turn(&session, &text).await;
        }
        pilot.shutdown(Duration::from_secs(10)).await;
    });
}
