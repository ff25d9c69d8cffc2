use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use super::*;
use crate::model::ids::UserId;
use crate::telemetry::events::EventStream;
use crate::telemetry::metrics::Metrics;

const SECOND: Duration = Duration::from_secs(1);

fn key() -> SessionKey {
    SessionKey::new(UserId::new("secret name").unwrap(), "default").unwrap()
}

/// Level of the last log line.
#[derive(Default)]
struct LastLevel(Mutex<Option<tracing::Level>>);

impl tracing::Subscriber for &'static LastLevel {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(*event.metadata().level());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Everything that one event writes: log level, changed series, kinds in the stream.
fn written(emit: impl FnOnce(&Telemetry, &SessionKey)) -> String {
    let levels: &'static LastLevel = Box::leak(Box::default());
    let recorder = DebuggingRecorder::new();
    let telemetry = Telemetry::new(std::sync::Arc::new(Metrics::register(&recorder, "")));
    // Sets the baseline.
    let _ = recorder.snapshotter().snapshot();
    tracing::subscriber::with_default(levels, || emit(&telemetry, &key()));
    let mut line = Vec::new();
    let level = *levels.0.lock().unwrap();
    write!(line, "{}:", level.map_or("-", |level| level.as_str())).unwrap();
    let mut series: Vec<String> = Vec::new();
    for (key, _, _, value) in recorder.snapshotter().snapshot().into_vec() {
        let changed = match value {
            DebugValue::Counter(count) => count > 0,
            DebugValue::Gauge(value) => value.into_inner() != 0.0 && key.key().name() != "build_info",
            DebugValue::Histogram(samples) => !samples.is_empty(),
        };
        if changed {
            let labels: Vec<&str> = key.key().labels().map(|label| label.value()).collect();
            series.push(format!("{}{{{}}}", key.key().name(), labels.join(",")));
        }
    }
    series.sort();
    write!(line, " {}:", series.join(" ")).unwrap();
    for event in EventStream::of(telemetry.events.clone()).read_all() {
        write!(line, " {:?}", event.kind).unwrap();
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn each_event_writes_log_metric_and_stream() {
    let early = StartFailure::ExitedEarly { exit: "exit code 1".to_owned(), stderr: String::new() };
    let exit = Exit { reason: "signal", detail: "signal 9".to_owned(), at: SystemTime::UNIX_EPOCH };
    let signal = ExitReason::Signal;
    let (draining, timed_out) = (TurnError::Draining, TurnError::TimedOut { limit: SECOND });
    let table = [
        (
            written(|to, key| to.started(key, 2, SECOND)),
            "-: spawn_duration_seconds{exec}: Started { generation: 2 }",
        ),
        (
            written(|to, key| to.ready(key, SECOND)),
            "-: spawn_duration_seconds{ready} spawns_total{ok,none}: Ready { took: 1s }",
        ),
        (
            written(|to, key| to.not_started(key, &early)),
            "WARN: spawns_total{failed,exited_early}: NotStarted { reason: \"exited_early\" }",
        ),
        (
            written(|to, key| to.exited(key, 2, signal, &exit, false)),
            "WARN: exits_total{signal}: Crashed(Exit { reason: \"signal\", detail: \"signal 9\", at: SystemTime { \
             tv_sec: 0, tv_nsec: 0 } })",
        ),
        (written(|to, key| to.exited(key, 2, signal, &exit, true)), "-: exits_total{signal}:"),
        (
            written(|to, key| to.restarted(key, RestartCause::Crash)),
            "INFO: restarts_total{crash}: Restarted { cause: \"crash\" }",
        ),
        (written(|to, key| to.circuit_opened(key)), "WARN: crash_loops_total{}: Paused"),
        (
            written(|to, key| to.evicted(key, EvictionReason::Idle)),
            "INFO: evictions_total{idle}: Evicted { reason: \"idle\" }",
        ),
        (
            written(|to, key| to.context_lost(key, ContextLost::LatestTurns)),
            "WARN: contexts_lost_total{latest_turns}: ContextLost { kind: \"latest_turns\" }",
        ),
        (written(|to, key| to.own_turn(key, 0.5)), "-: : OwnTurn { cost_usd: 0.5 }"),
        (
            written(|to, key| to.permission_needed(key, "r", "Bash")),
            "-: : PermissionNeeded { request_id: \"r\", tool_name: \"Bash\" }",
        ),
        (
            written(|to, key| to.turn_ended(key, TurnOutcome::Ok, None, SECOND)),
            "-: turn_duration_seconds{ok} turns_total{ok}: TurnEnded { outcome: \"ok\", took: 1s }",
        ),
        (
            written(|to, key| to.turn_ended(key, TurnOutcome::Timeout, Some(&timed_out), SECOND)),
            "-: turn_duration_seconds{timeout} turns_total{timeout}: TurnEnded { outcome: \"timeout\", took: 1s }",
        ),
        (
            written(|to, key| to.turn_refused(Some(key), &draining, SECOND)),
            "-: turn_duration_seconds{rejected} turns_total{rejected}: Refused { reason: \"draining\" }",
        ),
        (
            written(|to, key| to.turn_ended(key, TurnOutcome::Rejected, Some(&draining), SECOND)),
            "-: turn_duration_seconds{rejected} turns_total{rejected}: Refused { reason: \"draining\" }",
        ),
        (
            written(|to, _| to.turn_refused(None, &draining, SECOND)),
            "-: turn_duration_seconds{rejected} turns_total{rejected}:",
        ),
    ];
    for (found, expected) in table {
        assert_eq!(found, expected);
    }
}
