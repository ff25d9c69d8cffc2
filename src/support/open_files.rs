//! The limit on open files of this process (`RLIMIT_NOFILE`), and what children get of it.
//!
//! A service holds a file for each connection and a handful for each child, so it takes what it may have. Its children
//! keep the limit that the service was given: programs that use `select` break above 1024 files, and some close every
//! number up to the limit when they start another.

use std::sync::OnceLock;

#[cfg(feature = "server")]
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit before it was raised.
static INHERITED: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process to the hard one; children that are started later keep the former. For a program
/// that is a server and nothing else: the limit belongs to the whole process.
///
/// # Errors
/// The system's answer; the limit is as it was then.
#[cfg(feature = "server")]
pub fn raise() -> std::io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let (Some(current), Some(maximum)) = (now.current, now.maximum) else { return Ok(()) };
    if current >= maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), maximum: Some(maximum) })?;
    // Set once: a second call finds nothing left to raise.
    INHERITED.get_or_init(|| current);
    Ok(())
}

/// The soft limit that children are to have, where that of this process is another.
pub(crate) fn of_children() -> Option<u64> {
    INHERITED.get().copied()
}
