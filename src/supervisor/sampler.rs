//! The metrics actor: measures at an interval what cannot be counted as it happens (memory and processor time of every
//! tree, ages, queue lengths) and turns memory into admission pressure. It requests evictions; what it has ended is a tree that uses more
//! than a session may.
//!
//! A look at intervals cannot stop what takes gigabytes in a second; it bounds for how long they are taken. A tree that
//! is near its limit is looked at by itself, several times a second.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use rustix::process::{Resource as Limited, getrlimit};
use tokio::time::Instant;

use crate::admission::Pressure;
use crate::child::{
    KillReason, ProcessTable, TreeMemory, available_memory, memory_limit, open_files, pressure, single_tree,
};
use crate::model::SessionState;
use crate::session::actor_refs::{IdleMessage, SamplerMessage};
use crate::session::{SessionMessage, registry::Entry, sessions::Sessions};
use crate::telemetry::metrics::{MemoryKind, ProcessKind, Resource, SampleSource, flag};

/// Processes looked at in one go: some six milliseconds of one core.
const PART: usize = 256;
/// Parts of the largest machines; beyond it the parts grow.
const MOST_PARTS: usize = 32;

/// A tree that uses more than this share of its limit is near it.
const NEAR_PERCENT: u64 = 50;
/// Between two looks at the trees that are near: the look costs a millisecond for a usual tree.
const NEAR_PAUSE: Duration = Duration::from_millis(250);

pub(crate) struct MetricsSampler;

pub(crate) struct SamplerState {
    sessions: Arc<Sessions>,
    /// Of the host or the container of the server.
    available: u64,
    round: Round,
    /// A look at those that are near is on its way.
    near: bool,
    /// When the next tick should come.
    due: Instant,
}

/// A sample on its way.
#[derive(Default)]
struct Round {
    table: ProcessTable,
    parts: usize,
    /// Processes to a part.
    part: usize,
    /// The work so far.
    spent: Duration,
    /// What all trees together used when they were last measured.
    used: u64,
    /// What one of them may.
    session_limit: u64,
}

impl Actor for MetricsSampler {
    type Msg = SamplerMessage;
    type State = SamplerState;
    type Arguments = Arc<Sessions>;

    async fn pre_start(
        &self,
        myself: ActorRef<SamplerMessage>,
        sessions: Arc<Sessions>,
    ) -> Result<SamplerState, ActorProcessingErr> {
        let available = memory_limit().unwrap_or(u64::MAX);
        let session_limit = sessions.env.config.limits.memory_of_session(available);
        sessions.env.telemetry.metrics.session_memory_limit.set(session_limit as f64);
        let pause = sessions.env.config.metrics.sample_interval;
        let round = Round { session_limit, ..Round::default() };
        let mut state = SamplerState { sessions, available, round, near: false, due: Instant::now() };
        state.budget();
        state.go_on_after(&myself, pause);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SamplerMessage>,
        message: SamplerMessage,
        state: &mut SamplerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SamplerMessage::Tick => {
                state.sessions.env.telemetry.metrics.runtime_lag.record(state.due.elapsed());
                let session_limit = state.round.session_limit;
                let fresh = Round { session_limit, ..Round::default() };
                let (sessions, mut round) =
                    (state.sessions.clone(), std::mem::replace(&mut state.round, fresh));
                // /proc is files: read them where blocking is allowed.
                let part = tokio::task::spawn_blocking(move || (round.go_on(&sessions), round));
                match part.await {
                    Ok((used, round)) => {
                        state.round = round;
                        if let Some(used) = used {
                            state.press(used);
                            state.look_near_after(&myself, Duration::ZERO);
                        }
                    }
                    Err(_) => {
                        state.sessions.env.telemetry.metrics.sample_errors.increment(SampleSource::Process)
                    }
                }
                let parts = u32::try_from(state.round.parts.max(1)).unwrap_or(1);
                state.go_on_after(&myself, state.sessions.env.config.metrics.sample_interval / parts);
            }
            SamplerMessage::Near => {
                let (sessions, limit) = (state.sessions.clone(), state.round.session_limit);
                let looked = tokio::task::spawn_blocking(move || look_at_near(&sessions, limit)).await;
                state.near = false;
                match looked {
                    Ok(true) => state.look_near_after(&myself, NEAR_PAUSE),
                    Ok(false) => {}
                    Err(_) => {
                        state.sessions.env.telemetry.metrics.sample_errors.increment(SampleSource::Process)
                    }
                }
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SamplerMessage::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

impl SamplerState {
    fn go_on_after(&mut self, myself: &ActorRef<SamplerMessage>, pause: Duration) {
        self.due = Instant::now() + pause;
        drop(myself.send_after(pause, || SamplerMessage::Tick));
    }

    /// Has the trees that are near their limit looked at, if there are any and nobody does already.
    fn look_near_after(&mut self, myself: &ActorRef<SamplerMessage>, pause: Duration) {
        let limit = self.round.session_limit;
        if !self.near && self.sessions.registry.entries().iter().any(|entry| is_near(entry, limit)) {
            self.near = true;
            drop(myself.send_after(pause, || SamplerMessage::Near));
        }
    }

    /// The memory that all children may use, by the configuration in effect.
    fn budget(&self) -> u64 {
        let env = &self.sessions.env;
        let budget = env.current().limits.memory_budget.of(self.available);
        env.telemetry.metrics.memory_budget.set(budget as f64);
        budget
    }

    /// Opens or closes the gate according to memory, and requests an eviction where that helps.
    fn press(&self, used: u64) {
        let budget = self.budget();
        let admission = &self.sessions.admission;
        // Under pressure all spares end at once: what they use refuses no start and takes no session's child.
        let used = used.saturating_sub(self.sessions.shelf.measured_all(used, budget));
        let pressure = Pressure::of(used, budget, admission.pressure());
        admission.set_pressure(pressure);
        let relaxed = budget / 100 * Pressure::RELAXED_PERCENT;
        if pressure >= Pressure::Evicting {
            let wanted = IdleMessage::FreeBytes(used.saturating_sub(relaxed));
            self.sessions.actor_refs.cast_evictor(wanted);
        }
        admission.ask_for_room();
    }
}

impl Round {
    /// The next part of the sample; what all trees use together if it was the last one.
    fn go_on(&mut self, sessions: &Sessions) -> Option<u64> {
        let begun = Instant::now();
        let (metrics, is_new) = (&sessions.env.telemetry.metrics, self.table.is_complete());
        let begin = if is_new { self.begin(sessions) } else { Ok(()) };
        match begin.and_then(|()| self.table.read(self.part)) {
            Ok(false) => {
                self.spent += begun.elapsed();
                None
            }
            Ok(true) => {
                self.used = sample(sessions, &self.table, begun, self.session_limit);
                let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                metrics.sample_duration.record(std::mem::take(&mut self.spent) + begun.elapsed());
                metrics.last_sample.set(unix_time);
                Some(self.used)
            }
            Err(_) => {
                // Half a table would say that memory is free. What was measured last goes on to count, and its age shows.
                metrics.sample_errors.increment(SampleSource::Process);
                *self = Self { used: self.used, session_limit: self.session_limit, ..Self::default() };
                Some(self.used)
            }
        }
    }

    fn begin(&mut self, sessions: &Sessions) -> std::io::Result<()> {
        let entries = sessions.registry.entries();
        let of_sessions = entries.iter().filter_map(|entry| shim_of(entry));
        let shims: HashSet<u32> = of_sessions.chain(sessions.shelf.shims()).collect();
        let processes = self.table.begin(&shims)?;
        (self.parts, self.part) = divided(processes);
        Ok(())
    }
}

/// Number of parts that the processes are looked at in, and number of processes in each.
fn divided(processes: usize) -> (usize, usize) {
    let parts = processes.div_ceil(PART).clamp(1, MOST_PARTS);
    (parts, processes.div_ceil(parts))
}

fn is_near(entry: &Entry, limit: u64) -> bool {
    entry.status.read(|visible| visible.status.memory_bytes) > limit / 100 * NEAR_PERCENT
}

/// The root of the session's process tree, if it has one.
fn shim_of(entry: &Entry) -> Option<u32> {
    entry.status.read(|visible| visible.shim)
}

/// Measures each tree near its limit and requests the end of those beyond; returns whether any is still near. Blocks.
fn look_at_near(sessions: &Sessions, limit: u64) -> bool {
    let mut any = false;
    for entry in sessions.registry.entries().iter().filter(|entry| is_near(entry, limit)) {
        let Some(shim) = shim_of(entry) else { continue };
        let Ok(tree) = single_tree(shim) else { continue };
        let used = tree.private_bytes();
        entry.status.measured(shim, used);
        any |= is_near(entry, limit);
        // The cheap figure counts shared pages more than once: nobody is ended for that.
        if used > limit && tree.exceeds(limit) {
            tracing::warn!(session = %entry.hash, used, limit, "a session uses more memory than it may: it is ended");
            drop(entry.actor.cast(SessionMessage::Outgrown { shim, reason: KillReason::MemoryLimit(limit) }));
        }
    }
    any
}

/// Measures every tree; returns what they use together. What one has over its limit does not count: it is about to go,
/// and nobody else is to suffer from it meanwhile.
fn sample(sessions: &Sessions, table: &ProcessTable, now: Instant, session_limit: u64) -> u64 {
    let metrics = &sessions.env.telemetry.metrics;
    let (mut total, mut counted, mut shims, mut clis) = (TreeMemory::default(), 0_u64, 0, 0);
    let (mut oldest_idle, mut oldest_turn) = (Duration::ZERO, Duration::ZERO);
    let mut frozen = 0_u32;
    for entry in sessions.registry.entries() {
        let (state, age) = entry.status.read(|visible| {
            frozen += u32::from(visible.status.frozen);
            (visible.status.state, now.saturating_duration_since(visible.quiet_since))
        });
        match (state, age) {
            (SessionState::Idle, age) => oldest_idle = oldest_idle.max(age),
            (SessionState::Busy, age) => oldest_turn = oldest_turn.max(age),
            _ => {}
        }
        let Some(shim) = shim_of(&entry) else { continue };
        let tree = table.tree(shim);
        entry.status.measured(shim, tree.private_bytes());
        entry.status.cpu_sampled(shim, now, tree.cpu_time());
        metrics.session_memory.record(tree.private_bytes() as f64);
        shims += 1;
        clis += usize::from(tree.processes > 0);
        total += tree;
        counted = counted.saturating_add(tree.private_bytes().min(session_limit));
    }
    for shim in sessions.shelf.shims() {
        let tree = table.tree(shim);
        let used = tree.private_bytes().min(session_limit);
        sessions.shelf.measured(shim, used);
        shims += 1;
        clis += usize::from(tree.processes > 0);
        total += tree;
        counted = counted.saturating_add(used);
    }
    metrics.memory.set(MemoryKind::Anon, total.anon_bytes as f64);
    metrics.memory.set(MemoryKind::Shmem, total.shmem_bytes as f64);
    metrics.memory.set(MemoryKind::Swap, total.swap_bytes as f64);
    metrics.memory.set(MemoryKind::SharedFile, total.file_bytes as f64);
    metrics.memory_approximate.set(flag(total.approximate));
    metrics.processes.set(ProcessKind::Shim, shims as f64);
    metrics.processes.set(ProcessKind::Cli, clis as f64);
    metrics.processes.set(ProcessKind::Descendant, (total.processes as usize).saturating_sub(clis) as f64);
    metrics.zombies.set(table.zombies() as f64);
    metrics.sessions_frozen.set(frozen);
    metrics.oldest_idle.set(oldest_idle);
    metrics.oldest_turn.set(oldest_turn);
    sample_host(sessions);
    counted
}

/// What the machine gives and has left.
fn sample_host(sessions: &Sessions) {
    let metrics = &sessions.env.telemetry.metrics;
    match available_memory() {
        Some(available) => metrics.memory_available.set(available as f64),
        None => metrics.sample_errors.increment(SampleSource::Host),
    }
    match open_files() {
        // Without a limit there is none to come near to.
        Some(open) => {
            metrics.open_fds.set(open as f64);
            metrics.open_fds_limit.set(getrlimit(Limited::Nofile).current.unwrap_or(u64::MAX) as f64);
        }
        None => metrics.sample_errors.increment(SampleSource::Host),
    }
    let resources = [Resource::Cpu, Resource::Memory, Resource::Io];
    let known = resources.map(|resource| pressure(resource.as_str()).map(|share| (resource, share)));
    known.iter().flatten().for_each(|(resource, share)| metrics.pressure.set(*resource, *share));
    metrics.pressure_known.set(flag(known.iter().any(Option::is_some)));
    metrics.containment.select(sessions.env.cgroups.containment());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_machine_is_measured_in_bounded_parts() {
        assert_eq!(divided(0), (1, 0));
        assert_eq!(divided(200), (1, 200));
        assert_eq!(divided(4000), (16, 250));
        assert_eq!(divided(100_000), (32, 3125));
    }
}
