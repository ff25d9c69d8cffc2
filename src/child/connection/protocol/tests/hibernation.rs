//! When an idle child is frozen, and what thaws it.

use super::*;
use crate::child::servers::AskServers;

const AFTER: Duration = Duration::from_secs(20);

fn hibernating() -> Config {
    let mut config = config();
    config.session.hibernate_after = AFTER;
    config
}

/// A child that is frozen.
fn frozen() -> Bench {
    let mut bench = Bench::serving_with(hibernating());
    assert_eq!(bench.next(None), ["freeze"]);
    assert_eq!(bench.protocol.next_deadline(), None, "nothing is due until something needs it");
    bench
}

#[test]
fn idle_child_is_frozen_and_thawed_by_a_turn() {
    let mut bench = frozen();
    assert_eq!(bench.turn(1), ["thaw", "write user", "grant reader"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    assert_eq!(bench.after(AFTER - SECOND), [""; 0]);
    assert_eq!(bench.after(SECOND), ["freeze"]);
}

#[test]
fn child_at_work_is_not_frozen() {
    let mut bench = Bench::serving_with(hibernating());
    bench.turn(1);
    assert_eq!(bench.after(AFTER), ["write mcp_status"], "the watchdog, and nothing else");
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    assert_eq!(bench.after(AFTER), ["freeze"]);
}

/// The CLI connects to a server meanwhile, and writes nothing.
#[test]
fn request_about_servers_keeps_the_child_awake() {
    let mut bench = frozen();
    let connects = CONNECT_TRIES * bench.protocol.config.mcp.connect_timeout;
    let (reply, _done) = oneshot::channel();
    let now = bench.now;
    assert!(bench.protocol.ask_servers(AskServers::Reconnect("m".into(), reply), now));
    assert_eq!(bench.drain(), ["thaw", "write mcp_reconnect"]);
    assert_eq!(bench.protocol.freezes_at(), Some(now + connects.max(AFTER)));
}

#[test]
fn stop_thaws_first() {
    let mut bench = frozen();
    assert_eq!(bench.act(Protocol::stop), ["thaw", "close input"]);
    let mut bench = frozen();
    assert_eq!(bench.act(Protocol::terminate), ["thaw", "terminate"]);
    // A kill reaches a frozen process.
    let mut bench = frozen();
    assert_eq!(bench.act(|it, now| it.declare_dead(KillReason::Hung, now)), ["kill tree"]);
    assert_eq!(bench.protocol.freezes_at(), None);
}

#[test]
fn output_of_a_frozen_child_thaws_it() {
    let mut bench = frozen();
    assert_eq!(bench.line(line::INIT), ["thaw", "emit model claude-opus-4-8"]);
    assert_eq!(bench.after(AFTER), ["freeze"]);
}

#[test]
fn child_with_work_of_its_own_is_not_frozen() {
    let mut config = hibernating();
    config.cli.background_tasks = true;
    let mut bench = Bench::serving_with(config);
    assert_eq!(bench.line(line::WORKING), ["emit active true"]);
    assert_eq!(bench.after(2 * AFTER), [""; 0]);
    assert_eq!(bench.line(line::WAITING), ["emit active false"]);
    assert_eq!(bench.after(AFTER), ["freeze"]);
}

#[test]
fn child_is_never_frozen_by_default() {
    let mut bench = Bench::serving();
    assert_eq!(bench.after(24 * 3600 * SECOND), [""; 0]);
}
