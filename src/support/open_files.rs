//! Limit of open files (`RLIMIT_NOFILE`) of this process and of its children.
//!
//! A service needs a file per connection and some per child, so it raises its limit. Children keep the inherited limit:
//! programs with `select` break above 1024 files, and some close every descriptor up to the limit before an exec.

use std::sync::OnceLock;

#[cfg(feature = "server")]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

/// Soft limit for children, if it differs from this process's limit.
pub(crate) fn of_children() -> Option<u64> {
    INHERITED.get().copied()
}
