//! What each rung of isolation adds to a cold start, alone and with the others.

use std::os::unix::fs::PermissionsExt as _;

use pilotlight::Pilotlight;
use pilotlight::config::Rung;

use crate::ours;
use crate::rows::{directory, end, timed};
use crate::table::{Row, median, row};

/// Pairs of starts, without and with the rungs.
const STARTS: usize = 20;
/// Upper bound of the addition, and the aim, in milliseconds.
const MUST: f64 = 15.0;
const AIM: f64 = 5.0;

/// Cold start to the first result: difference to that without isolation, in milliseconds.
pub(crate) async fn cold_starts() -> Vec<Row> {
    let cases: [(&'static str, &[Rung]); 6] = [
        ("I1 cold start with landlock, more than without, ms", &[Rung::Landlock]),
        ("I1 with seccomp, ms", &[Rung::Seccomp]),
        ("I1 with namespaces, ms", &[Rung::Namespaces]),
        ("I1 with uid (beside namespaces), ms", &[Rung::Namespaces, Rung::Uid]),
        ("I1 with cgroup, ms", &[Rung::Cgroup]),
        ("I1 with all rungs, ms", &Rung::ALL),
    ];
    let mut rows = Vec::new();
    for (name, rungs) in cases {
        let (bare_data, data) = (directory(), directory());
        // The rung `uid` needs a way to the data directory.
        std::fs::set_permissions(data.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let mut config = ours::config(data.path());
        config.isolation.rungs = rungs.to_vec();
        config.isolation.require = rungs.to_vec();
        let isolated = match Pilotlight::start(config).await {
            Ok(isolated) => isolated,
            Err(error) => {
                println!("left out: {name}: {error}");
                continue;
            }
        };
        let bare = ours::start(bare_data.path()).await;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for number in 0..STARTS {
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

/// Milliseconds of the first turn of a new user.
async fn cold(pilot: &Pilotlight, number: usize) -> f64 {
    let session = pilot.session(format!("user {number}"));
    let (_, cost) = timed(ours::turn(&session, "hello")).await;
    session.evict().await.unwrap();
    cost.wall.as_secs_f64() * 1e3
}
