//! Every figure that pilotlight keeps: one typed list, one method per happening.
//!
//! [`catalogue`] is the list: each name is written there once, with its kind, unit, meaning, labels and buckets.
//! `Metrics` holds a handle for every value of every label, all of them registered at the start: a figure is there, at
//! zero, before anything has happened, and counting costs an atomic addition. There are no labels for users or
//! sessions. Nothing here logs or reads a clock.
//!
//! Figures go to the [`metrics`] recorder of the host program. Histograms need the [`buckets`] set there,
//! or they come out as summaries, which cannot be added up over instances.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram};

use crate::model::SessionState;
use crate::model::Usage;

mod catalogue;
mod handles;
#[cfg(feature = "server")]
mod http;
mod labels;

use catalogue::list;
pub use catalogue::{Kind, LabelSet, Metric, Unit, buckets, catalogue};
use handles::{By, ByBoth, Registrar};
#[cfg(feature = "server")]
pub(crate) use http::HttpMetrics;
pub(crate) use labels::{
    ActorKind, AdmissionRejected, ContextLost, EvictionReason, ExitReason, FirstOutput, HangDetector,
    MemoryKind, ModelClass, ProcessKind, ProtocolError, Resource, RestartCause, SampleSource, StopHow,
    StopStep, Stream, TokenKind, TurnOutcome,
};
#[cfg(feature = "server")]
pub(crate) use labels::{AuthFailure, Dialect, HttpLimit, Route, StatusClass};
use labels::{Rung, SpawnPhase, SpawnReason};

/// The version that `build_info` tells; the commit is set by whoever builds a release.
const COMMIT: &str = match option_env!("PILOTLIGHT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The handles of one instance.
pub(crate) struct Metrics {
    spawns: By<SpawnReason, Counter>,
    exits: By<ExitReason, Counter>,
    restarts: By<RestartCause, Counter>,
    crash_loops: Counter,
    evictions: By<EvictionReason, Counter>,
    contexts_lost: By<ContextLost, Counter>,
    records_broken: Counter,
    turns: By<TurnOutcome, Counter>,
    tokens: ByBoth<ModelClass, TokenKind, Counter>,
    cost: By<ModelClass, Counter>,
    admission_rejected: By<AdmissionRejected, Counter>,
    hangs: By<HangDetector, Counter>,
    stop_steps: By<StopStep, Counter>,
    leftovers_killed: By<Rung, Counter>,
    swept_at_start: Counter,
    protocol_errors: By<ProtocolError, Counter>,
    stream_bytes: By<Stream, Counter>,
    truncations: By<Stream, Counter>,
    actor_panics: By<ActorKind, Counter>,
    sample_errors: By<SampleSource, Counter>,

    data_dir_writable: Gauge,
    cli_unjudged: Gauge,
    cli_fallback: Gauge,
    sessions: By<SessionState, Gauge>,
    sessions_limit: Gauge,
    children_limit: Gauge,
    starts_in_flight: Gauge,
    starts_limit: Gauge,
    admission_queue_length: Gauge,
    admission_state: Gauge,
    memory: By<MemoryKind, Gauge>,
    memory_budget: Gauge,
    session_memory_limit: Gauge,
    memory_available: Gauge,
    memory_approximate: Gauge,
    open_fds: Gauge,
    open_fds_limit: Gauge,
    pressure: By<Resource, Gauge>,
    pressure_known: Gauge,
    zombies: Gauge,
    oldest_idle: Gauge,
    oldest_turn: Gauge,
    processes: By<ProcessKind, Gauge>,
    containment: By<Rung, Gauge>,
    last_sample: Gauge,

    spawn_duration: By<SpawnPhase, Histogram>,
    queue_wait: Histogram,
    turn_duration: By<TurnOutcome, Histogram>,
    first_output: By<FirstOutput, Histogram>,
    recovery_duration: Histogram,
    stop_duration: By<StopHow, Histogram>,
    tree_kill: By<Rung, Histogram>,
    ping: Histogram,
    session_memory: Histogram,
    session_lifetime: Histogram,
    sample_duration: Histogram,
    runtime_lag: Histogram,
}

impl Metrics {
    /// Registers and describes everything with the recorder that is current here and now; without one, counting does
    /// nothing.
    pub(crate) fn register(prefix: &str) -> Self {
        ::metrics::with_recorder(|recorder| Self::with(&Registrar::new(recorder, prefix)))
    }

    fn with(registrar: &Registrar<'_>) -> Self {
        registrar.info(&list::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)]);
        Self {
            spawns: registrar.counters_with(&list::SPAWNS, |reason: &'static str| {
                vec![
                    ("outcome", if reason == SpawnReason::None.as_str() { "ok" } else { "failed" }),
                    ("reason", reason),
                ]
            }),
            exits: registrar.counters(&list::EXITS),
            restarts: registrar.counters(&list::RESTARTS),
            crash_loops: registrar.counter(&list::CRASH_LOOPS),
            evictions: registrar.counters(&list::EVICTIONS),
            contexts_lost: registrar.counters(&list::CONTEXTS_LOST),
            records_broken: registrar.counter(&list::RECORDS_BROKEN),
            turns: registrar.counters(&list::TURNS),
            tokens: registrar.counters_by_both(&list::TOKENS),
            cost: registrar.counters(&list::COST),
            admission_rejected: registrar.counters(&list::ADMISSION_REJECTED),
            hangs: registrar.counters(&list::HANGS),
            stop_steps: registrar.counters(&list::STOP_STEPS),
            leftovers_killed: registrar.counters(&list::LEFTOVERS_KILLED),
            swept_at_start: registrar.counter(&list::SWEPT_AT_START),
            protocol_errors: registrar.counters(&list::PROTOCOL_ERRORS),
            stream_bytes: registrar.counters(&list::STREAM_BYTES),
            truncations: registrar.counters(&list::TRUNCATIONS),
            actor_panics: registrar.counters(&list::ACTOR_PANICS),
            sample_errors: registrar.counters(&list::SAMPLE_ERRORS),

            data_dir_writable: registrar.gauge(&list::DATA_DIR_WRITABLE),
            cli_unjudged: registrar.gauge(&list::CLI_UNJUDGED),
            cli_fallback: registrar.gauge(&list::CLI_FALLBACK),
            sessions: registrar.gauges(&list::SESSIONS),
            sessions_limit: registrar.gauge(&list::SESSIONS_LIMIT),
            children_limit: registrar.gauge(&list::CHILDREN_LIMIT),
            starts_in_flight: registrar.gauge(&list::STARTS_IN_FLIGHT),
            starts_limit: registrar.gauge(&list::STARTS_LIMIT),
            admission_queue_length: registrar.gauge(&list::ADMISSION_QUEUE_LENGTH),
            admission_state: registrar.gauge(&list::ADMISSION_STATE),
            memory: registrar.gauges(&list::MEMORY),
            memory_budget: registrar.gauge(&list::MEMORY_BUDGET),
            session_memory_limit: registrar.gauge(&list::SESSION_MEMORY_LIMIT),
            memory_available: registrar.gauge(&list::MEMORY_AVAILABLE),
            memory_approximate: registrar.gauge(&list::MEMORY_APPROXIMATE),
            open_fds: registrar.gauge(&list::OPEN_FDS),
            open_fds_limit: registrar.gauge(&list::OPEN_FDS_LIMIT),
            pressure: registrar.gauges(&list::PRESSURE),
            pressure_known: registrar.gauge(&list::PRESSURE_KNOWN),
            zombies: registrar.gauge(&list::ZOMBIES),
            oldest_idle: registrar.gauge(&list::OLDEST_IDLE),
            oldest_turn: registrar.gauge(&list::OLDEST_TURN),
            processes: registrar.gauges(&list::PROCESSES),
            containment: registrar.gauges(&list::CONTAINMENT_INFO),
            last_sample: registrar.gauge(&list::LAST_SAMPLE_TIMESTAMP),

            spawn_duration: registrar.histograms(&list::SPAWN_DURATION),
            queue_wait: registrar.histogram(&list::QUEUE_WAIT),
            turn_duration: registrar.histograms(&list::TURN_DURATION),
            first_output: registrar.histograms(&list::FIRST_OUTPUT),
            recovery_duration: registrar.histogram(&list::RECOVERY_DURATION),
            stop_duration: registrar.histograms(&list::STOP_DURATION),
            tree_kill: registrar.histograms(&list::TREE_KILL),
            ping: registrar.histogram(&list::PING),
            session_memory: registrar.histogram(&list::SESSION_MEMORY),
            session_lifetime: registrar.histogram(&list::SESSION_LIFETIME),
            sample_duration: registrar.histogram(&list::SAMPLE_DURATION),
            runtime_lag: registrar.histogram(&list::RUNTIME_LAG),
        }
    }

    /// A child is ready, or could not be started: then with the [reason](crate::error::StartFailure::reason).
    pub(crate) fn spawned(&self, failed: Option<&str>) {
        let reason =
            failed.map_or(SpawnReason::None, |name| SpawnReason::named(name).unwrap_or(SpawnReason::Other));
        self.spawns.of(reason, |spawns| spawns.increment(1));
    }

    /// The system took so long to start the process.
    pub(crate) fn spawn_exec(&self, took: Duration) {
        self.spawn_duration.of(SpawnPhase::Exec, |phase| phase.record(took));
    }

    /// From the start of the process until it was ready.
    pub(crate) fn spawn_ready(&self, took: Duration) {
        self.spawn_duration.of(SpawnPhase::Ready, |phase| phase.record(took));
    }

    /// A child is gone.
    pub(crate) fn exited(&self, reason: ExitReason) {
        self.exits.of(reason, |exits| exits.increment(1));
    }

    /// A child that was ready is gone; it had lived so long.
    pub(crate) fn session_ended(&self, lived: Duration) {
        self.session_lifetime.record(lived);
    }

    /// A child is started again.
    pub(crate) fn restarted(&self, cause: RestartCause) {
        self.restarts.of(cause, |restarts| restarts.increment(1));
    }

    /// From the crash until the next child was ready.
    pub(crate) fn recovered(&self, took: Duration) {
        self.recovery_duration.record(took);
    }

    /// A session's circuit opened.
    pub(crate) fn crash_loop(&self) {
        self.crash_loops.increment(1);
    }

    /// A session gave up its child.
    pub(crate) fn evicted(&self, reason: EvictionReason) {
        self.evictions.of(reason, |evictions| evictions.increment(1));
    }

    /// A conversation came back without some or all of what was said.
    pub(crate) fn context_lost(&self, what: ContextLost) {
        self.contexts_lost.of(what, |lost| lost.increment(1));
    }

    /// The record of a session was moved aside.
    pub(crate) fn record_broken(&self) {
        self.records_broken.increment(1);
    }

    /// Which CLI the next start uses.
    pub(crate) fn cli_version(&self, is_unjudged: bool, is_fallback: bool) {
        self.cli_unjudged.set(f64::from(u8::from(is_unjudged)));
        self.cli_fallback.set(f64::from(u8::from(is_fallback)));
    }

    /// Whether the data directory can be written.
    pub(crate) fn set_data_dir_writable(&self, writable: bool) {
        self.data_dir_writable.set(f64::from(u8::from(writable)));
    }

    /// A turn has its outcome.
    pub(crate) fn turn_ended(&self, outcome: TurnOutcome, took: Duration) {
        self.turns.of(outcome, |turns| turns.increment(1));
        self.turn_duration.of(outcome, |durations| durations.record(took));
    }

    /// What a turn has used.
    pub(crate) fn spent(&self, model: ModelClass, usage: &Usage, cost_usd: f64) {
        for (kind, count) in [
            (TokenKind::Input, usage.input_tokens),
            (TokenKind::Output, usage.output_tokens),
            (TokenKind::CacheRead, usage.cache_read_input_tokens),
            (TokenKind::CacheCreation, usage.cache_creation_input_tokens),
        ] {
            self.tokens.of(model, kind, |tokens| tokens.increment(count));
        }
        // Counters are whole numbers everywhere but in the text format.
        self.cost.of(model, |cost| cost.increment((cost_usd * 1e6).round() as u64));
    }

    /// The first sign of work on a turn, so long after it was accepted.
    pub(crate) fn first_output(&self, start: FirstOutput, after: Duration) {
        self.first_output.of(start, |first| first.record(after));
    }

    /// A turn or a start was refused for want of room.
    pub(crate) fn admission_rejected(&self, reason: AdmissionRejected) {
        self.admission_rejected.of(reason, |rejected| rejected.increment(1));
    }

    /// A start waited so long for its place.
    pub(crate) fn queue_waited(&self, waited: Duration) {
        self.queue_wait.record(waited);
    }

    /// A child was found to hang.
    pub(crate) fn hang(&self, detector: HangDetector) {
        self.hangs.of(detector, |hangs| hangs.increment(1));
    }

    /// A child answered the question whether it lives.
    pub(crate) fn ping(&self, took: Duration) {
        self.ping.record(took);
    }

    /// A step towards the end of a child was taken.
    pub(crate) fn stop_step(&self, step: StopStep) {
        self.stop_steps.of(step, |steps| steps.increment(1));
    }

    /// A child that was asked to leave is gone.
    pub(crate) fn stopped(&self, how: StopHow, took: Duration) {
        self.stop_duration.of(how, |stops| stops.record(took));
    }

    /// Processes that a child left behind were killed.
    pub(crate) fn leftovers_killed(&self, rung: &str, count: u64) {
        if let Some(rung) = Rung::named(rung) {
            self.leftovers_killed.of(rung, |killed| killed.increment(count));
        }
    }

    /// A child's tree was ended.
    pub(crate) fn tree_kill(&self, rung: &str, took: Duration) {
        if let Some(rung) = Rung::named(rung) {
            self.tree_kill.of(rung, |kills| kills.record(took));
        }
    }

    /// Processes of a former instance were found and killed.
    pub(crate) fn swept_at_start(&self, count: u64) {
        self.swept_at_start.increment(count);
    }

    /// A child broke the protocol.
    pub(crate) fn protocol_error(&self, kind: ProtocolError) {
        self.protocol_errors.of(kind, |errors| errors.increment(1));
    }

    /// Bytes went through a child's pipe.
    pub(crate) fn stream_bytes(&self, stream: Stream, bytes: u64) {
        self.stream_bytes.of(stream, |counter| counter.increment(bytes));
    }

    /// Something of a stream was not kept.
    pub(crate) fn truncated(&self, stream: Stream) {
        self.truncations.of(stream, |truncations| truncations.increment(1));
    }

    /// An actor panicked.
    pub(crate) fn actor_panicked(&self, actor: ActorKind) {
        self.actor_panics.of(actor, |panics| panics.increment(1));
    }

    /// Something could not be measured.
    pub(crate) fn sample_error(&self, source: SampleSource) {
        self.sample_errors.of(source, |errors| errors.increment(1));
    }

    /// A session went from one state to another; `None` is outside of memory.
    pub(crate) fn session_moved(&self, from: Option<SessionState>, to: Option<SessionState>) {
        if let Some(state) = from {
            self.sessions.of(state, |sessions| sessions.decrement(1.0));
        }
        if let Some(state) = to {
            self.sessions.of(state, |sessions| sessions.increment(1.0));
        }
    }

    /// How many sessions may be in memory, and how many may have a child.
    pub(crate) fn set_session_limits(&self, sessions: usize, children: usize) {
        self.sessions_limit.set(sessions as f64);
        self.children_limit.set(children as f64);
    }

    pub(crate) fn set_starts_limit(&self, starts: usize) {
        self.starts_limit.set(starts as f64);
    }

    pub(crate) fn set_starts_in_flight(&self, starts: usize) {
        self.starts_in_flight.set(starts as f64);
    }

    pub(crate) fn set_admission_queue_length(&self, length: usize) {
        self.admission_queue_length.set(length as f64);
    }

    /// 0 open, 1 evicting, 2 no new children, 3 no new turns for sessions without one.
    pub(crate) fn set_admission_state(&self, state: u8) {
        self.admission_state.set(f64::from(state));
    }

    pub(crate) fn set_session_memory_limit(&self, bytes: u64) {
        self.session_memory_limit.set(bytes as f64);
    }

    pub(crate) fn set_memory_budget(&self, bytes: u64) {
        self.memory_budget.set(bytes as f64);
    }

    pub(crate) fn set_memory_available(&self, bytes: u64) {
        self.memory_available.set(bytes as f64);
    }

    /// Whether the memory of some tree could only be estimated.
    pub(crate) fn set_memory_approximate(&self, is_approximate: bool) {
        self.memory_approximate.set(f64::from(u8::from(is_approximate)));
    }

    /// Our open files, and how many there may be.
    pub(crate) fn set_open_fds(&self, open: u64, limit: u64) {
        self.open_fds.set(open as f64);
        self.open_fds_limit.set(limit as f64);
    }

    /// Share of time in which something waited for the resource.
    pub(crate) fn set_pressure(&self, resource: Resource, ratio: f64) {
        self.pressure.of(resource, |pressure| pressure.set(ratio));
    }

    pub(crate) fn set_pressure_known(&self, is_known: bool) {
        self.pressure_known.set(f64::from(u8::from(is_known)));
    }

    pub(crate) fn set_zombies(&self, count: usize) {
        self.zombies.set(count as f64);
    }

    /// The ages of what has been idle, and what has been running, longest.
    pub(crate) fn set_oldest(&self, idle: Duration, turn: Duration) {
        self.oldest_idle.set(idle.as_secs_f64());
        self.oldest_turn.set(turn.as_secs_f64());
    }

    /// All trees together, as measured last.
    pub(crate) fn set_memory(&self, kind: MemoryKind, bytes: u64) {
        self.memory.of(kind, |memory| memory.set(bytes as f64));
    }

    /// All trees together, as counted last.
    pub(crate) fn set_processes(&self, kind: ProcessKind, count: usize) {
        self.processes.of(kind, |processes| processes.set(count as f64));
    }

    /// The measured tree of one session.
    pub(crate) fn session_memory(&self, bytes: u64) {
        self.session_memory.record(bytes as f64);
    }

    /// A round of measuring is done.
    pub(crate) fn sampled(&self, took: Duration, unix_time: Duration) {
        self.sample_duration.record(took);
        self.last_sample.set(unix_time.as_secs_f64());
    }

    /// A timer of the runtime rang so late.
    pub(crate) fn runtime_lagged(&self, by: Duration) {
        self.runtime_lag.record(by);
    }

    /// The strongest means by which trees are ended here.
    pub(crate) fn containment(&self, rung: &str) {
        self.containment.each(|name, gauge| gauge.set(if name == rung { 1.0 } else { 0.0 }));
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests;
