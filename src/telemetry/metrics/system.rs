//! Metrics of a system. One entry is the handle, the name, the unit, the help and the buckets of a metric.

use ::metrics::{Counter, Gauge, Histogram};
use pilotlight_shim::report::KillMethod;

use super::catalogue::{Metric, Unit, declare};
use super::labels::{
    ActorKind, AdmissionRejected, BrokerRefusal, CliNotice, ContextLost, DiskSpace, EgressDirection,
    EgressOutcome, EvictionReason, ExitReason, FirstOutput, HangDetector, JournalError, MemoryKind,
    ModelClass, ProcessKind, ProtocolError, RecoverySource, RefreshOutcome, Resource, RestartCause,
    RetentionReason, SampleSource, SpareClaim, SpareEnd, SpareState, SpawnPhase, StopHow, StopStep, Stream,
    TokenKind, ToolWaitEnd, TurnOutcome, UpstreamStatus,
};
use super::series::{BuildInfo, By, ByBoth, Family, Registrar, Starts};
use crate::config::Rung;
use crate::model::{SessionState, Usage};

const MIB: f64 = 1_048_576.0;

declare! {
    /// Metrics of one system.
    #[cfg_attr(not(feature = "broker"), allow(dead_code, reason = "those of the broker exist at zero without it"))]
    Metrics:

    spawns: Starts = "spawns_total", Count, "Starts of children, by outcome and reason of failure.";
    exits: By<ExitReason, Counter> = "exits_total", Count, "Children that ended, by reason.";
    restarts: By<RestartCause, Counter> = "restarts_total", Count,
        "Restarts of children that failed or had to be replaced, by cause.";
    crash_loops: Counter = "crash_loops_total", Count,
        "Circuits that opened: sessions that pause after repeated failures.";
    evictions: By<EvictionReason, Counter> = "evictions_total", Count,
        "Children stopped while their session is kept, by reason.";
    hibernations: Counter = "hibernations_total", Count, "Times that an idle child was frozen.";
    tool_waits: By<ToolWaitEnd, Counter> = "tool_waits_total", Count,
        "Turns that waited for results of the caller's tools, by end: the results, another message, an interruption, the time limit, or a stop of the child.";
    retention_deleted: By<RetentionReason, Counter> = "retention_deleted_total", Count,
        "Sessions deleted by the retention rules, by reason.";
    retention_freed_bytes: Counter = "retention_freed_bytes_total", Bytes,
        "Bytes of sessions deleted by the retention rules.";
    retention_failures: Counter = "retention_failures_total", Count,
        "Deletions and rounds of the retention sweep that failed and are repeated.";
    spare_claims: By<SpareClaim, Counter> = "spare_claims_total", Count,
        "New users' sessions that got a spare (claimed), found none of their kind (missed) or one that did not fit (unfit).";
    spare_ends: By<SpareEnd, Counter> = "spare_ends_total", Count,
        "Spares that ended without having served a session, by reason.";
    contexts_lost: By<ContextLost, Counter> = "contexts_lost_total", Count,
        "Conversations resumed without some or all of their turns, by extent.";
    conversations_recovered: By<RecoverySource, Counter> = "conversations_recovered_total", Count,
        "Conversations whose transcript was damaged or missing and was restored without a loss, by source.";
    mirrored_lines: Counter = "mirrored_lines_total", Count,
        "Lines in which the CLI repeated what it had written to a transcript.";
    journal_errors: By<JournalError, Counter> = "journal_errors_total", Count,
        "Turns that a journal did not keep at once, and damaged journals that began again, by reason.";
    cli_notices: By<CliNotice, Counter> = "cli_notices_total", Count, "Notices of the CLI about itself, by kind.";
    records_broken: Counter = "records_broken_total", Count,
        "Session records that could not be parsed and were moved aside.";
    turns: By<TurnOutcome, Counter> = "turns_total", Count, "Turns that ended, by outcome.";
    tokens: ByBoth<ModelClass, TokenKind, Counter> = "tokens_total", Count,
        "Tokens of turns as counted by the model's API, by model family and kind.";
    cost: By<ModelClass, Counter> = "cost_micro_usd_total", Count,
        "Cost of turns as computed by the CLI, in millionths of a US dollar, by model family.";
    admission_rejected: By<AdmissionRejected, Counter> = "admission_rejected_total", Count,
        "Turns and starts refused for lack of capacity, by exhausted resource.";
    hangs: By<HangDetector, Counter> = "hangs_total", Count, "Hung children, by detector.";
    stop_steps: By<StopStep, Counter> = "stop_steps_total", Count, "Steps taken to stop children, by step.";
    leftovers_killed: By<KillMethod, Counter> = "leftovers_killed_total", Count,
        "Processes that outlived their child and were killed, by method.";
    swept_at_start: Counter = "swept_at_start_total", Count,
        "Processes of a former instance that were killed at startup.";
    protocol_errors: By<ProtocolError, Counter> = "protocol_errors_total", Count,
        "Violations of the stream protocol by children, by kind.";
    stream_bytes: By<Stream, Counter> = "stream_bytes_total", Bytes,
        "Bytes written to and read from children, by stream.";
    truncations: By<Stream, Counter> = "truncations_total", Count,
        "Times that a stream's data was cut off at a limit, by stream.";
    actor_panics: By<ActorKind, Counter> = "actor_panics_total", Count,
        "Panics of actors, by actor. Each is a defect of this program.";
    sample_errors: By<SampleSource, Counter> = "sample_errors_total", Count,
        "Measurements that failed, by source.";

    upstream_requests: By<UpstreamStatus, Counter> = "upstream_requests_total", Count,
        "Requests that the broker forwarded to the model's API, by status of the response.";
    upstream_tokens: ByBoth<ModelClass, TokenKind, Counter> = "upstream_tokens_total", Count,
        "Tokens in responses that the broker forwarded, by model family and kind.";
    upstream_retries: Counter = "upstream_retries_total", Count,
        "Requests to the broker that the CLI marked as a retry.";
    broker_refusals: By<BrokerRefusal, Counter> = "broker_refusals_total", Count,
        "Requests of children that the broker refused, by reason.";
    egress_connections: By<EgressOutcome, Counter> = "egress_connections_total", Count,
        "Connections of children to hosts of the allow list, by outcome.";
    egress_bytes: By<EgressDirection, Counter> = "egress_bytes_total", Bytes,
        "Bytes between children and hosts of the allow list, by direction.";
    oauth_refreshes: By<RefreshOutcome, Counter> = "oauth_refreshes_total", Count,
        "Renewals of OAuth tokens by the broker, by outcome.";

    upstream_in_flight: Gauge = "upstream_in_flight", Count,
        "Requests to the model's API whose response has not ended.";
    upstream_waiting: Gauge = "upstream_waiting", Count,
        "Requests that wait for a slot of broker.upstream_concurrency, or for memory for their body.";
    broker_connections: Gauge = "broker_connections", Count, "Connections of children to the broker.";
    data_dir_writable: Gauge = "data_dir_writable", Count,
        "1 if the data directory is writable, 0 if not (no space, read-only).";
    data_dir_bytes: By<DiskSpace, Gauge> = "data_dir_bytes", Bytes,
        "Bytes of the file system that holds the data directory, by whether they are free for this process.";
    data_dir_inodes: By<DiskSpace, Gauge> = "data_dir_inodes", Count,
        "Inodes of the file system that holds the data directory; 0 where it has no fixed number of them.";
    sessions_on_disk: Gauge = "sessions_on_disk", Count, "Sessions on disk at the last round of the retention sweep.";
    sessions_on_disk_bytes: Gauge = "sessions_on_disk_bytes", Bytes,
        "Bytes of all sessions on disk at the last round of the retention sweep.";
    sessions_on_disk_files: Gauge = "sessions_on_disk_files", Count,
        "Files and directories of all sessions on disk at the last round of the retention sweep.";
    retention_last_round: Gauge = "retention_last_round_timestamp_seconds", Seconds,
        "Unix time of the end of the last round of the retention sweep, or of the start of this process.";
    sessions: By<SessionState, Gauge> = "sessions", Count, "Sessions in memory, by state.";
    sessions_frozen: Gauge = "sessions_frozen", Count, "Sessions whose idle child is frozen, at the last measurement.";
    sessions_limit: Gauge = "sessions_limit", Count, "Maximum number of sessions in memory.";
    children_limit: Gauge = "children_limit", Count, "Maximum number of running children.";
    spares: By<SpareState, Gauge> = "spares", Count, "Children started ahead for new users, by state.";
    spares_wanted: Gauge = "spares_wanted", Count,
        "Children that should be ready for new users: between spares.min and spares.max, 0 under memory pressure.";
    starts_in_flight: Gauge = "starts_in_flight", Count, "Children that are starting.";
    starts_limit: Gauge = "starts_limit", Count, "Maximum number of children that start at the same time.";
    admission_queue_length: Gauge = "admission_queue_length", Count, "Starts that wait for a slot.";
    admission_state: Gauge = "admission_state", Count,
        "0 open, 1 evicting idle sessions, 2 no new children, 3 no new turns for sessions without a child.";
    memory: By<MemoryKind, Gauge> = "memory_bytes", Bytes,
        "Memory of all children and their descendants at the last measurement, by kind.";
    memory_budget: Gauge = "memory_budget_bytes", Bytes, "Maximum memory of all children together.";
    session_memory_limit: Gauge = "session_memory_limit_bytes", Bytes,
        "Maximum memory of one child and its descendants.";
    memory_available: Gauge = "memory_available_bytes", Bytes, "Available memory of the host.";
    memory_approximate: Gauge = "memory_is_approximate", Count,
        "1 if the kernel does not report memory by kind, so that the values are too high.";
    open_fds: Gauge = "open_fds", Count, "Open file descriptors of this process at the last measurement.";
    open_fds_limit: Gauge = "open_fds_limit", Count, "Maximum number of open file descriptors of this process.";
    pressure: By<Resource, Gauge> = "pressure_ratio", Count,
        "Share of the last ten seconds in which a task on this host waited for the resource (PSI).";
    pressure_known: Gauge = "pressure_is_known", Count,
        "1 if the kernel reports pressure (PSI); otherwise pressure_ratio is meaningless.";
    zombies: Gauge = "zombies", Count, "Zombie processes visible to this process.";
    oldest_idle: Gauge = "oldest_idle_seconds", Seconds,
        "Idle time of the warm session that has been idle longest.";
    oldest_turn: Gauge = "oldest_turn_seconds", Seconds, "Age of the oldest running turn.";
    processes: By<ProcessKind, Gauge> = "processes", Count,
        "Processes of all children at the last measurement, by kind.";
    containment: By<KillMethod, Gauge> = "containment_info", Count,
        "1 for the strongest available method of killing a process tree.";
    isolation: By<Rung, Gauge> = "isolation_info", Count,
        "1 for each rung of isolation that was proven and that children get.";
    isolation_missing: By<Rung, Gauge> = "isolation_missing", Count,
        "1 for each rung that isolation.rungs expects and children do not get.";
    cli_unjudged: Gauge = "cli_version_unjudged", Count, "1 if the version of the CLI in use was not reviewed.";
    cli_fallback: Gauge = "cli_fallback", Count,
        "1 if the configured CLI does not start and the last working version is used.";
    _build_info: BuildInfo = "build_info", Count, "Always 1; the labels are the version and the commit.";
    last_sample: Gauge = "last_sample_timestamp_seconds", Seconds, "Unix time of the last memory measurement.";

    upstream_first_byte: Histogram = "upstream_first_byte_seconds", Seconds,
        "Time from forwarding a request to the model's API until the head of its response.",
        &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 600.0];
    spawn_duration: By<SpawnPhase, Histogram> = "spawn_duration_seconds", Seconds,
        "Time to start a child: until its process runs, and until it is ready.",
        &[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0];
    queue_wait: Histogram = "queue_wait_seconds", Seconds, "Time a start waited for a slot.",
        &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
    turn_duration: By<TurnOutcome, Histogram> = "turn_duration_seconds", Seconds,
        "Time from accepting a turn to its end, by outcome.",
        &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
    first_output: By<FirstOutput, Histogram> = "first_output_seconds", Seconds,
        "Time from accepting a turn to its first output, for warm and cold children.",
        &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];
    recovery_duration: Histogram = "recovery_duration_seconds", Seconds,
        "Time from the crash of a child until the next one is ready.",
        &[0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
    stop_duration: By<StopHow, Histogram> = "stop_duration_seconds", Seconds,
        "Time from the request to stop a child to its end.",
        &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0];
    tree_kill: By<KillMethod, Histogram> = "tree_kill_seconds", Seconds,
        "Time to kill the remaining processes of a child, by method.",
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
    ping: Histogram = "ping_seconds", Seconds, "Time until a child answered a liveness check.",
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];
    session_memory: Histogram = "session_memory_bytes", Bytes,
        "Memory of one child with its descendants, at each measurement.",
        &[64.0 * MIB, 96.0 * MIB, 128.0 * MIB, 160.0 * MIB, 192.0 * MIB, 256.0 * MIB, 384.0 * MIB, 512.0 * MIB,
            768.0 * MIB, 1024.0 * MIB, 2048.0 * MIB, 4096.0 * MIB];
    session_lifetime: Histogram = "session_lifetime_seconds", Seconds,
        "Lifetime of a child from being ready to its end.",
        &[1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];
    sample_duration: Histogram = "sample_duration_seconds", Seconds,
        "Duration of one round of measurements, without its pauses.",
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
    runtime_lag: Histogram = "runtime_lag_seconds", Seconds, "Delay of a timer of the async runtime.",
        &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
}

impl Metrics {
    /// Counts the tokens and the cost of a turn.
    pub(crate) fn count_usage(&self, model: ModelClass, usage: &Usage, cost_usd: f64) {
        for (kind, count) in by_kind(usage) {
            self.tokens.add(model, kind, count);
        }
        // Counters are integers in every recorder; only the text format has fractions.
        self.cost.add(model, (cost_usd * 1e6).round() as u64);
    }

    /// Counts the tokens of a forwarded response.
    #[cfg(feature = "broker")]
    pub(crate) fn count_upstream(&self, model: ModelClass, usage: &Usage) {
        for (kind, count) in by_kind(usage) {
            self.upstream_tokens.add(model, kind, count);
        }
    }

    /// Moves a session between states. `None` is a session that is not in memory.
    pub(crate) fn session_moved(&self, from: Option<SessionState>, to: Option<SessionState>) {
        if let Some(state) = from {
            self.sessions.add(state, -1.0);
        }
        if let Some(state) = to {
            self.sessions.add(state, 1.0);
        }
    }
}

fn by_kind(usage: &Usage) -> [(TokenKind, u64); 4] {
    [
        (TokenKind::Input, usage.input_tokens),
        (TokenKind::Output, usage.output_tokens),
        (TokenKind::CacheRead, usage.cache_read_input_tokens),
        (TokenKind::CacheCreation, usage.cache_creation_input_tokens),
    ]
}

/// Value of a gauge that is a flag.
pub(crate) fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}
