//! One child process and everything about it that is not a conversation: how it is started, contained, measured,
//! how it ended, and what is done about what it leaves behind.
//!
//! Used by the session layer, which owns the handles. It must not know actors, sessions or HTTP, and it parses
//! no line of the CLI. Processes are always reached through the shim or through pidfds; nothing here waits for
//! "any child", because the process may be a host with children of its own.
#![allow(dead_code, unused_imports, reason = "called by the session layer, which is not complete yet")]

mod cgroup;
mod exit;
mod host;
mod locate;
mod memory;
mod reaper;
mod spawn;
mod spawn_error;
mod sweep;

pub(crate) use crate::shim::{args::Limits, report::Rung};
pub(crate) use cgroup::CgroupBase;
pub(crate) use exit::{Ending, Exit, OomKills};
pub(crate) use host::{available_memory, memory_limit};
pub(crate) use locate::ShimProgram;
pub(crate) use memory::{ProcessTable, TreeMemory, tree_memory};
pub(crate) use spawn::{Contained, Ended, Launch, ShimHandle, Sweep, spawn};
pub(crate) use spawn_error::SpawnError;
pub(crate) use sweep::sweep_marked;
