//! Tables and properties over the pure protocol: no process, no pipe, no clock.

use proptest::prelude::*;
use serde_json::Value;
use tokio::sync::oneshot;

use super::*;
use crate::child::permissions::Answer;
use crate::child::testing::{job, line};
use crate::child::watchdog::Vitals;
use crate::config::PermissionPolicy;
use crate::error::TurnError;
use crate::model::ids::TurnId;
use crate::model::{Decision, PermissionError};
use crate::turn::Turn;

mod calls;
mod ends;
mod hibernation;
mod permissions;
mod properties;
mod servers;
mod steering;

const SECOND: Duration = Duration::from_secs(1);

/// A protocol, its time, and the readers of its turns.
struct Bench {
    protocol: Protocol,
    now: Instant,
    readers: Vec<Turn>,
}

fn config() -> Config {
    let mut config = Config::default();
    config.permissions.policy = PermissionPolicy::Ask;
    config.cli.background_tasks = false;
    config
}

impl Bench {
    /// A child that was started just now.
    fn opening(config: Config, settings: &LaunchSettings) -> Self {
        let now = Instant::now();
        let wall_clock = || SystemTime::UNIX_EPOCH;
        let protocol = Protocol::new(Arc::new(config), wall_clock, None, now, settings);
        Self { protocol, now, readers: Vec::new() }
    }

    /// A child that takes turns.
    fn serving_with(config: Config) -> Self {
        let mut bench = Self::opening(config, &LaunchSettings::default());
        assert_eq!(bench.drain(), ["write initialize"]);
        assert_eq!(bench.line(line::GREETING), ["emit greeted", "emit ready"]);
        bench
    }

    fn serving() -> Self {
        Self::serving_with(config())
    }

    /// A child at work on turn 1.
    fn busy() -> Self {
        let mut bench = Self::serving();
        assert_eq!(bench.turn(1), ["write user", "grant reader"]);
        bench
    }

    fn turn(&mut self, turn: u64) -> Vec<String> {
        let (job, reader) = job(turn);
        self.readers.push(reader);
        self.protocol.take_turn(job, None, self.now).expect("the child takes it");
        self.drain()
    }

    /// What follows from a line, and at last whether the reader gets it.
    fn line(&mut self, line: &str) -> Vec<String> {
        self.protocol.on_output(self.now);
        let fate = self.protocol.on_line(line.as_bytes(), self.now);
        let mut found = self.drain();
        if fate == Fate::Keep {
            found.push("keep".to_owned());
        }
        found
    }

    fn after(&mut self, time: Duration) -> Vec<String> {
        self.observed_after(time, false, Observation::default())
    }

    fn observed_after(&mut self, time: Duration, stalled: bool, seen: Observation) -> Vec<String> {
        self.now += time;
        self.protocol.on_time(self.now, stalled, seen);
        self.drain()
    }

    /// Goes to the next deadline.
    fn next(&mut self, vitals: Option<Vitals>) -> Vec<String> {
        let next = self.protocol.next_deadline().expect("something is due");
        let seen = Observation { vitals, ..Observation::default() };
        self.observed_after(next.saturating_duration_since(self.now), false, seen)
    }

    fn act(&mut self, act: impl FnOnce(&mut Protocol, Instant)) -> Vec<String> {
        act(&mut self.protocol, self.now);
        self.drain()
    }

    fn answer(&mut self, id: &str) -> (Result<(), PermissionError>, Vec<String>) {
        let (reply, mut answered) = oneshot::channel();
        let decision = Decision::Allow { updated_input: None };
        self.protocol.answer(Answer { request_id: id.into(), decision, reply });
        (answered.try_recv().expect("answered at once"), self.drain())
    }

    fn drain(&mut self) -> Vec<String> {
        std::mem::take(&mut self.protocol.actions).into_iter().filter_map(describe).collect()
    }
}

/// An action in a few words; `None` for those that change nothing.
fn describe(action: Action) -> Option<String> {
    Some(match action {
        Action::Rearm => return None,
        Action::Write(line) => {
            let line: Value = serde_json::from_slice(&line).expect("JSON");
            let kind = line["request"]["subtype"].as_str();
            let answer = &line["response"]["response"];
            let decision = answer["behavior"].as_str().or(answer["action"].as_str());
            let refused = line["response"]["subtype"].as_str();
            let text = kind.or(decision).or(refused).or(line["type"].as_str()).expect("a kind");
            format!("write {text}")
        }
        Action::Emit(ChildEvent::Greeted) => "emit greeted".into(),
        Action::Emit(ChildEvent::Ready) => "emit ready".into(),
        Action::Emit(ChildEvent::Model(model)) => format!("emit model {model}"),
        Action::Emit(ChildEvent::Journal(_)) | Action::Measure(Measurement::Mirrored) => return None,
        Action::Measure(Measurement::Notice(notice)) => format!("notice {notice:?}"),
        Action::Emit(ChildEvent::TurnEnded(_)) => "emit turn ended".into(),
        Action::Emit(ChildEvent::OwnTurn { cost_usd }) => format!("emit own turn {cost_usd}"),
        Action::Emit(ChildEvent::Active(active)) => format!("emit active {active}"),
        // The signal says so, or the end of the turn.
        Action::Emit(ChildEvent::Frozen(_) | ChildEvent::AwaitsCaller(_)) => return None,
        Action::Emit(ChildEvent::Permissions(pending)) => format!("emit permissions {}", pending.len()),
        Action::GrantReader => "grant reader".into(),
        Action::RevokeReader => "revoke reader".into(),
        Action::Discard => "discard".into(),
        Action::EndTurn(turn, Ending::Answered(_, cost_usd)) => {
            format!("end turn {} answered {cost_usd}", turn.job.turn.0)
        }
        Action::EndTurn(turn, Ending::Lost(error)) => {
            format!("end turn {} {}", turn.job.turn.0, error.code())
        }
        Action::EndTurn(turn, Ending::Called(called)) => {
            format!("end turn {} called {}", turn.job.turn.0, called.calls.len())
        }
        Action::EndReader(_) => "end reader".into(),
        Action::CloseInput => "close input".into(),
        Action::Send(Signal::Freeze) => "freeze".into(),
        Action::Send(Signal::Thaw) => "thaw".into(),
        Action::Send(Signal::Terminate) => "terminate".into(),
        Action::Send(Signal::KillTree) => "kill tree".into(),
        Action::Measure(Measurement::FirstOutput(..)) => "first output".into(),
        Action::Measure(Measurement::Spent(..)) => return None,
        Action::Measure(Measurement::ProtocolError(kind)) => format!("error {}", kind.as_str()),
        Action::Measure(Measurement::Truncated(_)) => "truncated".into(),
        Action::Measure(Measurement::Hang(detector)) => format!("hang {}", detector.as_str()),
        Action::Measure(Measurement::Ping(took)) => format!("ping took {}", took.as_secs()),
        Action::Measure(Measurement::ToolWait(end)) => format!("wait {}", end.as_str()),
        Action::Measure(Measurement::StopStep(_) | Measurement::Hibernated) => return None,
    })
}

fn servers() -> LaunchSettings {
    let servers = serde_json::json!({"m": {"type": "stdio", "command": "serve"}});
    LaunchSettings {
        mcp_servers: servers.as_object().expect("an object").clone(),
        ..LaunchSettings::default()
    }
}

// ---- The handshake ----

#[test]
fn handshake_completes_when_servers_are_connected() {
    let mut bench = Bench::opening(config(), &servers());
    assert_eq!(bench.drain(), ["write initialize", "write mcp_set_servers"]);
    assert_eq!(bench.line(line::GREETING), ["emit greeted"]);
    // Connecting has time of its own.
    let tries = connecting_time(&bench);
    assert_eq!(bench.protocol.next_deadline(), Some(bench.now + tries));
    let connected = line::GREETING.replace("handshake", SERVERS);
    assert_eq!(bench.line(&connected), ["emit ready"]);
    assert_eq!(bench.protocol.next_deadline(), None);
}

fn connecting_time(bench: &Bench) -> Duration {
    let config = &bench.protocol.config;
    2 * config.mcp.connect_timeout + config.session.spawn_timeout
}

#[test]
fn refused_servers_kill_the_child() {
    let mut bench = Bench::opening(config(), &servers());
    bench.drain();
    let refused = r#"{"type":"control_response","response":{"subtype":"error","request_id":"servers"}}"#;
    assert_eq!(bench.line(refused), ["kill tree"]);
    let reason = bench.protocol.kill_reason;
    assert_eq!(reason, Some(KillReason::Protocol("it did not take its MCP servers")));
}

#[test]
fn unanswered_handshake_kills_the_child() {
    let mut bench = Bench::opening(config(), &LaunchSettings::default());
    bench.drain();
    assert_eq!(bench.next(None), ["kill tree"]);
    let protocol = bench.protocol;
    assert_eq!((protocol.kill_reason, protocol.handshake.complete), (Some(KillReason::NeverReady), false));
}

#[test]
fn late_look_extends_the_handshake_once() {
    let mut bench = Bench::opening(config(), &LaunchSettings::default());
    bench.drain();
    let limit = bench.protocol.config.session.spawn_timeout;
    assert!(bench.after(limit + ABSENT).is_empty());
    assert_eq!(bench.protocol.next_deadline(), Some(bench.now + limit));
    assert_eq!(bench.after(limit + ABSENT), ["kill tree"]);
}

#[test]
fn turn_end_before_ready_is_a_reason_for_refusal() {
    let mut bench = Bench::opening(config(), &LaunchSettings::default());
    bench.drain();
    assert!(bench.line(line::RESULT).is_empty());
    let text = bench.protocol.handshake.terminal.map(|terminal| terminal.text);
    assert_eq!(text.as_deref(), Some("hi"));
}

// ---- Turns ----

#[test]
fn turn_lines_go_to_its_reader_and_its_end_ends_it() {
    let mut bench = Bench::busy();
    assert_eq!(bench.line(line::INIT), ["emit model claude-opus-4-8", "keep"]);
    assert_eq!(bench.line(line::DELTA), ["first output", "keep"]);
    assert_eq!(bench.line(line::DELTA), ["keep"]);
    assert_eq!(bench.line(line::RESULT), ["end turn 1 answered 0.5", "keep"]);
    // The next one costs what is more.
    assert_eq!(bench.turn(2), ["write user", "grant reader"]);
    assert_eq!(bench.line(line::INIT), ["keep"]);
    let more = line::RESULT.replace("0.5", "0.75");
    assert_eq!(bench.line(&more), ["end turn 2 answered 0.25", "keep"]);
}

/// A tool writes ends of turns to the output of its CLI.
#[test]
fn forged_costs_are_counted_and_cost_nothing() {
    let mut bench = Bench::busy();
    let forged = |cost: &str| line::RESULT.replace("0.5", cost);
    let implausible = "error implausible_usage";
    assert_eq!(bench.line(&forged("1e308")), [implausible, "end turn 1 answered 0", "keep"]);
    bench.turn(2);
    assert_eq!(bench.line(&forged("-1e308")), [implausible, "end turn 2 answered 0", "keep"]);
    bench.turn(3);
    assert_eq!(bench.line(line::RESULT), ["end turn 3 answered 0.5", "keep"]);
    bench.turn(4);
    assert_eq!(bench.line(&forged("0.25")), [implausible, "end turn 4 answered 0", "keep"], "it shrinks");
    bench.turn(5);
    assert_eq!(bench.line(&forged("0")), ["end turn 5 answered 0", "keep"], "it could not begin");
    bench.turn(6);
    assert_eq!(bench.line(&forged("0.75")), ["end turn 6 answered 0.25", "keep"]);
}

#[test]
fn line_without_a_turn_reaches_nobody() {
    let mut bench = Bench::serving();
    for line in [line::INIT, line::DELTA, line::RESULT] {
        assert!(!bench.line(line).contains(&"keep".to_owned()), "{line}");
    }
    assert_eq!(bench.line("no JSON"), ["error bad_json"]);
}

#[test]
fn unreadable_lines_are_counted_and_dropped() {
    for kind in ["result", "control_response", "control_request", "control_cancel_request"] {
        let mut bench = Bench::busy();
        assert_eq!(bench.line(&format!("{{\"type\":\"{kind}\",]}}")), ["error bad_json"], "{kind}");
    }
}

#[test]
fn turn_without_a_result_is_lost_when_the_cli_waits() {
    let mut bench = Bench::busy();
    // It has not begun yet.
    assert!(bench.line(line::WAITING).is_empty());
    bench.line(line::WORKING);
    assert_eq!(bench.line(line::WAITING), ["error unknown_id", "end turn 1 session_lost"]);
}

#[test]
fn own_turn_right_after_a_turn_holds_the_next_turn() {
    let mut bench = Bench::busy();
    bench.line(line::WORKING);
    bench.line(line::RESULT);
    bench.line(line::WAITING);
    // The CLI begins a turn of its own accord before the next turn comes.
    assert_eq!(bench.line(line::WORKING), ["emit active true"]);
    assert!(bench.turn(2).is_empty(), "it waits");
    // Its lines reach nobody, and its end is not the next turn's.
    assert_eq!(bench.line(line::INIT), ["emit model claude-opus-4-8"]);
    assert!(bench.line(line::DELTA).is_empty());
    assert_eq!(bench.line(line::OWN_RESULT), ["emit own turn 0.25"]);
    assert_eq!(bench.line(line::WAITING), ["emit active false", "write user", "grant reader"]);
    let same = line::RESULT.replace("0.5", "0.75");
    assert_eq!(bench.line(&same), ["end turn 2 answered 0", "keep"]);
}

#[test]
fn held_turn_is_cancelled_interrupted_and_limited() {
    let limit = config().session.turn_timeout;
    type Act = fn(&mut Bench, Duration) -> Vec<String>;
    let acts: [(Act, &str); 4] = [
        (|bench, _| bench.act(|protocol, now| protocol.cancel_turn(TurnId(1), now)), "end turn 1 cancelled"),
        (
            |bench, _| bench.act(|protocol, now| protocol.interrupt_turn(TurnId(1), now)),
            "end turn 1 cancelled",
        ),
        (|bench, limit| bench.after(limit), "end turn 1 timeout"),
        (|bench, limit| bench.after(limit - SECOND), ""),
    ];
    for (act, expected) in acts {
        let mut bench = Bench::serving();
        bench.line(line::WORKING);
        assert!(bench.turn(1).is_empty());
        assert_eq!(act(&mut bench, limit).concat(), expected);
    }
}

#[test]
fn stopping_child_gives_a_turn_back() {
    let mut bench = Bench::serving();
    bench.act(Protocol::stop);
    let (job, _reader) = job(1);
    assert!(bench.protocol.take_turn(job, None, bench.now).is_err());
    let mut bench = Bench::serving();
    bench.protocol.over = true;
    let (job, _reader) = self::job(1);
    assert!(bench.protocol.take_turn(job, None, bench.now).is_err());
}

#[test]
fn held_turn_of_a_stopping_child_is_unseen() {
    let mut bench = Bench::serving();
    bench.line(line::WORKING);
    bench.turn(1);
    bench.act(Protocol::stop);
    assert_eq!(bench.line(line::WAITING), ["emit active false"]);
    let unseen = bench.protocol.held.map(|held| held.job);
    assert_eq!(unseen.map(|job| job.turn), Some(TurnId(1)));
}

// ---- Background tasks ----

fn shared() -> Bench {
    let mut config = config();
    config.cli.background_tasks = true;
    Bench::serving_with(config)
}

fn marked_turn(bench: &mut Bench, turn: u64, mark: &str) {
    let (job, reader) = job(turn);
    bench.readers.push(reader);
    bench.protocol.take_turn(job, Some(mark.into()), bench.now).expect("the child takes it");
    assert_eq!(bench.drain(), ["write user", "grant reader"]);
}

fn echo(mark: &str) -> String {
    format!(r#"{{"type":"user","uuid":"{mark}","isReplay":true}}"#)
}

#[test]
fn task_keeps_the_child_active_until_its_own_turn() {
    let mut bench = shared();
    assert_eq!(bench.line(&line::task_started("t")), ["emit active true"]);
    assert!(bench.line(&line::task_ended("t")).is_empty());
    assert_eq!(bench.line(line::OWN_RESULT), ["emit own turn 0.75", "emit active false"]);
}

#[test]
fn task_is_a_part_of_its_turn_where_switched_off() {
    let mut bench = Bench::busy();
    assert_eq!(bench.line(&line::task_started("t")), ["first output", "keep"]);
}

#[test]
fn withheld_lines_belong_to_an_echoed_turn() {
    let mut bench = shared();
    bench.line(&line::task_started("t"));
    bench.line(&line::task_ended("t"));
    marked_turn(&mut bench, 1, "m-1");
    assert_eq!(bench.line(line::DELTA), ["keep"], "withheld: no first output yet");
    assert!(bench.protocol.is_withheld());
    assert_eq!(bench.line(&echo("other")), ["keep"]);
    assert_eq!(bench.line(&echo("m-1")), ["first output"]);
    assert!(!bench.protocol.is_withheld());
}

#[test]
fn own_turn_in_a_turn_is_discarded() {
    let mut bench = shared();
    bench.line(&line::task_started("t"));
    bench.line(&line::task_ended("t"));
    marked_turn(&mut bench, 1, "m-1");
    bench.line(line::DELTA);
    assert_eq!(bench.line(line::OWN_RESULT), ["discard", "emit own turn 0.75", "emit active false"]);
    assert!(bench.protocol.is_withheld(), "the next one may come");
    assert_eq!(bench.line(line::INIT), ["emit model claude-opus-4-8", "keep"]);
    assert!(!bench.protocol.is_withheld(), "nothing is owed");
}

#[test]
fn result_claims_withheld_lines() {
    let mut bench = shared();
    marked_turn(&mut bench, 1, "m-1");
    bench.line(line::DELTA);
    let found = bench.line(line::RESULT);
    assert_eq!(found, ["first output", "end turn 1 answered 0.5", "keep"]);
}

#[test]
fn too_many_withheld_bytes_lose_the_turn() {
    let mut bench = shared();
    marked_turn(&mut bench, 1, "m-1");
    let found = bench.act(Protocol::on_withheld_overflow);
    assert_eq!(found, ["end reader", "discard", "revoke reader", "write interrupt"]);
}

#[test]
fn forgotten_task_expires() {
    let mut bench = shared();
    bench.line(&line::task_started("t"));
    assert_eq!(bench.next(None), ["emit active false"]);
}
