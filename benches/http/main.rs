//! What the HTTP service costs, as ratios to a floor that is measured in the same run.
//!
//! The floor is the smallest axum server that does the same for a caller: one warm child on tokio pipes, each of its
//! lines as an event; no limits, no errors, no restart. Both servers are processes of their own and run the same
//! child, which answers with prepared bytes ([`instant`]); one client asks both, in alternating rounds; medians are
//! compared, and the notes have the least and the greatest ratio of a round; processor time is that of the server's
//! process alone, without its children and without the client.
//!
//! `cargo bench --bench http` prints the table. `cargo bench --bench http -- W1 memory` runs some rows only,
//! `-- --quick` fewer rounds (under a minute).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a bench fails by panicking"
)]

mod client;
mod floor;
#[path = "../common/instant.rs"]
mod instant;
mod pipe;
mod rest;
mod rows;
#[allow(dead_code, reason = "another bench needs the rest")]
mod server;
mod side;
#[path = "../common/table.rs"]
mod table;

/// The argument that makes this program the floor's server.
const FLOOR: &str = "be-the-floor";

fn main() {
    instant::run_if_asked();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if arguments.first().is_some_and(|first| first == FLOOR) {
        let children = arguments[1].parse().unwrap();
        return runtime.block_on(floor::serve(children));
    }
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let wanted: Vec<String> = arguments.into_iter().filter(|argument| !argument.starts_with("--")).collect();
    let running =
        async move { tokio::spawn(async move { rows::run(&wanted, is_quick).await }).await.unwrap() };
    let failed = runtime.block_on(running);
    drop(runtime);
    if failed {
        println!("\nAt least one value misses its bound.");
    }
}
