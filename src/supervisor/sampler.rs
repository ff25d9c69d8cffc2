//! The metrics actor: measures at an interval what cannot be counted as it happens (memory of every tree, ages, queue
//! lengths) and turns memory into admission pressure. It asks for evictions; it stops nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::{IdleMessage, Pressure, Room};
use crate::child::{ProcessTable, TreeMemory, available_memory, memory_limit};
use crate::instance::Instance;
use crate::metrics::{MemoryKind, ProcessKind, SampleSource};
use crate::session::SessionState;

/// Time for a sample.
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
        drop(myself.send_after(instance.config.metrics.sample_interval, || SampleNow::Tick));
        Ok(SamplerState { instance, budget })
    }

    async fn handle(
        &self,
        myself: ActorRef<SampleNow>,
        message: SampleNow,
        state: &mut SamplerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SampleNow::Tick => {
                let instance = state.instance.clone();
                // /proc is files: read them where blocking is allowed.
                match tokio::task::spawn_blocking(move || sample(&instance)).await {
                    Ok(used) => state.press(used),
                    Err(_) => state.instance.metrics.sample_error(SampleSource::Process),
                }
                drop(myself.send_after(state.instance.config.metrics.sample_interval, || SampleNow::Tick));
            }
            #[cfg(feature = "failpoints")]
            #[expect(clippy::panic, reason = "that is what it is for")]
            SampleNow::Panic => panic!("a test asked for it"),
        }
        Ok(())
    }
}

impl SamplerState {
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

/// Measures every tree; returns what they use together.
fn sample(instance: &Instance) -> u64 {
    let begun = Instant::now();
    let metrics = &instance.metrics;
    let mut table = ProcessTable::default();
    if table.refresh().is_err() {
        metrics.sample_error(SampleSource::Process);
    }
    let (mut total, mut children, mut processes) = (TreeMemory::default(), 0, 0);
    let (mut oldest_idle, mut oldest_turn) = (Duration::ZERO, Duration::ZERO);
    for entry in instance.registry.entries() {
        match entry.with_board(|board| (board.state, begun.saturating_duration_since(board.quiet_since))) {
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
        children += 1;
        processes += tree.processes as usize;
        total += tree;
    }
    metrics.set_memory(MemoryKind::Anon, total.anon_bytes);
    metrics.set_memory(MemoryKind::Shmem, total.shmem_bytes);
    metrics.set_memory(MemoryKind::Swap, total.swap_bytes);
    metrics.set_memory(MemoryKind::SharedFile, total.file_bytes);
    metrics.set_processes(ProcessKind::Shim, children);
    metrics.set_processes(ProcessKind::Cli, children.min(processes));
    metrics.set_processes(ProcessKind::Descendant, processes.saturating_sub(children));
    metrics.set_zombies(total.zombies);
    metrics.set_oldest(oldest_idle, oldest_turn);
    match available_memory() {
        Some(available) => metrics.set_memory_available(available),
        None => metrics.sample_error(SampleSource::Host),
    }
    let unix_time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    metrics.sampled(begun.elapsed(), unix_time);
    total.private_bytes()
}
