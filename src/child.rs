//! One child process: how it is started and contained, spoken with, watched, measured and ended.
//!
//! The [`ChildTask`] runs while the child lives; everything else here serves it or the sampler. Knows processes
//! and turns, and of a CLI only its adapter. It must not import actors, sessions or HTTP. Processes are always
//! reached through the shim or through pidfds; nothing here waits for "any child", because the process may be a host
//! with children of its own.

mod calls;
mod cgroup;
mod connection;
mod event;
mod exit;
mod framing;
mod host;
mod locate;
mod lost;
mod memory;
mod permissions;
mod reaper;
mod running_turn;
mod secrets;
mod servers;
mod spawn;
mod spawn_error;
mod stderr;
mod steering;
mod sweep;
mod task;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod vitals;
mod waiting;
mod watchdog;

pub(crate) use cgroup::{CgroupBase, GroupLimits, Groups, Held, LimitBase};
pub(crate) use connection::{ChildContext, ConnectionHandle, RawClient, RawStops, run_raw};
#[cfg(feature = "server")]
pub(crate) use connection::{LINES_IN_FLIGHT, RawInput, RawOutput};
pub(crate) use event::{ChildEvent, OnChildEvent};
pub(crate) use exit::{ChildExit, Exit, ExitCause, KillReason};
pub(crate) use host::{available_memory, memory_limit, open_files, pressure};
pub(crate) use locate::ShimProgram;
#[cfg(feature = "server")]
pub(crate) use memory::Process;
pub(crate) use memory::{ProcessTable, TreeMemory, single_tree};
pub(crate) use permissions::Answer;
pub(crate) use pilotlight_shim::args::ChildLimits;
pub(crate) use pilotlight_shim::isolation::Isolation;
pub(crate) use running_turn::{Job, RunningTurn, TurnEnd, TurnReport};
pub(crate) use secrets::Secrets;
pub(crate) use servers::AskServers;
pub(crate) use spawn::{Contained, Launch, ShimHandle, Sweep, spawn};
pub(crate) use spawn_error::{FENCED, SpawnError};
pub(crate) use steering::Steer;
pub(crate) use sweep::sweep_marked;
pub(crate) use task::{ChildTask, UNKILLABLE};
pub(crate) use waiting::{Remains, Unfit, WaitingChild};
