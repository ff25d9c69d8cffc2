//! Requests for permission: asked, answered, withdrawn, late.

use super::*;

#[test]
fn permission_is_asked_and_answered_once() {
    let mut bench = Bench::busy();
    assert_eq!(bench.line(&line::permission("p")), ["emit permissions 1", "keep"]);
    assert_eq!(bench.answer("p"), (Ok(()), vec!["write allow".into(), "emit permissions 0".into()]));
    assert_eq!(bench.answer("p"), (Err(PermissionError::Late), vec![]));
    assert_eq!(bench.answer("q"), (Err(PermissionError::Unknown), vec![]));
}

#[test]
fn withdrawn_permission_is_late() {
    let mut bench = Bench::busy();
    bench.line(&line::permission("p"));
    assert_eq!(bench.line(&line::withdrawal("p")), ["emit permissions 0", "keep"]);
    assert_eq!(bench.line(&line::withdrawal("p")), ["keep"]);
    assert_eq!(bench.answer("p").0, Err(PermissionError::Late));
}

#[test]
fn unanswered_permission_is_denied_in_time() {
    let mut bench = Bench::busy();
    bench.line(&line::permission("p"));
    let limit = bench.protocol.config.session.permission_timeout;
    // The child is alive meanwhile.
    let seen = Observation { unread: true, ..Observation::default() };
    assert_eq!(bench.observed_after(limit, false, seen), ["write deny", "emit permissions 0"]);
}

#[test]
fn end_of_the_turn_withdraws_its_permissions() {
    let mut bench = Bench::busy();
    bench.line(&line::permission("p"));
    assert_eq!(bench.line(line::RESULT), ["emit permissions 0", "end turn 1 answered 0.5", "keep"]);
    assert_eq!(bench.answer("p").0, Err(PermissionError::Late));
}

#[test]
fn permission_of_nobodys_turn_is_denied_at_once() {
    assert_eq!(Bench::serving().line(&line::permission("p")), ["write deny"]);
    let mut cancelled = Bench::busy();
    cancelled.act(|protocol, now| protocol.cancel_turn(TurnId(1), now));
    assert_eq!(cancelled.line(&line::permission("p")), ["write deny"]);
    let mut withheld = shared();
    marked_turn(&mut withheld, 1, "m-1");
    assert_eq!(withheld.line(&line::permission("p")), ["write deny"]);
}

#[test]
fn policy_answers_without_asking() {
    for (policy, expected) in
        [(PermissionPolicy::Allow, "write allow"), (PermissionPolicy::Deny, "write deny")]
    {
        let mut config = config();
        config.permissions.policy = policy;
        let mut bench = Bench::serving_with(config);
        bench.turn(1);
        assert_eq!(bench.line(&line::permission("p")), [expected]);
    }
}

#[test]
fn other_requests_of_the_cli_are_refused() {
    let mut bench = Bench::busy();
    let request = r#"{"type":"control_request","request_id":"h","request":{"subtype":"hook_callback"}}"#;
    assert_eq!(bench.line(request), ["write error"]);
}

#[test]
fn answer_to_a_stopping_child_is_late() {
    let mut bench = Bench::busy();
    bench.line(&line::permission("p"));
    bench.act(Protocol::stop);
    assert_eq!(bench.answer("p"), (Err(PermissionError::Late), vec![]));
}

#[test]
fn question_of_an_mcp_server_is_cancelled_in_time() {
    let mut bench = Bench::busy();
    assert_eq!(bench.line(&line::elicitation("e")), ["emit permissions 1", "keep"]);
    let limit = bench.protocol.config.session.permission_timeout;
    let seen = Observation { unread: true, ..Observation::default() };
    assert_eq!(bench.observed_after(limit, false, seen), ["write cancel", "emit permissions 0"]);
}

#[test]
fn question_of_an_mcp_server_for_nobody_is_cancelled() {
    assert_eq!(Bench::serving().line(&line::elicitation("e")), ["write cancel"]);
    for policy in [PermissionPolicy::Allow, PermissionPolicy::Deny] {
        let mut config = config();
        config.permissions.policy = policy;
        let mut bench = Bench::serving_with(config);
        bench.turn(1);
        assert_eq!(bench.line(&line::elicitation("e")), ["write cancel"]);
    }
}
