//! What a test saw, against the table: all differences of all walls in one report.

use crate::common::installed;
use crate::rungs::{Walls, all_walls, extreme_walls};
use crate::scene::{Cli, Scene};
use crate::table::promise_named;

/// Runs an attack by the simulated CLI in a scene of its own on all walls.
pub(crate) async fn simulated(attack: impl AsyncFn(&Scene, &mut Findings)) {
    run(&Cli::Simulated, all_walls(), attack).await;
}

/// The same by the real CLI: its newest version on no and all walls; in a long run each version on all sets.
pub(crate) async fn real(attack: impl AsyncFn(&Scene, &mut Findings)) {
    let versions = if installed::is_long() { installed::VERSIONS.to_vec() } else { vec![installed::NEWEST] };
    for version in versions {
        let Some(program) = installed::cli(version) else { return };
        run(&Cli::Real(program), extreme_walls(), &attack).await;
    }
}

async fn run(cli: &Cli, all: Vec<Walls>, attack: impl AsyncFn(&Scene, &mut Findings)) {
    let mut findings = Findings::default();
    for walls in all {
        let scene = Scene::open(cli, &walls).await;
        attack(&scene, &mut findings).await;
        scene.end().await;
    }
    findings.report();
}

/// The differences so far.
#[derive(Default)]
pub(crate) struct Findings {
    judged: usize,
    wrong: Vec<String>,
}

impl Findings {
    /// Compares one attempt with the table: `gained` is what an observer outside saw.
    pub(crate) fn judge(&mut self, walls: &Walls, name: &str, gained: bool, seen: &str) {
        self.judged += 1;
        let holds = walls.meet(promise_named(name).held_by);
        if gained == holds {
            let (what, wanted) = if gained { ("was broken", "held") } else { ("held", "broken") };
            let seen: String = seen.chars().take(200).collect();
            self.wrong
                .push(format!("{name} {what} with {walls}, the table has it {wanted}; printed: {seen:?}"));
        }
    }

    /// The end of every test.
    pub(crate) fn report(self) {
        assert!(self.judged > 0, "nothing was attempted");
        assert!(
            self.wrong.is_empty(),
            "{} of {} attempts:\n{}",
            self.wrong.len(),
            self.judged,
            self.wrong.join("\n")
        );
    }
}
