//! Clients that nobody here has written, unmodified, against a real server: the official SDKs in Python, in the current
//! version and in one a year older, those for Node, LangChain, LiteLLM, the AI SDK, `llm`, `claude`, the Agent SDKs, a
//! page in a browser and curl. Their checks are the scripts beside this file. `tests/run` installs the
//! packages; without them these tests say that they are left out, and fail where nothing may be left out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use pilotlight_test_support as common;

mod attach;
#[path = "../real_cli/bench.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod bench;
mod clients;
mod curl;
mod fields;
mod fuzz;
mod keys;
mod matrix;
mod node;
mod page;
mod python;
mod readme;
mod real;

use common::program::{Program, place};
use python::{Age, Script};

/// The version of the CLI that the bench runs with.
fn version() -> String {
    common::installed::NEWEST.to_owned()
}

/// Carries a script out with a version of its SDK, on a server with this configuration.
async fn check(script: &'static str, age: Age, config: &str) {
    let Some(script) = Script::with_package(script, age) else { return };
    let place = place();
    let (_program, site) = Program::ready(&place, config).await;
    script.run(&place, &[("PILOTLIGHT_URL", &site.http), ("PILOTLIGHT_ADMIN_URL", &site.admin)]).await;
}

/// The tests of a script: one for each version of its SDK.
macro_rules! script {
    ($name:ident, $config:expr) => {
        mod $name {
            use super::{Age, check};

            #[tokio::test(flavor = "multi_thread")]
            async fn with_the_current_sdk() {
                check(stringify!($name), Age::Current, $config).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn with_a_year_old_sdk() {
                check(stringify!($name), Age::YearOld, $config).await;
            }
        }
    };
}

/// A script of Python packages that are tested in one version.
macro_rules! client {
    ($name:ident, $config:expr) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            check(stringify!($name), Age::Current, $config).await;
        }
    };
}

/// A script for Node.
macro_rules! in_node {
    ($name:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let Some(script) = Script::in_node(stringify!($name)) else { return };
            let place = place();
            let (_program, site) = Program::ready(&place, "").await;
            script
                .run(&place, &[("PILOTLIGHT_URL", &site.http), ("PILOTLIGHT_ADMIN_URL", &site.admin)])
                .await;
        }
    };
}

/// One turn at a time, one child, no patience.
const NARROW: &str = "[session]\nturn_queue = 0\nidle_timeout = \"200ms\"\n[limits]\nmax_children = 1\nqueue_deadline = \"300ms\"\n";

/// A stream does not wait long for its first word before it begins.
const RESTLESS: &str = "[http]\nheartbeat = \"300ms\"\n";

/// One request of a user is free again each second.
const LIMITED: &str = "[http]\nrequests_per_minute = 60\n";

script!(anthropic_turns, "");
script!(anthropic_errors, super::RESTLESS);
script!(anthropic_refused, super::NARROW);
script!(anthropic_limits, super::LIMITED);
script!(openai_limits, super::LIMITED);
script!(openai_turns, "");
script!(openai_errors, super::RESTLESS);
script!(openai_responses, "");
script!(anthropic_tools, "");
script!(openai_tools, "");
client!(langchain_turns, "");
client!(litellm_turns, "");
// It cannot set a header.
client!(llm_turns, "[http]\ndefault_user = \"someone\"\n");
in_node!(node_anthropic);
in_node!(node_openai);
in_node!(ai_turns);
