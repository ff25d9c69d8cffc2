//! Shares of a processor that two sessions want at the same time. No time is asserted: what counts is who used the
//! processor, whatever else the machine does. How much slower others become is measured by `cargo bench`.

use std::path::Path;
use std::time::Duration;

use crate::common::process::Process;
use crate::findings::Findings;
use crate::observers::status;
use crate::rungs::{Walls, all_walls};
use crate::scene::{ALICE, Cli, Scene, read};

/// Processes of the victim, and of the attacker.
const FEW: &str = "2";
const MANY: &str = "8";
/// Clock ticks that both use together before the shares are compared: a second.
const ENOUGH: u64 = 100;
/// Maximum time until they have used that much, on a processor that others use as well.
const USED_WITHIN: Duration = Duration::from_secs(60);
/// Percentage of the attacker. By processes alone it is 80, by sessions 50.
const FAIR: u64 = 65;

/// Processor time in clock ticks.
fn ticks(process: Process) -> u64 {
    let stat = read(Path::new(&format!("/proc/{}/stat", process.pid)));
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').skip(11).take(2));
    fields.map(|times| times.filter_map(|time| time.parse::<u64>().ok()).sum()).unwrap_or_default()
}

/// The attacker's percentage while both sessions keep the same processor busy.
async fn share(scene: &Scene) -> Option<u64> {
    let names = ["few", "many"].map(|name| format!("{name}-{}", uuid::Uuid::new_v4()));
    let [few, many] = &names;
    let own = Process::of(std::process::id().cast_signed()).expect("the test runs");
    let processor = status(own, "Cpus_allowed_list").split([',', '-']).next()?.to_owned();
    let used = |name: &str| scene.with_argument(name).into_iter().map(ticks).sum::<u64>();
    let mut share = None;
    let mut begin = None;
    // Both are on the processor before anything counts, and until enough is counted.
    let look = async || {
        let counts = [used(few), used(many)];
        if counts.contains(&0) {
            return false;
        }
        let [few, many] = *begin.get_or_insert(counts);
        let (few, many) = (counts[0].saturating_sub(few), counts[1].saturating_sub(many));
        if share.is_none() && few + many >= ENOUGH {
            share = Some(many * 100 / (few + many));
        }
        share.is_some()
    };
    let words = ["contend", few, FEW, &processor];
    let victim = scene.attempt_by(ALICE, &words);
    let attack = async {
        let seen = scene.holding_for(USED_WITHIN, &["contend", many, MANY, &processor], look).await;
        std::fs::write(scene.victim.dir.join("work/seen"), "").unwrap();
        seen
    };
    let (victim, attack) = tokio::join!(victim, attack);
    assert!(share.is_some(), "both were busy: {victim:?} {attack:?}");
    share
}

async fn attack(walls: &Walls, findings: &mut Findings) {
    let scene = Scene::open(&Cli::Simulated, walls).await;
    let share = share(&scene).await.expect("a processor");
    findings.judge(walls, "processor-share", share > FAIR, &format!("{share} %"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_processors_are_shared_by_session() {
    let mut findings = Findings::default();
    for walls in all_walls() {
        attack(&walls, &mut findings).await;
    }
    findings.report();
}
