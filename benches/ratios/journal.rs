//! What the journal adds to the turns of row W1.
//!
//! For a journal the CLI also writes mirrored lines, which cost any reader something. So there are two floors, with and
//! without them, and each setting is compared with its own.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use pilotlight::config::JournalMode;
use pilotlight::{Pilotlight, Session};

use crate::floor::{Floor, Look};
use crate::measure::{Cost, Effort};
use crate::ours;
use crate::rows::{directory, end, micros, timed};
use crate::table::{Row, row};

const TEXT: &str = "[[deltas:50]]";
/// Turns of one subject in a round. A synchronised one takes milliseconds.
const TURNS: usize = 100;
/// Bytes that such a turn adds to the journal, about.
const WRITTEN: usize = 4096;

/// Costs of a turn in each round.
#[derive(Default)]
struct Costs {
    latency: Vec<f64>,
    cpu: Vec<f64>,
}

impl Costs {
    fn add(&mut self, cost: Cost) {
        self.latency.push(cost.wall.as_secs_f64() / TURNS as f64);
        self.cpu.push(cost.cpu.as_secs_f64() / TURNS as f64);
    }
}

pub(crate) async fn shares(effort: Effort) -> Vec<Row> {
    let (plain_home, mirror_home) = (directory(), directory());
    let mut floors = [Floor::start(plain_home.path()), Floor::mirroring(mirror_home.path())];
    let data = [directory(), directory(), directory()];
    let modes = [JournalMode::Off, JournalMode::Written, JournalMode::Synced];
    let mut ours: Vec<(Pilotlight, Session)> = Vec::new();
    for (data, mode) in data.iter().zip(modes) {
        let mut config = ours::config(data.path());
        config.session.journal = mode;
        let pilot = Pilotlight::start(config).await.unwrap();
        let session = pilot.session("one");
        ours.push((pilot, session));
    }
    let mut costs: [Costs; 5] = Default::default();
    let mut disk = Vec::new();
    for round in 0..=effort.rounds() {
        for (number, floor) in floors.iter_mut().enumerate() {
            let turns = async {
                for _ in 0..TURNS {
                    floor.turn(TEXT, Look::Peek).await;
                }
            };
            let ((), cost) = timed(turns).await;
            // The first round warms.
            if round > 0 {
                costs[number].add(cost);
            }
        }
        for (number, (_, session)) in ours.iter().enumerate() {
            let turns = async {
                for _ in 0..TURNS {
                    ours::turn(session, TEXT).await;
                }
            };
            let ((), cost) = timed(turns).await;
            if round > 0 {
                costs[2 + number].add(cost);
            }
        }
        disk.push(bare_sync(data[2].path()).as_secs_f64());
    }
    for floor in floors {
        floor.end().await;
    }
    for (pilot, _) in ours {
        end(pilot).await;
    }
    rows(&costs, micros(&disk))
}

/// The same bytes appended and synchronised by hand, in the same directory.
fn bare_sync(directory: &Path) -> Duration {
    let mut file = File::create(directory.join("bare")).unwrap();
    let begun = Instant::now();
    for _ in 0..TURNS {
        file.write_all(&[b'x'; WRITTEN]).unwrap();
        file.sync_data().unwrap();
    }
    begun.elapsed() / u32::try_from(TURNS).unwrap()
}

fn rows(costs: &[Costs; 5], disk: f64) -> Vec<Row> {
    let latency = costs.each_ref().map(|costs| micros(&costs.latency));
    let cpu = costs.each_ref().map(|costs| micros(&costs.cpu));
    let [plain, mirrored, off, written, synced] = latency;
    let [plain_cpu, mirrored_cpu, off_cpu, written_cpu, _] = cpu;
    let of = |ours: f64, floor: f64| format!("{ours:.0} µs / {floor:.0} µs a turn");
    vec![
        row("J1 journal off: latency / floor", off / plain, 1.5, 1.25, of(off, plain)),
        row("J1 journal off: CPU / floor", off_cpu / plain_cpu, 1.8, 1.4, of(off_cpu, plain_cpu)),
        row(
            "J1 journal written: latency / floor with mirrored lines",
            written / mirrored,
            1.5,
            1.25,
            of(written, mirrored),
        ),
        row(
            "J1 journal written: CPU / floor with mirrored lines",
            written_cpu / mirrored_cpu,
            1.8,
            1.4,
            of(written_cpu, mirrored_cpu),
        ),
        row("J1 the journal's share: latency written / off", written / off, 1.03, 1.0, of(written, off)),
        row(
            "J1 the journal's share: CPU written / off",
            written_cpu / off_cpu,
            1.03,
            1.0,
            of(written_cpu, off_cpu),
        ),
        row(
            "J1 journal synced: latency more than written / bare fdatasync",
            (synced - written) / disk,
            1.5,
            1.1,
            of(synced - written, disk),
        ),
    ]
}
