//! Hostile tools: each promise of isolation is attacked by a tool of a session, on every combination of rungs that this
//! machine can build, as root and as an unprivileged user, by the simulated and by the real CLI.
//!
//! `table` is the data: each promise with the rungs that hold it. `attack.pl` has the attempts. `scene` is a server with a
//! victim, a witness and an attacker. An observer outside decides what an attempt gained; the table decides what it must
//! have gained. So a rung that is off is tested as well: there the attack must succeed.
//!
//! By default the combinations are pairwise: none, each rung alone, all. `PILOTLIGHT_LONG` runs the whole matrix.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real processes live in real time"
)]

use pilotlight_test_support as common;

mod attached;
mod credentials;
mod etc;
mod exhaustion;
mod files;
mod findings;
mod kernel;
mod load;
mod network;
mod observers;
mod planted;
mod processes;
mod races;
mod rungs;
mod scene;
mod shares;
mod survival;
mod table;
