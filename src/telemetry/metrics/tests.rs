//! Series in a recorder.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshot};

use pilotlight_shim::report::KillMethod;

use super::*;
use crate::config::Rung;
use crate::error::StartFailure;
use crate::model::{SessionState, Usage};
use crate::telemetry::metrics::labels::{
    BrokerRefusal, EgressDirection, EgressOutcome, Label, RefreshOutcome, TokenKind, UpstreamStatus,
};
use crate::telemetry::metrics::series::COMMIT;

fn record(act: impl FnOnce(&Metrics)) -> Snapshot {
    let recorder = DebuggingRecorder::new();
    let metrics = Metrics::register(&recorder, "pilotlight_");
    act(&metrics);
    recorder.snapshotter().snapshot()
}

/// The metrics of the core: those of the server are registered where there is one.
fn core() -> impl Iterator<Item = &'static Metric> {
    Metrics::ALL.iter()
}

/// `name{label=value}` and its value; a histogram's is how many samples it has.
fn series(snapshot: Snapshot) -> Vec<(String, f64)> {
    let series = snapshot.into_vec().into_iter().map(|(key, _, _, value)| {
        let labels: Vec<String> =
            key.key().labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(samples) => samples.len() as f64,
        };
        (format!("{}{{{}}}", key.key().name(), labels.join(",")), value)
    });
    series.collect()
}

#[test]
fn series_exist_at_zero_from_the_start() {
    let snapshot = record(|_| {});
    let all = series(snapshot);
    let mut expected: BTreeSet<String> = BTreeSet::new();
    for metric in core() {
        let name = format!("pilotlight_{}", metric.name);
        match metric.labels {
            _ if metric.name == "build_info" => {
                expected.insert(format!("{name}{{version={},commit={COMMIT}}}", env!("CARGO_PKG_VERSION")));
            }
            [] => {
                expected.insert(format!("{name}{{}}"));
            }
            [label] => {
                expected.extend(label.values.iter().map(|value| format!("{name}{{{}={value}}}", label.name)))
            }
            [outcome, reason] if metric.name == "spawns_total" => {
                for value in reason.values {
                    let outcome_value = outcome.values[usize::from(*value != "none")];
                    expected.insert(format!("{name}{{outcome={outcome_value},reason={value}}}"));
                }
            }
            [first, second] => {
                for value in first.values {
                    let row = second.values.iter();
                    expected.extend(
                        row.map(|other| format!("{name}{{{}={value},{}={other}}}", first.name, second.name)),
                    );
                }
            }
            more => panic!("{} labels", more.len()),
        }
    }
    let found: BTreeSet<String> = all.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(found, expected);
    for (name, value) in &all {
        assert_eq!(*value, if name.contains("build_info") { 1.0 } else { 0.0 }, "{name}");
    }
    assert!(all.len() < 300, "{} series", all.len());
}

#[test]
fn metrics_are_described_with_unit() {
    let snapshot = record(|_| {});
    for (key, unit, help, _) in snapshot.into_vec() {
        let name = key.key().name();
        let metric = catalogue().find(|metric| format!("pilotlight_{}", metric.name) == name).unwrap();
        assert_eq!(help.as_deref(), Some(metric.help), "{name}");
        let expected = match metric.unit {
            Unit::Count => ::metrics::Unit::Count,
            Unit::Seconds => ::metrics::Unit::Seconds,
            Unit::Bytes => ::metrics::Unit::Bytes,
        };
        assert_eq!(unit, Some(expected), "{name}");
    }
}

#[test]
fn names_state_kind_and_unit() {
    let names: BTreeSet<&str> = catalogue().map(|metric| metric.name).collect();
    assert_eq!(names.len(), catalogue().count(), "a name is there twice");
    for metric in catalogue() {
        let name = metric.name;
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
        let base = name.trim_end_matches("_total");
        assert_eq!(base.ends_with("_seconds"), metric.unit == Unit::Seconds, "{name}");
        assert_eq!(base.ends_with("_bytes"), metric.unit == Unit::Bytes, "{name}");
        assert!(metric.help.ends_with('.') && metric.help.len() > 20, "{name}");
        assert_eq!(metric.buckets.is_empty(), metric.kind != Kind::Histogram, "{name}");
        assert!(metric.buckets.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
        for label in metric.labels {
            assert!(label.values.len() <= 16, "{name}");
            assert!(!["user", "session", "conversation"].contains(&label.name), "{name}");
        }
    }
}

#[test]
fn each_handle_changes_its_own_series() {
    let second = Duration::from_secs(1);
    let snapshot = record(|metrics| {
        let enomem = StartFailure::Spawn { reason: "enomem", message: String::new(), source: None };
        let unknown = StartFailure::Spawn { reason: "never heard of", message: String::new(), source: None };
        metrics.spawns.increment(SpawnReason::None);
        metrics.spawns.increment((&enomem).into());
        metrics.spawns.increment((&unknown).into());
        metrics.spawn_duration.record(SpawnPhase::Exec, second);
        metrics.spawn_duration.record(SpawnPhase::Ready, second);
        metrics.exits.increment(ExitReason::StatusUnknown);
        metrics.session_lifetime.record(second);
        metrics.restarts.increment(RestartCause::Crash);
        metrics.recovery_duration.record(second);
        metrics.crash_loops.increment(1);
        metrics.evictions.increment(EvictionReason::Idle);
        metrics.hibernations.increment(1);
        metrics.tool_waits.increment(ToolWaitEnd::Expired);
        metrics.spare_claims.increment(SpareClaim::Missed);
        metrics.spare_ends.increment(SpareEnd::Outdated);
        metrics.contexts_lost.increment(ContextLost::LatestTurns);
        metrics.conversations_recovered.increment(RecoverySource::Journal);
        metrics.mirrored_lines.increment(23);
        metrics.journal_errors.increment(JournalError::Sync);
        metrics.cli_notices.increment(CliNotice::LateAllow);
        metrics.turns.increment(TurnOutcome::Ok);
        metrics.turn_duration.record(TurnOutcome::Ok, second);
        let usage = Usage { input_tokens: 5, cache_read_input_tokens: 7, ..Usage::default() };
        metrics.count_usage(ModelClass::of(Some("claude-sonnet-9")), &usage, 0.25);
        metrics.upstream_requests.increment(UpstreamStatus::Limited);
        metrics.upstream_tokens.add(ModelClass::Opus, TokenKind::Output, 9);
        metrics.upstream_retries.increment(1);
        metrics.broker_refusals.increment(BrokerRefusal::Token);
        metrics.egress_connections.increment(EgressOutcome::NotAllowed);
        metrics.egress_bytes.add(EgressDirection::Sent, 8);
        metrics.oauth_refreshes.increment(RefreshOutcome::Rejected);
        metrics.upstream_in_flight.set(13);
        metrics.upstream_waiting.set(14);
        metrics.broker_connections.set(15);
        metrics.upstream_first_byte.record(second);
        metrics.memory_approximate.set(flag(true));
        metrics.open_fds.set(11);
        metrics.open_fds_limit.set(12);
        metrics.pressure.set(Resource::Io, 0.5);
        metrics.pressure_known.set(flag(true));
        metrics.runtime_lag.record(second);
        metrics.first_output.record(FirstOutput::Warm, second);
        metrics.admission_rejected.increment(AdmissionRejected::PerUser);
        metrics.queue_wait.record(second);
        metrics.hangs.increment(HangDetector::NoProgress);
        metrics.ping.record(second);
        metrics.stop_steps.increment(StopStep::TreeKill);
        metrics.stop_duration.record(StopHow::Killed, second);
        metrics.leftovers_killed.add(KillMethod::Walk, 3);
        metrics.tree_kill.record(KillMethod::Marker, second);
        metrics.swept_at_start.increment(2);
        metrics.records_broken.increment(1);
        metrics.data_dir_writable.set(flag(true));
        metrics.data_dir_bytes.set(DiskSpace::Used, 16.0);
        metrics.data_dir_inodes.set(DiskSpace::Free, 17.0);
        metrics.sessions_on_disk.set(18);
        metrics.sessions_on_disk_bytes.set(19);
        metrics.sessions_on_disk_files.set(20);
        metrics.retention_last_round.set(21);
        metrics.retention_deleted.increment(RetentionReason::Bytes);
        metrics.retention_freed_bytes.increment(22);
        metrics.retention_failures.increment(1);
        metrics.cli_unjudged.set(flag(true));
        metrics.cli_fallback.set(flag(true));
        metrics.protocol_errors.increment(ProtocolError::PartialEof);
        metrics.stream_bytes.add(Stream::Stdout, 1000);
        metrics.truncations.increment(Stream::Stderr);
        metrics.actor_panics.increment(ActorKind::Sampler);
        metrics.sample_errors.increment(SampleSource::Process);
        metrics.session_moved(None, Some(SessionState::Dormant));
        metrics.session_moved(None, Some(SessionState::Dormant));
        metrics.session_moved(Some(SessionState::Dormant), Some(SessionState::Failed));
        metrics.sessions_limit.set(10);
        metrics.children_limit.set(20);
        metrics.starts_limit.set(30);
        metrics.starts_in_flight.set(40);
        metrics.admission_queue_length.set(50);
        metrics.admission_state.set(3);
        metrics.memory_budget.set(60);
        metrics.session_memory_limit.set(61);
        metrics.memory_available.set(f64::from(1 << 30));
        metrics.zombies.set(2);
        metrics.sessions_frozen.set(2);
        metrics.spares.set(SpareState::Ready, 5.0);
        metrics.spares_wanted.set(6);
        metrics.oldest_idle.set(3);
        metrics.oldest_turn.set(4);
        metrics.memory.set(MemoryKind::SharedFile, 70.0);
        metrics.processes.set(ProcessKind::Descendant, 80.0);
        metrics.session_memory.record(1 << 20);
        metrics.sample_duration.record(second);
        metrics.last_sample.set(Duration::from_secs(1_700_000_000));
        metrics.containment.select(KillMethod::Walk);
        metrics.isolation.set(Rung::Seccomp, 1.0);
        metrics.isolation_missing.set(Rung::Uid, 1.0);
        metrics.containment.select(KillMethod::Cgroup);
    });
    let changed: BTreeSet<String> = series(snapshot)
        .into_iter()
        .filter(|(name, value)| *value != 0.0 && !name.contains("build_info"))
        .map(|(name, value)| format!("{} {value}", name.trim_start_matches("pilotlight_")))
        .collect();
    let expected = [
        "actor_panics_total{actor=sampler} 1",
        "admission_queue_length{} 50",
        "admission_rejected_total{reason=per_user} 1",
        "admission_state{} 3",
        "children_limit{} 20",
        "containment_info{rung=cgroup} 1",
        "cost_micro_usd_total{model=sonnet} 250000",
        "upstream_requests_total{status=429} 1",
        "upstream_tokens_total{model=opus,kind=output} 9",
        "upstream_retries_total{} 1",
        "broker_refusals_total{reason=token} 1",
        "egress_connections_total{outcome=not_allowed} 1",
        "egress_bytes_total{direction=sent} 8",
        "oauth_refreshes_total{outcome=rejected} 1",
        "upstream_in_flight{} 13",
        "upstream_waiting{} 14",
        "broker_connections{} 15",
        "upstream_first_byte_seconds{} 1",
        "memory_is_approximate{} 1",
        "open_fds{} 11",
        "open_fds_limit{} 12",
        "pressure_is_known{} 1",
        "pressure_ratio{resource=io} 0.5",
        "runtime_lag_seconds{} 1",
        "tokens_total{model=sonnet,kind=cache_read} 7",
        "tokens_total{model=sonnet,kind=input} 5",
        "contexts_lost_total{kind=latest_turns} 1",
        "conversations_recovered_total{source=journal} 1",
        "mirrored_lines_total{} 23",
        "journal_errors_total{reason=sync} 1",
        "cli_notices_total{kind=late_allow_not_run} 1",
        "crash_loops_total{} 1",
        "data_dir_bytes{space=used} 16",
        "data_dir_inodes{space=free} 17",
        "data_dir_writable{} 1",
        "cli_version_unjudged{} 1",
        "cli_fallback{} 1",
        "evictions_total{reason=idle} 1",
        "exits_total{reason=status_unknown} 1",
        "first_output_seconds{start=warm} 1",
        "hangs_total{detector=no_progress} 1",
        "last_sample_timestamp_seconds{} 1700000000",
        "leftovers_killed_total{rung=walk} 3",
        "memory_available_bytes{} 1073741824",
        "isolation_info{rung=seccomp} 1",
        "isolation_missing{rung=uid} 1",
        "memory_budget_bytes{} 60",
        "memory_bytes{kind=shared_file} 70",
        "hibernations_total{} 1",
        "sessions_frozen{} 2",
        "tool_waits_total{end=expired} 1",
        "spare_claims_total{result=missed} 1",
        "spare_ends_total{reason=outdated} 1",
        "spares{state=ready} 5",
        "spares_wanted{} 6",
        "oldest_idle_seconds{} 3",
        "oldest_turn_seconds{} 4",
        "ping_seconds{} 1",
        "processes{kind=descendant} 80",
        "protocol_errors_total{kind=partial_eof} 1",
        "queue_wait_seconds{} 1",
        "records_broken_total{} 1",
        "recovery_duration_seconds{} 1",
        "restarts_total{cause=crash} 1",
        "retention_deleted_total{reason=bytes} 1",
        "retention_failures_total{} 1",
        "retention_freed_bytes_total{} 22",
        "retention_last_round_timestamp_seconds{} 21",
        "sample_duration_seconds{} 1",
        "sample_errors_total{source=process} 1",
        "session_lifetime_seconds{} 1",
        "session_memory_bytes{} 1",
        "session_memory_limit_bytes{} 61",
        "sessions_limit{} 10",
        "sessions_on_disk_bytes{} 19",
        "sessions_on_disk_files{} 20",
        "sessions_on_disk{} 18",
        "sessions{state=dormant} 1",
        "sessions{state=failed} 1",
        "spawn_duration_seconds{phase=exec} 1",
        "spawn_duration_seconds{phase=ready} 1",
        "spawns_total{outcome=failed,reason=enomem} 1",
        "spawns_total{outcome=failed,reason=other} 1",
        "spawns_total{outcome=ok,reason=none} 1",
        "starts_in_flight{} 40",
        "starts_limit{} 30",
        "stop_duration_seconds{how=killed} 1",
        "stop_steps_total{step=tree_kill} 1",
        "stream_bytes_total{stream=stdout} 1000",
        "swept_at_start_total{} 2",
        "tree_kill_seconds{rung=marker} 1",
        "truncations_total{stream=stderr} 1",
        "turn_duration_seconds{outcome=ok} 1",
        "turns_total{outcome=ok} 1",
        "zombies{} 2",
    ];
    assert_eq!(changed, expected.map(str::to_owned).into());
    // One expectation at least for each metric: a new one has to be added above.
    for metric in core().filter(|metric| metric.name != "build_info") {
        assert!(
            expected.iter().any(|line| line.starts_with(&format!("{}{{", metric.name))),
            "{}",
            metric.name
        );
    }
}

#[test]
fn models_are_counted_by_family() {
    let family = |name| ModelClass::of(name).as_str();
    assert_eq!(family(None), "default");
    assert_eq!(family(Some("us.anthropic.claude-3-5-haiku-20241022-v1:0")), "haiku");
    assert_eq!(family(Some("opus[1m]")), "opus");
    assert_eq!(family(Some("whatever a caller writes")), "other");
}

#[cfg(feature = "server")]
#[test]
fn server_metrics_share_the_prefix() {
    let recorder = DebuggingRecorder::new();
    let metrics = HttpMetrics::register(&recorder, "pilotlight_");
    let all = series(recorder.snapshotter().snapshot());
    let names: BTreeSet<&str> = all.iter().map(|(name, _)| name.split('{').next().unwrap()).collect();
    let expected: BTreeSet<String> =
        HttpMetrics::ALL.iter().map(|metric| format!("pilotlight_{}", metric.name)).collect();
    assert_eq!(names, expected.iter().map(String::as_str).collect());
    assert!(all.iter().all(|(_, value)| *value == 0.0) && all.len() < 100, "{}", all.len());

    metrics.answered(Route::Chat, StatusClass::Failed, Duration::from_secs(1));
    metrics.turns.increment(Dialect::OpenAi);
    metrics.auth_failures.increment(AuthFailure::InvalidKey);
    metrics.limited.increment(HttpLimit::Turns);
    metrics.render.record(Duration::from_secs(1));
    let changed: BTreeSet<String> = series(recorder.snapshotter().snapshot())
        .into_iter()
        .filter(|(_, value)| *value != 0.0)
        .map(|(name, value)| format!("{} {value}", name.trim_start_matches("pilotlight_")))
        .collect();
    let expected = [
        "auth_failures_total{reason=invalid_key} 1",
        "http_limited_total{limit=turns} 1",
        "http_requests_total{route=chat,status=5xx} 1",
        "http_response_seconds{kind=turn} 1",
        "http_turns_total{dialect=openai} 1",
        "metrics_render_seconds{} 1",
    ];
    assert_eq!(changed, expected.map(str::to_owned).into());
}

#[test]
fn state_labels_equal_their_display() {
    use SessionState::{Backoff, Busy, Dormant, Failed, Idle, Starting, Stopping};
    for state in [Dormant, Starting, Idle, Busy, Stopping, Backoff, Failed] {
        assert_eq!(SessionState::VALUES[state.index()], state.to_string());
    }
}

#[test]
fn counting_without_recorder_does_nothing() {
    ::metrics::with_recorder(|recorder| Metrics::register(recorder, "x_")).crash_loops.increment(1);
}

#[cfg(feature = "server")]
#[test]
fn exporter_shows_all_metrics_at_once() {
    use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in buckets("my_") {
        builder = builder.set_buckets_for_metric(Matcher::Full(name), buckets).unwrap();
    }
    let recorder = builder.build_recorder();
    let metrics = Metrics::register(&recorder, "my_");
    let text = recorder.handle().render();
    for metric in core() {
        let name = metric.full_name("my_");
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert!(text.contains(&format!("# HELP {name} {}\n", metric.help)), "{name} in {text}");
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} in {text}");
        let sample = if metric.kind == Kind::Histogram { format!("{name}_count") } else { name };
        assert!(text.lines().any(|line| line.starts_with(&sample)), "{sample} in {text}");
    }
    metrics.ping.record(Duration::from_millis(2));
    let text = recorder.handle().render();
    assert!(text.contains("my_ping_seconds_bucket{le=\"0.0025\"} 1"), "{text}");
    assert!(text.contains("my_ping_seconds_bucket{le=\"0.001\"} 0"), "{text}");
}
