//! What each rung of isolation adds to a cold start, alone and with the others, and what a hog takes from others.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use pilotlight::Pilotlight;
use pilotlight::config::Rung;

use crate::measure::Effort;
use crate::ours;
use crate::rows::{directory, end, timed};
use crate::table::{Row, median, row};

/// Each rung alone, and all. The rung `uid` is of use only where others show it files.
pub(crate) const CASES: [(&str, &[Rung]); 6] = [
    ("landlock", &[Rung::Landlock]),
    ("seccomp", &[Rung::Seccomp]),
    ("namespaces", &[Rung::Namespaces]),
    ("uid beside namespaces", &[Rung::Namespaces, Rung::Uid]),
    ("cgroup", &[Rung::Cgroup]),
    ("all rungs", &Rung::ALL),
];

/// Upper bound of the addition, and the aim, in milliseconds.
const MUST: f64 = 15.0;
const AIM: f64 = 5.0;

/// Cold start to the first result: difference to that without isolation, in milliseconds.
pub(crate) async fn cold_starts(effort: Effort) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, rungs) in CASES {
        let name = format!("I1 cold start with {name}, more than without, ms");
        let (bare_data, data) = (directory(), directory());
        let Some(isolated) = start(&name, data.path(), rungs).await else { continue };
        let bare = ours::start(bare_data.path()).await;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        // Pairs of starts, without and with the rungs.
        for number in 0..effort.of(20, 4) {
            without.push(cold(&bare, number).await);
            with.push(cold(&isolated, number).await);
        }
        end(bare).await;
        end(isolated).await;
        let (without, with) = (median(without), median(with));
        rows.push(row(name, with - without, MUST, AIM, format!("{with:.1} ms / {without:.1} ms")));
    }
    rows
}

/// A turn that works now and then for about a second, as one with a model does.
const TURN: &str = "[[deltas:50]][[delay:20]]";
/// Sixteen processes that want a processor until their session ends. Each has a scheduling group of its own.
const HOG: &str =
    r#"[[tool:Bash {"command":"for i in $(seq 16); do setsid sh -c 'while :; do :; done' & done"}]]"#;

/// Latency of a turn beside another user's busy processes, relative to that without them.
pub(crate) async fn beside_a_hog(effort: Effort) -> Vec<Row> {
    let cases: [(&'static str, &[Rung], f64, f64); 2] = [
        ("I2 a turn beside a hog of processors / without, with cgroup", &[Rung::Cgroup], 1.25, 1.1),
        ("I2 without any rung", &[], f64::INFINITY, 1.25),
    ];
    let mut rows = Vec::new();
    for (name, rungs, must, aim) in cases {
        let data = directory();
        let mut config = ours::config(data.path());
        // The hog is a tool.
        config.cli.env.clear();
        config.isolation.rungs = rungs.to_vec();
        config.isolation.require = rungs.to_vec();
        config.permissions.policy = pilotlight::config::PermissionPolicy::Allow;
        let pilot = match Pilotlight::start(config).await {
            Ok(pilot) => pilot,
            Err(error) => {
                println!("left out: {name}: {error}");
                continue;
            }
        };
        let (other, hog) = (pilot.session("other"), pilot.session("hog"));
        ours::turn(&other, TURN).await;
        let (mut quiet, mut beside) = (Vec::new(), Vec::new());
        // Pairs of turns, without and beside the hog.
        for _ in 0..effort.of(25, 2) {
            quiet.push(timed(ours::turn(&other, TURN)).await.1.wall.as_secs_f64() * 1e3);
            ours::turn(&hog, HOG).await;
            beside.push(timed(ours::turn(&other, TURN)).await.1.wall.as_secs_f64() * 1e3);
            // Its processes end with it.
            hog.evict().await.unwrap();
        }
        end(pilot).await;
        let (quiet, beside) = (median(quiet), median(beside));
        rows.push(row(name, beside / quiet, must, aim, format!("{beside:.0} ms / {quiet:.0} ms")));
    }
    rows
}

/// A system with these rungs; `None` where one of them cannot be built.
pub(crate) async fn start(row: &str, data: &Path, rungs: &[Rung]) -> Option<Pilotlight> {
    // The rung `uid` needs a way to the data directory.
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut config = ours::config(data);
    config.isolation.rungs = rungs.to_vec();
    config.isolation.require = rungs.to_vec();
    let started = Pilotlight::start(config).await;
    started.inspect_err(|error| println!("left out: {row}: {error}")).ok()
}

/// Milliseconds of the first turn of a new user.
async fn cold(pilot: &Pilotlight, number: usize) -> f64 {
    let session = pilot.session(format!("user {number}"));
    let (_, cost) = timed(ours::turn(&session, "hello")).await;
    session.evict().await.unwrap();
    cost.wall.as_secs_f64() * 1e3
}
