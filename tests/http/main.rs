//! The program and its HTTP service from outside: real processes, the simulated CLI, bytes on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod asking;
mod auth;
mod bad_input;
mod callers;
mod connections;
mod detached;
mod dialects;
mod exposure;
mod files;
mod happenings;
mod history;
mod hostile;
mod idempotency;
mod imports;
mod interface;
mod keyring;
mod limits;
mod log;
mod mcp;
mod operator;
mod page;
mod permissions;
mod planted;
mod privilege;
mod readiness;
mod revoked;
mod secrets;
mod sessions;
mod starts;
mod stops;
mod storage;
mod streams;
mod trust;
mod users;
mod vanishing;

use common::program;
