//! The metrics actor: measures at an interval what cannot be counted as it happens (memory of every tree, ages, queue
//! lengths) and turns memory into admission pressure. It asks for evictions; it stops nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::{IdleMessage, Pressure};
use crate::child::memory::{self, TreeMemory};
use crate::instance::Instance;
use crate::metrics::{EvictionReason, SampleSource};
use crate::registry::Entry;

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
        let budget = instance.config.limits.memory_budget.of(memory::memory_limit().unwrap_or(u64::MAX));
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
                    Err(_) => state.instance.metrics.sample_error(SampleSource::Proc),
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
        let reason = if pressure >= Pressure::Evicting {
            EvictionReason::Memory
        } else if admission.wants_room() {
            EvictionReason::Capacity
        } else {
            return;
        };
        self.instance.helpers.tell_evictor(IdleMessage::MakeRoom(reason));
    }
}

/// Measures every tree; returns what they use together.
fn sample(instance: &Instance) -> u64 {
    let begun = Instant::now();
    let metrics = &instance.metrics;
    let mut total = TreeMemory::default();
    let mut shims = 0;
    let (mut oldest_idle, mut oldest_turn) = (None, None);
    for entry in instance.registry.entries() {
        note_ages(&entry, &mut oldest_idle, &mut oldest_turn);
        let shim = entry.tree.load(Ordering::Relaxed);
        if shim == 0 {
            continue;
        }
        shims += 1;
        let tree = memory::tree_memory(shim);
        let used = tree.used();
        entry.memory.store(used, Ordering::Relaxed);
        metrics.session_memory(used);
        total.add(&tree);
    }
    metrics.set_memory(&total);
    metrics.set_processes(shims, &total);
    let age = |since: Option<Instant>| since.map_or(0.0, |since| begun.saturating_duration_since(since).as_secs_f64());
    metrics.set_oldest(age(oldest_idle), age(oldest_turn));
    match memory::available_memory() {
        Some(available) => metrics.set_memory_available(available),
        None => metrics.sample_error(SampleSource::Meminfo),
    }
    metrics.sampled(begun.elapsed(), SystemTime::now());
    total.used()
}

fn note_ages(entry: &Entry, oldest_idle: &mut Option<Instant>, oldest_turn: &mut Option<Instant>) {
    use crate::session::SessionState::{Busy, Idle};
    let (state, quiet_since) = entry.with_board(|board| (board.state, board.quiet_since));
    let oldest = match state {
        Idle => oldest_idle,
        Busy => oldest_turn,
        _ => return,
    };
    *oldest = Some(oldest.map_or(quiet_since, |oldest| oldest.min(quiet_since)));
}
