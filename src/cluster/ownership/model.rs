//! A deterministic simulation of nodes, network, etcd and clocks: every run follows from its seed.
//!
//! Each node runs the real [`Ownership`](super::Ownership), and the store carries out the real transactions. An observer
//! outside of the nodes checks what must always hold:
//!
//! * no two children of a user live at the same time;
//! * a head follows the one before: `seq` without a gap, nothing of the history lost or repeated;
//! * an acknowledged turn is in the final history, and each turn ends once;
//! * after the last fault, every user is served within a bounded time.
//!
//! The last tests remove one guard each, and expect the observer to notice.

mod node;
mod observer;
mod parts;
mod world;

use observer::{Broken, Counts, Violation};
use world::World;

/// Runs of the whole; `PILOTLIGHT_MODEL_RUNS` asks for more.
const RUNS: u64 = 500;
/// Runs within which the observer must notice a missing guard.
const RUNS_BROKEN: u64 = 3000;

fn run(seed: u64, broken: Broken) -> Result<Counts, Violation> {
    World::new(seed, broken).run()
}

#[test]
fn every_seeded_run_keeps_its_promises() {
    let runs = std::env::var("PILOTLIGHT_MODEL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    let first = std::env::var("PILOTLIGHT_MODEL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let part = |thread: u64| {
        let mut all = Counts::default();
        for seed in (first..first + runs).filter(|seed| seed % threads == thread) {
            match run(seed, Broken::Nothing) {
                Ok(counts) => all.add(&counts),
                Err(violation) => panic!("seed {seed}: {violation:?}"),
            }
        }
        all
    };
    let mut all = Counts::default();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        for part in parts {
            all.add(&part.join().unwrap());
        }
    });
    println!("{runs} runs: {all:?}");
    // The runs are of use only if everything occurs in them.
    assert!(all.acknowledged > runs * 10, "{all:?}");
    for (what, count) in all.rare() {
        assert!(count > runs / 50, "{what}: {all:?}");
    }
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed, Broken::Nothing), run(seed, Broken::Nothing));
    }
}

/// The first violation that the observer notices.
fn noticed(broken: Broken) -> Violation {
    let found = (0..RUNS_BROKEN).find_map(|seed| run(seed, broken).err().map(|violation| (seed, violation)));
    let (seed, violation) = found.unwrap_or_else(|| panic!("{broken:?} is not noticed"));
    println!("{broken:?}: seed {seed}: {violation:?}");
    violation
}

#[test]
fn commit_without_guard_is_noticed() {
    assert!(matches!(noticed(Broken::UnguardedCommit), Violation::History { .. }));
}

#[test]
fn missing_deadline_is_noticed() {
    assert!(matches!(noticed(Broken::NoDeadline), Violation::TwoChildren { .. }));
}

/// Counted from the answer, the deadline is later than the lease's.
#[test]
fn deadline_from_the_answer_is_noticed() {
    assert!(matches!(noticed(Broken::DeadlineFromAnswer), Violation::TwoChildren { .. }));
}

#[test]
fn claim_by_serializable_read_is_noticed() {
    let violation = noticed(Broken::SerializableClaim);
    assert!(matches!(violation, Violation::TwoChildren { .. } | Violation::History { .. }));
}

#[test]
fn acknowledgement_before_commit_is_noticed() {
    assert!(matches!(noticed(Broken::AcknowledgeFirst), Violation::Lost { .. }));
}

#[test]
fn release_before_the_end_of_children_is_noticed() {
    // On another node, or on the same one, which is granted the user again before its last child has ended.
    let violation = noticed(Broken::ReleaseFirst);
    assert!(matches!(violation, Violation::TwoChildren { .. } | Violation::Unfit { .. }));
}

#[test]
fn new_lease_before_the_end_of_children_is_noticed() {
    assert!(matches!(noticed(Broken::RejoinFirst), Violation::TwoChildren { .. }));
}

/// A repeated commit must recognise its own head.
#[test]
fn unrecognised_own_head_is_noticed() {
    assert!(matches!(noticed(Broken::OwnHeadForgotten), Violation::History { .. }));
}

/// A release with an unknown result is repeated: the key would be taken for a new ownership, and removed under it.
#[test]
fn release_given_up_is_noticed() {
    let violation = noticed(Broken::ReleaseOnce);
    assert!(matches!(violation, Violation::TwoChildren { .. } | Violation::ObjectTwice { .. }));
}
