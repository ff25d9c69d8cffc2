//! Requests about the MCP servers of a running child.

use super::*;
use crate::child::servers::AskServers;

type Done = oneshot::Receiver<Result<(), crate::model::McpError>>;

fn ask(bench: &mut Bench, ask: AskServers) -> bool {
    let now = bench.now;
    bench.protocol.ask_servers(ask, now)
}

fn reconnect() -> (AskServers, Done) {
    let (reply, done) = oneshot::channel();
    (AskServers::Reconnect("m".into(), reply), done)
}

fn status() -> AskServers {
    AskServers::Status(oneshot::channel().0)
}

/// Who asks whether servers are connected may leave; a change is carried out also if nobody waits for it.
#[test]
fn abandoned_questions_leave_room_for_changes() {
    let mut bench = Bench::serving();
    assert!((0..100).all(|_| ask(&mut bench, status())), "nobody waits for these");
    let mut changes = 0;
    while ask(&mut bench, reconnect().0) {
        changes += 1;
        assert!(changes < 100, "changes have a limit");
    }
    assert!(changes > 1);
    // What is refused was not written.
    let (refused, mut done) = reconnect();
    bench.drain();
    assert!(!ask(&mut bench, refused));
    assert_eq!(bench.drain(), [""; 0]);
    assert_eq!(done.try_recv(), Err(oneshot::error::TryRecvError::Closed));
}

#[test]
fn stopping_child_is_not_asked() {
    let mut bench = Bench::serving();
    bench.act(Protocol::stop);
    assert!(!ask(&mut bench, reconnect().0));
    assert_eq!(bench.drain(), [""; 0]);
}
