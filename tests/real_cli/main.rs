//! The server with the real CLI, which talks to a Messages API of the tests on loopback. `tests/run` installs the CLI;
//! without it these tests say that they are left out, and fail where nothing may be left out.
//!
//! The whole suite runs with each version of [`installed::VERSIONS`] by `tests/run --long`, all of them side by side. By default
//! each version has the traps, the journal and all that the CLI does by itself; `bench` says what one version has alone. The older
//! ones have a smoke test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(clippy::duplicate_mod, reason = "the suite is there once for each version of the CLI")]

use pilotlight_test_support as common;
#[path = "suite.rs"]
mod v2_1_197;
#[path = "suite.rs"]
mod v2_1_332;

use common::installed::{self, cli, missing};

/// The suite's modules in this file.
fn versions_here() -> Vec<String> {
    let modules =
        include_str!("main.rs").lines().filter_map(|line| line.strip_prefix("mod v")?.strip_suffix(';'));
    modules.map(|module| module.replace('_', ".")).collect()
}

#[test]
fn every_version_has_the_suite() {
    assert_eq!(versions_here(), installed::VERSIONS);
    for version in installed::VERSIONS {
        if installed::find(version).is_none() {
            missing(&format!("without the CLI {version}, its whole suite"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mentions_read_nothing_on_an_older_version() {
    for version in installed::OLDER {
        let Some(cli) = cli(version) else { return };
        v2_1_332::attachments::reads_nothing(v2_1_332::bench::Bench::on(cli).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_context_has_a_code_in_an_older_version() {
    if !installed::is_long() {
        return installed::left_out("a full context of an older version is tested by tests/run --long");
    }
    for version in installed::OLDER {
        let Some(cli) = cli(version) else { return };
        v2_1_332::context::full(&v2_1_332::bench::Bench::on(cli).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_arrives_in_an_older_version() {
    for version in installed::OLDER {
        let Some(cli) = cli(version) else { return };
        v2_1_332::history::arrives(&v2_1_332::bench::Bench::on(cli).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_without_a_mirror_loses_nothing() {
    for version in installed::OLDER {
        let Some(cli) = cli(version) else { return };
        v2_1_332::journal::at_the_answer(&v2_1_332::bench::Bench::on(cli).await).await;
    }
}

/// An older version that does not report its state works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_version_without_state_events_works() {
    for version in installed::OLDER {
        let Some(cli) = cli(version) else { return };
        v2_1_332::smoke::run(&v2_1_332::bench::Bench::on(cli).await, version, false).await;
    }
}
