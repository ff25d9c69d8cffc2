//! What supervision costs, as ratios to a floor that is measured in the same run.
//!
//! The child is the same for both sides ([`instant`]): it answers at once with prepared bytes, so that its own cost hides
//! nothing. Rows that need tools have the simulated CLI. The floor is what one would write by hand
//! and no less: tokio pipes, lines split, an eye on the `result` line; no restart, no limits, no isolation. Rounds of
//! floor and pilotlight alternate, medians are compared, processor time is that of this process alone.
//!
//! `cargo bench --bench ratios` prints the table. `cargo bench --bench ratios -- W1 W6` runs some rows only, `-- --quick` all
//! of them with fewer rounds, turns and sessions: a hint within a minute.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking"
)]

mod floor;
#[path = "../common/instant.rs"]
mod instant;
mod isolation;
mod journal;
mod kernel_memory;
mod measure;
mod ours;
mod rows;
mod starts;
#[path = "../common/table.rs"]
mod table;
mod watching;

use measure::Effort;

fn main() {
    pilotlight::shim::run_if_asked();
    instant::run_if_asked();
    pilotlight::sim::run_if_asked();
    let (flags, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let effort = if flags.iter().any(|flag| flag == "--quick") { Effort::Quick } else { Effort::Full };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // On a worker, as the handlers of a service are: outside of it every wake-up would cross threads.
    let failed = runtime.block_on(async move {
        tokio::spawn(async move { rows::run(&wanted, effort).await }).await.unwrap()
    });
    drop(runtime);
    if failed {
        println!("\nAt least one value misses its bound.");
    }
}
