//! Texts for the running turn: given while a tool runs, taken back at its end, owned if the CLI begins a turn with them.

use super::*;
use crate::child::steering::Steer;
use crate::model::SteerError;

const CALL: &str = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t"}]},"parent_tool_use_id":null,"uuid":"u-1"}"#;
const RESULT_OF_TOOL: &str = r#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t"}]},"parent_tool_use_id":null,"uuid":"u-2"}"#;
const SAID: &str = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"}]},"parent_tool_use_id":null,"uuid":"u-3"}"#;

type Reply = oneshot::Receiver<Result<bool, SteerError>>;

fn steer(bench: &mut Bench) -> (Reply, Vec<String>) {
    let (reply, read) = oneshot::channel();
    bench.protocol.steer(Steer { text: "hurry".into(), id: uuid::Uuid::from_u128(7), reply });
    (read, bench.drain())
}

/// The answer to the latest request that takes a text back.
fn withdrawn(bench: &mut Bench, cancelled: bool) -> Vec<String> {
    let request = bench.protocol.requests_sent;
    bench.line(&format!(
        r#"{{"type":"control_response","response":{{"subtype":"success","request_id":"withdraw-{request}","response":{{"cancelled":{cancelled}}}}}}}"#
    ))
}

/// A child at work on turn 1, which calls a tool.
fn in_a_tool() -> Bench {
    let mut bench = Bench::busy();
    assert_eq!(bench.line(line::WORKING), [""; 0]);
    assert_eq!(bench.line(CALL), ["first output", "keep"]);
    bench
}

/// The CLI has a text of turn 1, which has just ended.
fn unsettled() -> (Bench, Reply) {
    let mut bench = in_a_tool();
    let (reply, sent) = steer(&mut bench);
    assert_eq!(sent, ["write user"]);
    let ended = bench.line(line::RESULT);
    assert_eq!(ended, ["write cancel_async_message", "emit active true", "end turn 1 answered 0.5", "keep"]);
    (bench, reply)
}

/// The journal has one message between two lines of the conversation.
#[test]
fn texts_read_together_are_one_record() {
    let mut bench = in_a_tool();
    let replies = [steer(&mut bench), steer(&mut bench)];
    bench.protocol.journal.take();
    bench.line(RESULT_OF_TOOL);
    bench.line(SAID);
    let kept = String::from_utf8_lossy(&bench.protocol.journal.take()).into_owned();
    assert!(kept.contains(r"hurry\n\nhurry"), "{kept}");
    drop(replies);
}

#[test]
fn text_is_read_when_a_tool_has_ended() {
    let mut bench = Bench::busy();
    bench.line(line::WORKING);
    let (mut reply, sent) = steer(&mut bench);
    assert_eq!(sent, [""; 0], "no tool runs");
    assert_eq!(bench.line(CALL), ["first output", "write user", "keep"]);
    assert_eq!(bench.line(RESULT_OF_TOOL), ["keep"]);
    assert_eq!(bench.line(SAID), ["write cancel_async_message", "keep"]);
    assert!(reply.try_recv().is_err());
    assert_eq!(withdrawn(&mut bench, false), [""; 0]);
    assert_eq!(reply.try_recv().unwrap(), Ok(true));
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    assert_eq!(bench.turn(2), ["write user", "grant reader"]);
}

#[test]
fn text_without_a_tool_is_never_given_to_the_cli() {
    let mut bench = Bench::busy();
    bench.line(line::WORKING);
    let (mut reply, _) = steer(&mut bench);
    assert_eq!(bench.line(SAID), ["first output", "keep"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    assert_eq!(reply.try_recv().unwrap(), Ok(false));
}

#[test]
fn text_that_was_taken_back_begins_no_turn() {
    let (mut bench, mut reply) = unsettled();
    assert_eq!(bench.turn(2), [""; 0], "it waits");
    let settled = withdrawn(&mut bench, true);
    assert_eq!(settled, ["emit active false", "write user", "grant reader"]);
    assert_eq!(reply.try_recv().unwrap(), Ok(false));
    assert_eq!(bench.line(line::WAITING), [""; 0], "of the turn before");
    bench.line(line::WORKING);
    assert_eq!(bench.line(line::RESULT), ["end turn 2 answered 0", "keep"]);
}

#[test]
fn text_that_was_read_at_the_end_begins_no_turn() {
    for idle_first in [true, false] {
        let (mut bench, mut reply) = unsettled();
        bench.turn(2);
        let began = if idle_first {
            assert_eq!(bench.line(line::WAITING), [""; 0]);
            withdrawn(&mut bench, false)
        } else {
            assert_eq!(withdrawn(&mut bench, false), [""; 0]);
            bench.line(line::WAITING)
        };
        assert_eq!(began, ["emit active false", "write user", "grant reader"], "{idle_first}");
        assert_eq!(reply.try_recv().unwrap(), Ok(true));
    }
}

/// Its lines go to nobody, and it is ended at once.
#[test]
fn turn_of_a_text_that_was_left_is_interrupted() {
    for answer_first in [true, false] {
        let (mut bench, mut reply) = unsettled();
        bench.turn(2);
        if answer_first {
            withdrawn(&mut bench, false);
        }
        assert_eq!(bench.line(line::INIT), ["write interrupt", "emit model claude-opus-4-8"]);
        if !answer_first {
            withdrawn(&mut bench, false);
        }
        assert_eq!(reply.try_recv().unwrap(), Ok(false));
        assert_eq!(bench.line(SAID), [""; 0]);
        let over = bench.line(&line::RESULT.replace("0.5", "0.75"));
        assert_eq!(over, ["emit own turn 0.25", "write user", "grant reader"]);
        assert_eq!(bench.line(line::WAITING), ["emit active false"]);
        bench.line(line::WORKING);
        bench.line(line::DELTA);
        let over = bench.line(&line::RESULT.replace("0.5", "1.75"));
        assert_eq!(over, ["end turn 2 answered 1", "keep"]);
    }
}

#[test]
fn silence_about_a_text_holds_no_turn_for_long() {
    let (mut bench, mut reply) = unsettled();
    bench.turn(2);
    let released = bench.next(None);
    assert_eq!(released, ["emit active false", "write user", "grant reader"]);
    assert_eq!(reply.try_recv().unwrap(), Ok(false));
}

#[test]
fn interrupt_takes_texts_back_first() {
    let mut bench = in_a_tool();
    let (mut reply, _) = steer(&mut bench);
    let interrupted = bench.act(|protocol, now| protocol.interrupt_turn(TurnId(1), now));
    assert_eq!(interrupted, ["write cancel_async_message", "write interrupt"]);
    let request = bench.protocol.requests_sent - 1;
    bench.line(&format!(
        r#"{{"type":"control_response","response":{{"subtype":"success","request_id":"withdraw-{request}","response":{{"cancelled":true}}}}}}"#
    ));
    assert_eq!(reply.try_recv().unwrap(), Ok(false));
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    assert_eq!(steer(&mut bench).0.try_recv().unwrap(), Err(SteerError::NoRunningTurn));
}

#[test]
fn no_text_goes_to_a_turn_without_a_reader() {
    let no_turn = Err(SteerError::NoRunningTurn);
    assert_eq!(steer(&mut Bench::serving()).0.try_recv().unwrap(), no_turn);
    let mut cancelled = in_a_tool();
    cancelled.act(|protocol, now| protocol.cancel_turn(TurnId(1), now));
    assert_eq!(steer(&mut cancelled).0.try_recv().unwrap(), no_turn);
    let mut stopping = in_a_tool();
    stopping.act(Protocol::stop);
    assert_eq!(steer(&mut stopping).0.try_recv().unwrap(), no_turn);
}

/// A CLI that does not report when it rests (2.0) gets none: its own turn would not be noticed.
#[test]
fn text_for_an_older_cli_is_kept() {
    let mut bench = Bench::busy();
    bench.line(CALL);
    let (mut reply, sent) = steer(&mut bench);
    assert_eq!(sent, [""; 0]);
    bench.line(line::RESULT);
    assert_eq!(reply.try_recv().unwrap(), Ok(false));
}
