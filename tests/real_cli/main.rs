//! The server with the real CLI, which talks to a Messages API of the tests on loopback. `tests/run` installs the CLI;
//! without it these tests say that they are left out, and fail where nothing may be left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod attachments;
mod bare;
mod basics;
mod bench;
mod commands;
mod crashes;
mod embedded;
mod evictions;
mod history;
mod interrupts;
mod restarts;
mod tools;
mod traps_api;
mod traps_asks;
mod traps_ends;
mod traps_files;
mod traps_input;
mod traps_kills;
mod traps_own_turns;
mod traps_slow;
mod traps_turns;
mod versions;
mod without;

use common::installed;

/// The sources of the tests here, to tell their names.
macro_rules! sources {
    ($($file:ident)*) => { [$(include_str!(concat!(stringify!($file), ".rs"))),*] };
}

const SOURCES: &[&str] = &sources![
    attachments basics commands crashes evictions history interrupts restarts tools traps_api traps_asks traps_ends traps_files traps_input traps_kills traps_own_turns traps_slow traps_turns versions without
];

#[test]
fn what_is_left_out_is_said() {
    let lines: Vec<_> = SOURCES.iter().flat_map(|source| source.lines()).collect();
    let is_test = |pair: &&[&str]| pair.first().is_some_and(|line| line.starts_with("#[tokio::test"));
    let named = lines.windows(2).filter(is_test).filter_map(|pair| pair.get(1)?.strip_prefix("async fn "));
    let names: Vec<_> = named.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name).collect();
    assert!(names.len() > SOURCES.len(), "the names of the tests are found: {names:?}");
    if installed::find().is_none() {
        installed::say(&format!(
            "left out without the real CLI: {} tests: {}",
            names.len(),
            names.join(", ")
        ));
    }
}
