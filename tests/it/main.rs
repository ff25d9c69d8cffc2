//! Everything that needs nothing installed, in one binary: the library, the shim, the simulated CLI and the server from
//! outside, as real processes. A test that needs a browser, a capability or Prometheus reports that it is left out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real processes live in real time"
)]

use pilotlight_test_support as common;

mod catalogues;
mod dashboards;
mod demo;
mod deploy;
mod embedded;
mod examples;
mod faults;
mod harness;
mod http;
mod isolation;
mod operate;
mod page;
mod publish;
mod readme;
mod security;
mod shim;
mod sim;
mod sources;
mod testing_kit;
mod traps;
