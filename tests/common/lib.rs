//! What the tests with real processes share: a Messages API on loopback, a server under test with its client, and
//! a look at the process table. Nothing here knows how pilotlight works inside: it sees what a user sees.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(clippy::new_without_default, reason = "tests create these by name alone")]

pub mod answer;
pub mod api;
pub mod attached;
pub mod bench;
pub mod block;
pub mod browser;
pub mod built;
pub mod client;
pub mod guard;
pub mod installed;
pub mod keyring;
pub mod layout;
pub mod metrics;
pub mod output;
pub mod place;
pub mod ports;
pub mod process;
pub mod program;
pub mod proxy;
pub mod request;
pub mod rules;
pub mod s3;
pub mod script;
pub mod server;
pub mod sse;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long anything that should happen soon may take on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// Marker of a tool that ends when the file `go` is in the session's working directory; while it runs, `began` is there.
/// Tools must be allowed.
pub const UNTIL_GO: &str =
    r#"[[tool:Bash {"command":"touch began; while ! test -e go; do sleep 0.05; done; rm go began"}]]"#;

/// How soon a condition that no event announces (a process being gone, a gauge) is looked at again: at first, and at
/// most, for looking costs those who are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_millis(50);

/// Waits until `met` says yes; a failure names what was waited for.
pub async fn eventually(what: &str, within: Duration, mut met: impl FnMut() -> bool) {
    eventually_some(what, within, async || met().then_some(())).await;
}

/// Waits until `probe` finds something, and hands it over.
pub async fn eventually_some<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    let mut pause = LOOK_AGAIN;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN_AT_MOST);
    }
}

/// Lines of a stream for a message: one to a line, the long ones cut.
pub fn shown(lines: &[serde_json::Value]) -> String {
    const LONG_ENOUGH: usize = 400;
    let cut = |line: &serde_json::Value| line.to_string().chars().take(LONG_ENOUGH).collect::<String>();
    lines.iter().map(|line| format!("\n    {}", cut(line))).collect()
}
