//! Limit of open files (`RLIMIT_NOFILE`) of this process and of its children.
//!
//! A service needs a file per connection and some per child, so it raises its limit. Children keep the inherited limit:
//! programs with `select` break above 1024 files, and some close every descriptor up to the limit before an exec.

use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};
#[cfg(feature = "server")]
use rustix::process::{Rlimit, setrlimit};

/// Soft limit before it was raised.
static INHERITED: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process to the hard limit; children keep the former. For dedicated servers: the limit
/// affects the whole process.
///
/// # Errors
/// Error of the operating system; the limit is unchanged.
#[cfg(feature = "server")]
pub fn raise() -> std::io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let (Some(current), Some(maximum)) = (now.current, now.maximum) else { return Ok(()) };
    if current >= maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), maximum: Some(maximum) })?;
    // Set once: a second call has nothing to raise.
    INHERITED.get_or_init(|| current);
    Ok(())
}

/// Smallest hard limit of children: below it, programs break.
const LEAST_OF_CHILDREN: u64 = 64;
/// Hard limit of children beside a process without one.
const MOST_OF_CHILDREN: u64 = 1 << 16;

/// Hard limit for children: half of this process's limit.
///
/// The kernel counts descriptors that are in flight between processes for each user, and holds them against the limit of
/// the process that sends another one. With equal limits a tool could keep this process from starting children.
pub(crate) fn most_of_children() -> u64 {
    let own = getrlimit(Resource::Nofile).current;
    own.map_or(MOST_OF_CHILDREN, |own| (own / 2).clamp(LEAST_OF_CHILDREN, MOST_OF_CHILDREN))
}

/// Soft limit for children, if it differs from this process's limit.
pub(crate) fn of_children() -> Option<u64> {
    INHERITED.get().copied()
}
