//! The rungs of the isolation, one module each. Each applies to the calling process and everything that it starts.

use std::{io, path::Path};

use super::isolation::Rung;

pub(crate) mod landlock;
pub(crate) mod namespaces;
mod network;
mod reach;
mod root;
pub(crate) mod seccomp;

/// Why the CLI was not started: a rung that could not be applied, or `None` for the start itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) rung: Option<Rung>,
    pub(crate) errno: i32,
}

impl Refusal {
    pub(crate) fn of(rung: Rung) -> impl Fn(io::Error) -> Self + Copy {
        move |error| Self { rung: Some(rung), ..error.into() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { rung: None, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Names the path on stderr, which the server keeps: a report has room for the error only.
fn at<T>(path: &Path, result: io::Result<T>) -> io::Result<T> {
    result.inspect_err(|error| eprintln!("pilotlight-shim: {}: {error}", path.display()))
}
