//! The metrics actor: measures at an interval what cannot be counted as it happens (memory of every tree, ages, queue
//! lengths) and turns memory into admission pressure. It asks for evictions; it stops nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use rustix::process::{Resource as Limited, getrlimit};
use tokio::time::Instant;

use super::{IdleMessage, Pressure, Room};
use crate::child::{ProcessTable, TreeMemory, available_memory, memory_limit, open_files, pressure};
use crate::instance::Instance;
use crate::metrics::{MemoryKind, ProcessKind, Resource, SampleSource};
use crate::session::SessionState;

/// Processes looked at in one go: some four milliseconds of one core.
const PART: usize = 256;
/// Parts of the largest machines; beyond it the parts grow.
const MOST_PARTS: usize = 32;

/// Time to go on with a sample.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SampleNow {
    /// Measure.
    Tick,
    /// Fail, to prove that nothing is lost by it.
    #[cfg(feature = "failpoints")]
    Panic,
}

pub(crate) struct MetricsSampler;

pub(crate) struct SamplerState {
    instance: Arc<Instance>,
    budget: u64,
    round: Round,
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
}

impl Actor for MetricsSampler {
    type Msg = SampleNow;
    type State = SamplerState;
    type Arguments = Arc<Instance>;

    async fn pre_start(
        &self,
        myself: ActorRef<SampleNow>,
        instance: Arc<Instance>,
    ) -> Result<SamplerState, ActorProcessingErr> {
        let budget = instance.config.limits.memory_budget.of(memory_limit().unwrap_or(u64::MAX));
        instance.metrics.set_memory_budget(budget);
        let pause = instance.config.metrics.sample_interval;
        let mut state = SamplerState { instance, budget, round: Round::default(), due: Instant::now() };
        state.go_on_after(&myself, pause);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SampleNow>,
        message: SampleNow,
        state: &mut SamplerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SampleNow::Tick => {
                state.instance.metrics.runtime_lagged(state.due.elapsed());
                let (instance, mut round) = (state.instance.clone(), std::mem::take(&mut state.round));
                // /proc is files: read them where blocking is allowed.
                let part = tokio::task::spawn_blocking(move || (round.go_on(&instance), round));
                match part.await {
                    Ok((used, round)) => {
                        state.round = round;
                        used.into_iter().for_each(|used| state.press(used));
                    }
                    Err(_) => state.instance.metrics.sample_error(SampleSource::Process),
                }
                let parts = u32::try_from(state.round.parts.max(1)).unwrap_or(1);
                state.go_on_after(&myself, state.instance.config.metrics.sample_interval / parts);
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SampleNow::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

impl SamplerState {
    fn go_on_after(&mut self, myself: &ActorRef<SampleNow>, pause: Duration) {
        self.due = Instant::now() + pause;
        drop(myself.send_after(pause, || SampleNow::Tick));
    }

    /// Opens or closes the gate according to memory, and asks for an eviction where that helps.
    fn press(&self, used: u64) {
        let admission = &self.instance.admission;
        let pressure = Pressure::of(used, self.budget, admission.pressure());
        admission.set_pressure(pressure);
        let room = if pressure >= Pressure::Evicting {
            Room::Bytes(used.saturating_sub(self.budget / 100 * Pressure::RELAXED_PERCENT))
        } else if admission.wants_room() {
            Room::Children(admission.waiting())
        } else {
            return;
        };
        self.instance.helpers.tell_evictor(IdleMessage::MakeRoom(room));
    }
}

impl Round {
    /// The next part of the sample; what all trees use together if it was the last one.
    fn go_on(&mut self, instance: &Instance) -> Option<u64> {
        let begun = Instant::now();
        let (metrics, is_new) = (&instance.metrics, self.table.is_complete());
        let begin = if is_new { self.begin(instance) } else { Ok(()) };
        match begin.and_then(|()| self.table.read(self.part)) {
            Ok(false) => {
                self.spent += begun.elapsed();
                None
            }
            Ok(true) => {
                self.used = sample(instance, &self.table, begun);
                let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                metrics.sampled(std::mem::take(&mut self.spent) + begun.elapsed(), unix_time);
                Some(self.used)
            }
            Err(_) => {
                // Half a table would say that memory is free. What was measured last goes on to count, and its age shows.
                metrics.sample_error(SampleSource::Process);
                *self = Self { used: self.used, ..Self::default() };
                Some(self.used)
            }
        }
    }

    fn begin(&mut self, instance: &Instance) -> std::io::Result<()> {
        let shims = instance.registry.entries().into_iter().map(|entry| entry.tree.load(Ordering::Relaxed));
        let shims: HashSet<u32> = shims.filter(|shim| *shim != 0).collect();
        let processes = self.table.begin(&shims)?;
        (self.parts, self.part) = divided(processes);
        Ok(())
    }
}

/// In how many parts so many processes are looked at, and how many are in each.
fn divided(processes: usize) -> (usize, usize) {
    let parts = processes.div_ceil(PART).clamp(1, MOST_PARTS);
    (parts, processes.div_ceil(parts))
}

/// Measures every tree; returns what they use together.
fn sample(instance: &Instance, table: &ProcessTable, now: Instant) -> u64 {
    let metrics = &instance.metrics;
    let (mut total, mut shims, mut clis) = (TreeMemory::default(), 0, 0);
    let (mut oldest_idle, mut oldest_turn) = (Duration::ZERO, Duration::ZERO);
    for entry in instance.registry.entries() {
        match entry.with_board(|board| (board.state, now.saturating_duration_since(board.quiet_since))) {
            (SessionState::Idle, age) => oldest_idle = oldest_idle.max(age),
            (SessionState::Busy, age) => oldest_turn = oldest_turn.max(age),
            _ => {}
        }
        let shim = entry.tree.load(Ordering::Relaxed);
        if shim == 0 {
            continue;
        }
        let tree = table.tree(shim);
        entry.memory.store(tree.private_bytes(), Ordering::Relaxed);
        metrics.session_memory(tree.private_bytes());
        shims += 1;
        clis += usize::from(tree.processes > 0);
        total += tree;
    }
    metrics.set_memory(MemoryKind::Anon, total.anon_bytes);
    metrics.set_memory(MemoryKind::Shmem, total.shmem_bytes);
    metrics.set_memory(MemoryKind::Swap, total.swap_bytes);
    metrics.set_memory(MemoryKind::SharedFile, total.file_bytes);
    metrics.set_memory_approximate(total.approximate);
    metrics.set_processes(ProcessKind::Shim, shims);
    metrics.set_processes(ProcessKind::Cli, clis);
    metrics.set_processes(ProcessKind::Descendant, (total.processes as usize).saturating_sub(clis));
    metrics.set_zombies(total.zombies);
    metrics.set_oldest(oldest_idle, oldest_turn);
    sample_host(instance);
    total.private_bytes()
}

/// What the machine gives and has left.
fn sample_host(instance: &Instance) {
    let metrics = &instance.metrics;
    match available_memory() {
        Some(available) => metrics.set_memory_available(available),
        None => metrics.sample_error(SampleSource::Host),
    }
    match open_files() {
        // Without a limit there is none to come near to.
        Some(open) => metrics.set_open_fds(open, getrlimit(Limited::Nofile).current.unwrap_or(u64::MAX)),
        None => metrics.sample_error(SampleSource::Host),
    }
    let resources = [Resource::Cpu, Resource::Memory, Resource::Io];
    let known = resources.map(|resource| pressure(resource.as_str()).map(|share| (resource, share)));
    known.iter().flatten().for_each(|(resource, share)| metrics.set_pressure(*resource, *share));
    metrics.set_pressure_known(known.iter().any(Option::is_some));
    metrics.containment(instance.rung());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_machines_are_measured_in_one_go_and_large_ones_in_bounded_parts() {
        assert_eq!(divided(0), (1, 0));
        assert_eq!(divided(200), (1, 200));
        assert_eq!(divided(4000), (16, 250));
        assert_eq!(divided(100_000), (32, 3125));
    }
}
