//! Interrupts, hangs and the stop: how a turn or a child is brought to its end.

use super::*;

#[test]
fn interrupt_is_sent_once_and_only_for_its_turn() {
    let mut bench = Bench::busy();
    assert!(bench.act(|protocol, now| protocol.interrupt_turn(TurnId(2), now)).is_empty());
    assert!(bench.act(|protocol, now| protocol.cancel_turn(TurnId(2), now)).is_empty());
    let interrupt = |bench: &mut Bench| bench.act(|protocol, now| protocol.interrupt_turn(TurnId(1), now));
    assert_eq!(interrupt(&mut bench), ["write interrupt"]);
    assert!(interrupt(&mut bench).is_empty());
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
}

#[test]
fn cancelled_turn_ends_for_its_reader_at_once() {
    let mut bench = Bench::busy();
    bench.line(line::DELTA);
    let found = bench.act(|protocol, now| protocol.cancel_turn(TurnId(1), now));
    assert_eq!(found, ["end reader", "discard", "revoke reader", "write interrupt"]);
    assert!(bench.line(line::DELTA).is_empty(), "nobody reads it");
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5"]);
}

#[test]
fn disobeyed_interrupts_stop_the_child() {
    let mut bench = Bench::busy();
    bench.act(|protocol, now| protocol.interrupt_turn(TurnId(1), now));
    let pause = bench.protocol.config.session.stop_interrupt;
    for _ in 1..5 {
        bench.protocol.on_output(bench.now + pause);
        assert_eq!(bench.after(pause), ["write interrupt"]);
    }
    assert_eq!(bench.after(pause), ["hang no_progress", "terminate"]);
    let protocol = bench.protocol;
    assert_eq!((protocol.kill_reason, protocol.is_killed()), (Some(KillReason::Hung), false));
}

#[test]
fn slow_reader_is_ended_by_the_next_interrupt() {
    let mut bench = Bench::busy();
    bench.act(|protocol, now| protocol.interrupt_turn(TurnId(1), now));
    let pause = bench.protocol.config.session.stop_interrupt;
    let seen = Observation { reader_is_slow: true, ..Observation::default() };
    assert_eq!(bench.observed_after(pause, false, seen), ["end reader", "discard", "write interrupt"]);
}

#[test]
fn turn_timeout_interrupts_the_child() {
    let mut bench = Bench::busy();
    let limit = bench.protocol.config.session.turn_timeout;
    assert_eq!(bench.after(limit), ["end reader", "discard", "revoke reader", "write interrupt"]);
}

#[test]
fn oversized_line_ends_the_turn() {
    let mut bench = Bench::busy();
    assert_eq!(
        bench.act(Protocol::on_oversized_line),
        ["error line_too_long", "truncated", "end reader", "discard", "revoke reader", "write interrupt"]
    );
    assert_eq!(Bench::serving().act(Protocol::on_oversized_line), ["error line_too_long", "truncated"]);
}

#[test]
fn errors_reach_the_reader_with_their_code() {
    for (error, code) in [
        (TurnError::LineTooLong { limit: 1 }, "line_too_long"),
        (TurnError::TimedOut { limit: SECOND }, "timeout"),
    ] {
        let mut bench = Bench::busy();
        bench.protocol.cancel_running(error, bench.now);
        let ended = std::mem::take(&mut bench.protocol.actions).into_iter().find_map(|action| match action {
            Action::EndReader(end) => Some(end),
            _ => None,
        });
        drop(ended.expect("its reader gets the end").send());
        let outcome = futures_util::FutureExt::now_or_never(bench.readers.remove(0).finish());
        let status = outcome.expect("the end is there").status;
        assert!(matches!(status, crate::turn::Status::Aborted(error) if error.code() == code));
    }
}
// ---- Hangs ----

fn vitals(stopped: bool, ticks: u64) -> Option<Vitals> {
    Some(Vitals { stopped, ticks, starved: Duration::ZERO })
}

#[test]
fn silent_child_is_pinged_and_declared_dead() {
    for (stopped, busy, pings, detector) in [
        (false, false, 2, "hang ping"),
        (true, false, 2, "hang stopped"),
        (false, true, 3, "hang no_progress"),
    ] {
        let mut bench = Bench::busy();
        bench.line(line::DELTA);
        let mut ticks = 0;
        for _ in 0..pings {
            ticks += u64::from(busy);
            assert_eq!(bench.next(vitals(stopped, ticks)), ["write mcp_status"]);
        }
        ticks += u64::from(busy);
        assert_eq!(bench.next(vitals(stopped, ticks)), [detector, "kill tree"]);
        assert_eq!(bench.protocol.kill_reason, Some(KillReason::Hung));
    }
}

#[test]
fn answered_ping_is_measured() {
    let mut bench = Bench::busy();
    bench.line(line::DELTA);
    assert_eq!(bench.next(None), ["write mcp_status"]);
    bench.now += SECOND;
    let answer = line::GREETING.replace("handshake", "ping-1");
    assert_eq!(bench.line(&answer), ["ping took 1"]);
    assert!(bench.line(&answer).is_empty());
}

#[test]
fn silence_of_our_own_making_is_no_hang() {
    for seen in [
        Observation { reader_is_slow: true, ..Observation::default() },
        Observation { unread: true, ..Observation::default() },
    ] {
        let mut bench = Bench::busy();
        for _ in 0..20 {
            assert!(bench.observed_after(30 * SECOND, false, seen).is_empty());
        }
    }
}

#[test]
fn watchdog_is_due_only_while_a_turn_runs() {
    let mut bench = Bench::serving();
    assert!(!bench.protocol.watchdog_is_due(bench.now + 1000 * SECOND));
    bench.turn(1);
    assert!(!bench.protocol.watchdog_is_due(bench.now));
    assert!(bench.protocol.watchdog_is_due(bench.now + 1000 * SECOND));
}

#[test]
fn stalled_write_kills_the_child() {
    let mut bench = Bench::busy();
    let seen = Observation::default();
    assert_eq!(bench.observed_after(SECOND, true, seen), ["hang stdin_stall", "kill tree"]);
    let mut stopping = Bench::serving();
    stopping.act(Protocol::stop);
    assert!(stopping.observed_after(Duration::ZERO, true, seen).is_empty());
}

// ---- The stop ----

#[test]
fn each_phase_has_its_next_step() {
    type Prepare = fn() -> Bench;
    let opening: Prepare = || {
        let mut bench = Bench::opening(config(), &LaunchSettings::default());
        bench.drain();
        bench
    };
    let cases: [(Prepare, &[&[&str]]); 3] = [
        (opening, &[&["close input"], &["terminate"], &["kill tree"]]),
        (Bench::serving, &[&["close input"], &["terminate"], &["kill tree"]]),
        (Bench::busy, &[&["write interrupt"], &["close input"], &["terminate"], &["kill tree"]]),
    ];
    for (prepare, steps) in cases {
        let mut bench = prepare();
        let (first, rest) = steps.split_first().expect("steps");
        assert_eq!(bench.act(Protocol::stop), *first);
        assert!(bench.act(Protocol::stop).is_empty(), "once");
        let session = bench.protocol.config.session.clone();
        let mut pauses = vec![session.stop_eof, session.stop_term];
        if rest.len() == 3 {
            pauses.insert(0, session.stop_interrupt);
        }
        for (step, pause) in rest.iter().zip(pauses) {
            bench.protocol.on_output(bench.now + pause);
            assert_eq!(bench.after(pause), **step);
        }
        assert!(bench.protocol.is_killed() && !bench.protocol.is_given_up(bench.now));
        assert!(bench.protocol.is_given_up(bench.now + SECOND));
    }
}

#[test]
fn end_of_the_interrupted_turn_closes_the_input() {
    let mut bench = Bench::busy();
    bench.act(Protocol::stop);
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "close input", "keep"]);
    let protocol = bench.protocol;
    assert!(protocol.stop_began.is_some() && !protocol.is_killed() && protocol.running.is_none());
}

#[test]
fn closed_output_kills_the_child_after_a_grace() {
    let mut bench = Bench::busy();
    assert_eq!(bench.act(|protocol, now| protocol.on_output_end(true, now)), ["error partial_eof"]);
    assert_eq!(bench.next(None), ["kill tree"]);
    let protocol = bench.protocol;
    assert_eq!(protocol.kill_reason, Some(KillReason::Protocol("it closed its output")));
    assert_eq!(protocol.running.map(|turn| turn.job.turn), Some(TurnId(1)));
    // One that is ending has its own deadline.
    let mut ending = Bench::serving();
    ending.act(Protocol::stop);
    let due = ending.protocol.next_deadline();
    assert!(ending.act(|protocol, now| protocol.on_output_end(false, now)).is_empty());
    assert_eq!(ending.protocol.next_deadline(), due);
}

#[test]
fn first_reason_to_kill_counts() {
    let mut bench = Bench::serving();
    bench.act(|protocol, now| protocol.declare_dead(KillReason::MemoryLimit(1), now));
    bench.act(|protocol, now| protocol.declare_dead(KillReason::Hung, now));
    assert_eq!(bench.protocol.kill_reason, Some(KillReason::MemoryLimit(1)));
}
