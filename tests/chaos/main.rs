//! Chaos: a random schedule of turns and of everything that may befall them, on twenty users of the simulated CLI, with
//! all promises checked from outside after each step.
//!
//! The schedule is a function of its seed, which is always printed. To see a run again, or to run longer:
//!
//! ```sh
//! PILOTLIGHT_CHAOS_SEED=1234 cargo test --test chaos                # this seed alone
//! PILOTLIGHT_CHAOS_STEPS=2000 cargo test --test chaos               # more steps of each
//! PILOTLIGHT_CHAOS_MINUTES=30 cargo test --test chaos -- --ignored --nocapture long
//! ```
//!
//! `plan` decides what is done, `run` does it, `host` is the server it is done to, in a process of its own; `table`
//! watches the process table, `model` knows what the clients may count on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and real processes live in real time"
)]

use pilotlight_test_support as common;
mod conversation;
mod damage;
mod disk;
mod host;
mod link;
mod model;
mod plan;
mod process;
mod reader;
mod recorder;
mod run;
mod summary;
mod table;
mod wire;

use std::time::Duration;

use run::Limit;

/// Seeds of every run: ones that have found something.
const SEEDS: &[u64] = &[3, 5];

/// Steps of each seed in an ordinary run: some ten seconds.
const STEPS: usize = 108;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn fresh_seed() -> u64 {
    fastrand::u64(1..1_000_000_000)
}

#[test]
fn every_promise_holds_whatever_happens() {
    let limit = Limit::Steps(number("PILOTLIGHT_CHAOS_STEPS").map_or(STEPS, |steps| steps as usize));
    let seeds = match number("PILOTLIGHT_CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => SEEDS.iter().copied().chain([fresh_seed()]).collect(),
    };
    for seed in seeds {
        let summary = run::run(seed, limit);
        println!("{summary}");
    }
}

/// A long run of one seed. By hand, for it takes half an hour, or `PILOTLIGHT_CHAOS_MINUTES`.
#[test]
#[ignore = "takes long; see the top of this file"]
fn long() {
    let minutes = number("PILOTLIGHT_CHAOS_MINUTES").unwrap_or(30);
    let seed = number("PILOTLIGHT_CHAOS_SEED").unwrap_or_else(fresh_seed);
    let summary = run::run(seed, Limit::Time(Duration::from_secs(60 * minutes)));
    println!("{summary}");
}

/// Not a test: the server that the runs start, when they start it.
#[test]
#[ignore = "the runs above start it"]
fn server_under_test() {
    host::run_if_asked();
}
