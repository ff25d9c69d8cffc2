//! Properties over any sequence of lines, orders and times.

use super::calls::{BEGIN, END, asked, launch, made};
use super::*;

/// Something that happens to a protocol.
#[derive(Debug, Clone)]
enum Step {
    Line(String),
    Turn,
    Interrupt,
    Cancel,
    Stop,
    Oversized,
    OutputEnd,
    Time(u64, bool, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lines = prop_oneof![
        Just(line::GREETING.to_owned()),
        Just(line::INIT.to_owned()),
        Just(line::DELTA.to_owned()),
        Just(line::RESULT.to_owned()),
        Just(line::OWN_RESULT.to_owned()),
        Just(line::WORKING.to_owned()),
        Just(line::WAITING.to_owned()),
        Just(line::permission("p")),
        Just(line::withdrawal("p")),
        Just(line::task_started("t")),
        Just(line::task_ended("t")),
        Just(echo("m")),
        Just(BEGIN.to_owned()),
        Just(END.to_owned()),
        Just(made("a")),
        Just(asked("a")),
        Just("no JSON".to_owned()),
    ];
    let step = prop_oneof![
        12 => lines.prop_map(Step::Line),
        6 => Just(Step::Turn),
        2 => Just(Step::Interrupt),
        2 => Just(Step::Cancel),
        1 => Just(Step::Stop),
        1 => Just(Step::Oversized),
        1 => Just(Step::OutputEnd),
        4 => (0_u64..100, any::<bool>(), any::<bool>()).prop_map(|(s, stalled, slow)| Step::Time(s, stalled, slow)),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn any_sequence_ends_each_turn_once(steps in steps(), is_shared: bool, has_tools: bool) {
        let mut config = config();
        config.cli.background_tasks = is_shared;
        let mut bench = Bench::opening(config, &if has_tools { launch() } else { LaunchSettings::default() });
        let (mut given, mut ended, mut stopped, mut last) = (0, Vec::new(), false, None);
        for step in steps {
            // As its session does: one turn at a time, and none before the child is ready.
            let may_give = bench.protocol.handshake.complete && ended.len() == given;
            match step {
                Step::Line(line) => {
                    let had_reader = bench.protocol.has_reader();
                    let is_passed_on = bench.protocol.passed_on().has(line.as_bytes());
                    bench.protocol.on_output(bench.now);
                    let fate = bench.protocol.on_line(line.as_bytes(), bench.now);
                    prop_assert!(fate == Fate::Drop || had_reader, "a line without a reader is kept: {line}");
                    if is_passed_on {
                        // The connection does not ask.
                        prop_assert_eq!((fate, bench.protocol.actions.len()), (Fate::Keep, 0));
                    }
                }
                Step::Turn if may_give => {
                    let (job, reader) = job(given as u64);
                    let mark = is_shared.then(|| "m".to_owned());
                    let taken = bench.protocol.take_turn(job, mark, bench.now);
                    prop_assert_eq!(taken.is_ok(), !bench.protocol.is_stopping());
                    if taken.is_ok() {
                        bench.readers.push(reader);
                        last = Some(TurnId(given as u64));
                        given += 1;
                    }
                }
                Step::Turn => {}
                Step::Interrupt => last.into_iter().for_each(|turn| bench.protocol.interrupt_turn(turn, bench.now)),
                Step::Cancel => last.into_iter().for_each(|turn| bench.protocol.cancel_turn(turn, bench.now)),
                Step::Stop => bench.protocol.stop(bench.now),
                Step::Oversized => bench.protocol.on_oversized_line(bench.now),
                Step::OutputEnd => bench.protocol.on_output_end(false, bench.now),
                Step::Time(seconds, stalled, reader_is_slow) => {
                    bench.now += Duration::from_secs(seconds);
                    let seen = Observation { reader_is_slow, ..Observation::default() };
                    bench.protocol.on_time(bench.now, stalled, seen);
                }
            }
            stopped |= bench.protocol.is_ending();
            for action in std::mem::take(&mut bench.protocol.actions) {
                match action {
                    Action::EndTurn(turn, _) => ended.push(turn.job.turn),
                    Action::Emit(ChildEvent::Ready) => prop_assert!(ended.is_empty()),
                    _ => {}
                }
            }
            let expected: Vec<TurnId> = (0..ended.len() as u64).map(TurnId).collect();
            prop_assert_eq!(&ended, &expected, "each once, in order");
            prop_assert!(ended.len() <= given);
            // A child that is to go, or that owes an answer, is never forgotten.
            let waits = bench.protocol.running.is_some() || bench.protocol.held.is_some();
            if waits || (stopped && !bench.protocol.over) {
                prop_assert!(bench.protocol.next_deadline().is_some());
            }
        }
        let open = given - ended.len();
        let protocol = bench.protocol;
        prop_assert_eq!(open, usize::from(protocol.running.is_some()) + usize::from(protocol.held.is_some()));
    }
}
