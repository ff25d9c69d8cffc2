//! The dashboards, rules and alerts, proven: files against the code and against Grafana's types, and every expression
//! against a Prometheus that watches a live server to which known things are done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod expression;
mod files;
mod live;
mod prometheus;
mod questions;
mod traffic;

use common::program;
