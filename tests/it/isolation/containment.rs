//! In a PID namespace nothing outlives its session, whatever a tool does.

use super::{served, tool};
use crate::common::SOON;
use crate::common::place::wait_until;
use crate::common::process::all;
use crate::common::program::{Answer, place};

/// Processes on this host with this word among their arguments, in any namespace.
fn running(word: &str) -> usize {
    all().iter().filter(|process| process.arguments().iter().any(|argument| argument == word)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_without_a_trace_ends_with_its_session() {
    let place = place();
    let Some((_program, site)) = served(&place, &["namespaces"], "").await else { return };
    assert_eq!(site.metric("containment_info", &["rung=\"namespace\""]).await, 1.0);
    // Neither its environment, nor its session, nor its parent leads to the child.
    let seconds = format!("{}", 1_000_000 + std::process::id());
    tool(&site, "alice", &format!("setsid env -i sleep {seconds} > /dev/null 2>&1 < /dev/null & sleep 0.1"))
        .await;
    assert_eq!(running(&seconds), 1);
    assert_eq!(Answer::of(site.session("DELETE", "default", "alice")).await.status, 200);
    assert!(wait_until(SOON, || running(&seconds) == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_ends_with_a_killed_server() {
    let place = place();
    let Some((program, site)) = served(&place, &["namespaces"], "").await else { return };
    let seconds = format!("{}", 2_000_000 + std::process::id());
    tool(&site, "alice", &format!("setsid env -i sleep {seconds} > /dev/null 2>&1 < /dev/null & sleep 0.1"))
        .await;
    assert_eq!(running(&seconds), 1);
    program.signal(rustix::process::Signal::KILL);
    assert!(wait_until(SOON, || running(&seconds) == 0));
}
