//! The list of all metrics. Every name is here, and nowhere else.

use super::labels::Label;

/// What kind of figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often it was how large.
    Histogram,
}

/// In what a figure is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// A number of things, or of nothing.
    Count,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// A label and all its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabelSet {
    /// The label's name.
    pub name: &'static str,
    /// Every value that it can have. Empty where the value is a fact of the build.
    pub values: &'static [&'static str],
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name without the prefix.
    pub name: &'static str,
    /// What kind of figure it is.
    pub kind: Kind,
    /// In what it is measured.
    pub unit: Unit,
    /// What it says, in one sentence.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [LabelSet],
    /// The upper bounds of a histogram's buckets.
    pub buckets: &'static [f64],
}

impl Metric {
    pub(super) fn full_name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.name)
    }
}

/// All metrics: those of the core in the order of their kinds, then those of the HTTP server, if there is one.
pub fn catalogue() -> impl Iterator<Item = &'static Metric> {
    list::CORE.iter().chain(list::SERVER)
}

/// The names of all histograms under this prefix, and the buckets to set for them in the recorder.
#[must_use]
pub fn buckets(prefix: &str) -> Vec<(String, &'static [f64])> {
    let histograms = catalogue().filter(|metric| metric.kind == Kind::Histogram);
    histograms.map(|metric| (metric.full_name(prefix), metric.buckets)).collect()
}

const fn label<L: Label>() -> LabelSet {
    LabelSet { name: L::KEY, values: L::VALUES }
}

const MIB: f64 = 1_048_576.0;

/// Declares each metric as a constant, and all of them as one list.
macro_rules! list {
    ($all:ident: $($constant:ident = $kind:ident $name:literal in $unit:ident: $help:literal,
        [$($label:expr),*] $(, buckets $buckets:expr)?;)+) => {
        $(
            pub(in crate::telemetry::metrics) const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: Unit::$unit,
                help: $help,
                labels: &[$($label),*],
                buckets: { const NONE: &[f64] = &[]; let all: &[&[f64]] = &[NONE, $($buckets)?]; all[all.len() - 1] },
            };
        )+
        pub(in crate::telemetry::metrics) static $all: &[Metric] = &[$($constant),+];
    };
}

pub(super) mod list {
    use super::super::labels::{
        ActorKind, AdmissionRejected, ContextLost, EvictionReason, ExitReason, FirstOutput, HangDetector,
        MemoryKind, ModelClass, ProcessKind, ProtocolError, Resource, RestartCause, Rung, SampleSource,
        SpawnPhase, SpawnReason, StopHow, StopStep, Stream, TokenKind, TurnOutcome,
    };
    #[cfg(feature = "server")]
    use super::super::labels::{AuthFailure, Dialect, HttpKind, HttpLimit, Route, StatusClass};
    use super::{Kind, LabelSet, MIB, Metric, Unit, label};
    use crate::model::SessionState;

    const SPAWN_OUTCOME: LabelSet = LabelSet { name: "outcome", values: &["ok", "failed"] };
    const VERSION: LabelSet = LabelSet { name: "version", values: &[] };
    const COMMIT: LabelSet = LabelSet { name: "commit", values: &[] };

    list! { CORE:
        SPAWNS = Counter "spawns_total" in Count:
            "Children started, by whether they became ready and why not.", [SPAWN_OUTCOME, label::<SpawnReason>()];
        EXITS = Counter "exits_total" in Count:
            "Children that are gone, by why.", [label::<ExitReason>()];
        RESTARTS = Counter "restarts_total" in Count:
            "Children started again because the one before was lost or had to be replaced.",
            [label::<RestartCause>()];
        CRASH_LOOPS = Counter "crash_loops_total" in Count:
            "Sessions that failed so often that they pause before the next try.", [];
        EVICTIONS = Counter "evictions_total" in Count:
            "Children stopped while their session stays, by why.", [label::<EvictionReason>()];
        CONTEXTS_LOST = Counter "contexts_lost_total" in Count:
            "Conversations that came back without their last turn or without anything.", [label::<ContextLost>()];
        RECORDS_BROKEN = Counter "records_broken_total" in Count:
            "Records of sessions that could not be understood and were moved aside, each with its conversation.", [];
        TURNS = Counter "turns_total" in Count:
            "Turns that have ended, by outcome.", [label::<TurnOutcome>()];
        TOKENS = Counter "tokens_total" in Count:
            "Tokens of turns, as the model's API counted them, by the family of the model and their kind.",
            [label::<ModelClass>(), label::<TokenKind>()];
        COST = Counter "cost_micro_usd_total" in Count:
            "Cost of turns as the CLI reckons it, in millionths of a US dollar, by the family of the model.",
            [label::<ModelClass>()];
        ADMISSION_REJECTED = Counter "admission_rejected_total" in Count:
            "Turns refused for want of room, by what was full.", [label::<AdmissionRejected>()];
        HANGS = Counter "hangs_total" in Count:
            "Children found hanging, by what gave them away.", [label::<HangDetector>()];
        STOP_STEPS = Counter "stop_steps_total" in Count:
            "Steps taken to stop children.", [label::<StopStep>()];
        LEFTOVERS_KILLED = Counter "leftovers_killed_total" in Count:
            "Processes that children left behind and that were killed, by the means used.", [label::<Rung>()];
        SWEPT_AT_START = Counter "swept_at_start_total" in Count:
            "Processes of a former instance that were found and killed at the start.", [];
        PROTOCOL_ERRORS = Counter "protocol_errors_total" in Count:
            "Output of children that was not as agreed.", [label::<ProtocolError>()];
        STREAM_BYTES = Counter "stream_bytes_total" in Bytes:
            "Bytes written to and read from children.", [label::<Stream>()];
        TRUNCATIONS = Counter "truncations_total" in Count:
            "Times that something of a stream was not kept because of a limit.", [label::<Stream>()];
        ACTOR_PANICS = Counter "actor_panics_total" in Count:
            "Panics of actors; each is a defect of this program.", [label::<ActorKind>()];
        SAMPLE_ERRORS = Counter "sample_errors_total" in Count:
            "Measurements that failed.", [label::<SampleSource>()];

        DATA_DIR_WRITABLE = Gauge "data_dir_writable" in Count:
            "1 while files can be written to the data directory, 0 while they cannot (no space, read-only).", [];
        SESSIONS = Gauge "sessions" in Count:
            "Sessions in memory, by state.", [label::<SessionState>()];
        SESSIONS_LIMIT = Gauge "sessions_limit" in Count:
            "Sessions that may be in memory.", [];
        CHILDREN_LIMIT = Gauge "children_limit" in Count:
            "Children that may be alive at once.", [];
        STARTS_IN_FLIGHT = Gauge "starts_in_flight" in Count:
            "Children being started now.", [];
        STARTS_LIMIT = Gauge "starts_limit" in Count:
            "Children that may be starting at once.", [];
        ADMISSION_QUEUE_LENGTH = Gauge "admission_queue_length" in Count:
            "Starts that wait for their place.", [];
        ADMISSION_STATE = Gauge "admission_state" in Count:
            "0 open, 1 evicting idle sessions, 2 no new children, 3 no new turns for sessions without a child.", [];
        MEMORY = Gauge "memory_bytes" in Bytes:
            "Memory of all children and their descendants when last measured, by kind.", [label::<MemoryKind>()];
        MEMORY_BUDGET = Gauge "memory_budget_bytes" in Bytes:
            "Memory that all children together may use.", [];
        SESSION_MEMORY_LIMIT = Gauge "session_memory_limit_bytes" in Bytes:
            "Memory that the child of one session and all it started may use before they are ended.", [];
        MEMORY_AVAILABLE = Gauge "memory_available_bytes" in Bytes:
            "Memory of the host that can still be used.", [];
        MEMORY_APPROXIMATE = Gauge "memory_is_approximate" in Count:
            "1 if the kernel does not tell the parts of memory and all of a process's is counted, which is more.", [];
        OPEN_FDS = Gauge "open_fds" in Count:
            "Open files of this process when last counted.", [];
        OPEN_FDS_LIMIT = Gauge "open_fds_limit" in Count:
            "Files that this process may have open.", [];
        PRESSURE = Gauge "pressure_ratio" in Count:
            "Share of the last ten seconds in which something on this host waited for a resource (PSI).",
            [label::<Resource>()];
        PRESSURE_KNOWN = Gauge "pressure_is_known" in Count:
            "1 if the kernel tells the pressure on resources; else pressure_ratio says nothing.", [];
        ZOMBIES = Gauge "zombies" in Count:
            "Ended processes that nobody has reaped, of all that this process sees.", [];
        OLDEST_IDLE = Gauge "oldest_idle_seconds" in Seconds:
            "How long the session that has been idle longest with a warm child has been so.", [];
        OLDEST_TURN = Gauge "oldest_turn_seconds" in Seconds:
            "For how long the longest running turn has been running.", [];
        PROCESSES = Gauge "processes" in Count:
            "Processes of all children when last counted, by kind.", [label::<ProcessKind>()];
        CONTAINMENT_INFO = Gauge "containment_info" in Count:
            "1 for the strongest means by which a child's tree can be ended on this host.", [label::<Rung>()];
        CLI_UNJUDGED = Gauge "cli_version_unjudged" in Count:
            "1 while the CLI that is started is of a version that was not judged.", [];
        CLI_FALLBACK = Gauge "cli_fallback" in Count:
            "1 while the configured CLI does not start and the version that worked last is used.", [];
        BUILD_INFO = Gauge "build_info" in Count:
            "Always 1; the labels tell which build this is.", [VERSION, COMMIT];
        LAST_SAMPLE_TIMESTAMP = Gauge "last_sample_timestamp_seconds" in Seconds:
            "When memory was last measured, in Unix time.", [];

        SPAWN_DURATION = Histogram "spawn_duration_seconds" in Seconds:
            "Time to start a child: until the system had started it, and until it was ready.",
            [label::<SpawnPhase>()],
            buckets &[0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0];
        QUEUE_WAIT = Histogram "queue_wait_seconds" in Seconds:
            "Time that a start waited for its place.", [],
            buckets &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        TURN_DURATION = Histogram "turn_duration_seconds" in Seconds:
            "Time from accepting a turn to its end.", [label::<TurnOutcome>()],
            buckets &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        FIRST_OUTPUT = Histogram "first_output_seconds" in Seconds:
            "Time from accepting a turn to its first sign of work, by whether the child was warm.",
            [label::<FirstOutput>()],
            buckets &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];
        RECOVERY_DURATION = Histogram "recovery_duration_seconds" in Seconds:
            "Time from the crash of a child to the next one being ready.", [],
            buckets &[0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
        STOP_DURATION = Histogram "stop_duration_seconds" in Seconds:
            "Time from asking a child to leave to its end.", [label::<StopHow>()],
            buckets &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0];
        TREE_KILL = Histogram "tree_kill_seconds" in Seconds:
            "Time to end what was left of a child's tree, by the means used.", [label::<Rung>()],
            buckets &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
        PING = Histogram "ping_seconds" in Seconds:
            "Time that a child took to answer whether it lives.", [],
            buckets &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];
        SESSION_MEMORY = Histogram "session_memory_bytes" in Bytes:
            "Memory of one child with its descendants, at every measurement.", [],
            buckets &[64.0 * MIB, 96.0 * MIB, 128.0 * MIB, 160.0 * MIB, 192.0 * MIB, 256.0 * MIB, 384.0 * MIB,
                512.0 * MIB, 768.0 * MIB, 1024.0 * MIB, 2048.0 * MIB, 4096.0 * MIB];
        SESSION_LIFETIME = Histogram "session_lifetime_seconds" in Seconds:
            "Life of a child from being ready to its end.", [],
            buckets &[1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];
        SAMPLE_DURATION = Histogram "sample_duration_seconds" in Seconds:
            "Processor time and waits for files that one round of measuring took, its pauses left out.", [],
            buckets &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
        RUNTIME_LAG = Histogram "runtime_lag_seconds" in Seconds:
            "How much later than it should have the runtime ran a timer, at every measurement.", [],
            buckets &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
    }

    #[cfg(feature = "server")]
    list! { SERVER:
        HTTP_REQUESTS = Counter "http_requests_total" in Count:
            "Requests answered, by what was asked for and by the class of the answer's status.",
            [label::<Route>(), label::<StatusClass>()];
        HTTP_TURNS = Counter "http_turns_total" in Count:
            "Requests for a turn whose body could be read, by the dialect it was written in.",
            [label::<Dialect>()];
        AUTH_FAILURES = Counter "auth_failures_total" in Count:
            "Requests refused because of who called, by why.", [label::<AuthFailure>()];
        HTTP_LIMITED = Counter "http_limited_total" in Count:
            "Requests refused because their caller, or all callers together, had had their share.",
            [label::<HttpLimit>()];
        HTTP_RESPONSE = Histogram "http_response_seconds" in Seconds:
            "Time from a request's head to its answer's: for turns, until the first event.", [label::<HttpKind>()],
            buckets &[0.0005, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        RENDER = Histogram "metrics_render_seconds" in Seconds:
            "Time to write all figures down for whoever fetches them.", [],
            buckets &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
    }
    #[cfg(not(feature = "server"))]
    pub(in crate::telemetry::metrics) static SERVER: &[Metric] = &[];
}
