//! Errors of starting a child, with advice for the reader. Clients read them too: they contain no server paths, except for
//! the error of a missing shim, which ends the server's start.

use std::io;
use std::path::{Path, PathBuf};

use pilotlight_shim::isolation::Rung;
use pilotlight_shim::report::DEADLINE_PASSED;

use crate::error::StartFailure;

/// Metric label of a start after the deadline of this node.
pub(crate) const FENCED: &str = "fenced";

/// Why a child did not start. No process is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("`{}` does not exist, or it is a script whose interpreter does not: check cli.program", name(.program))]
    NotFound { program: PathBuf },
    #[error("`{}` may not be executed by this user (children have no capabilities, as root neither): check its mode, its directories and the mount", name(.program))]
    NotPermitted { program: PathBuf },
    #[error("`{}` is no program for this machine: it may be cut short or lack its `#!` line; install it again", name(.program))]
    NotExecutable { program: PathBuf },
    #[error("no more processes may be started for `{}`: raise the limit on processes (RLIMIT_NPROC, pids.max)", name(.program))]
    WouldBlock { program: PathBuf },
    #[error("there is no memory to start `{}`: lower limits.max_children or the load", name(.program))]
    OutOfMemory { program: PathBuf },
    #[error("no more files may be opened to start `{}`: raise the limit on open files (RLIMIT_NOFILE)", name(.program))]
    TooManyFiles { program: PathBuf },
    #[error("the session's working directory cannot be entered to start `{}`", name(.program))]
    NoWorkingDirectory { program: PathBuf },
    #[error(
        "the shim program is missing; looked for {}: install `pilotlight-shim` beside this program, set cli.shim, \
         or call `pilotlight::shim::run_if_asked()` first thing in main", list(.looked)
    )]
    ShimMissing { looked: Vec<PathBuf> },
    #[error("the shim program is no longer where it was: install `pilotlight-shim` again")]
    ShimGone,
    #[error("the shim ended before it could start `{}`; its standard error says why", name(.program))]
    ShimFailed { program: PathBuf },
    #[error(
        "`{}` was not started, because the isolation rung `{}` failed ({source}): {}; or take it out of isolation.rungs",
        name(.program), .rung.as_str(), advice(*.rung)
    )]
    Unisolated {
        program: PathBuf,
        rung: Rung,
        #[source]
        source: io::Error,
    },
    #[error("`{}` was not started, because this node no longer holds its sessions", name(.program))]
    Fenced { program: PathBuf },
    #[error("failed to start `{}`", name(.program))]
    Io {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// The error for a system error at the start of `program`.
    pub(super) fn from_io(source: io::Error, program: &Path) -> Self {
        let program = program.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound { program },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { program },
            Some(libc::ENOEXEC) => Self::NotExecutable { program },
            Some(libc::EAGAIN) => Self::WouldBlock { program },
            Some(libc::ENOMEM) => Self::OutOfMemory { program },
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyFiles { program },
            Some(DEADLINE_PASSED) => Self::Fenced { program },
            _ => Self::Io { program, source },
        }
    }

    /// Metric label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. }
            | Self::NoWorkingDirectory { .. }
            | Self::ShimMissing { .. }
            | Self::ShimGone => "not_found",
            Self::NotPermitted { .. } => "eacces",
            Self::NotExecutable { .. } => "enoexec",
            Self::WouldBlock { .. } => "eagain",
            Self::OutOfMemory { .. } => "enomem",
            Self::TooManyFiles { .. } => "emfile",
            Self::Unisolated { .. } => "isolation",
            Self::Fenced { .. } => FENCED,
            Self::ShimFailed { .. } | Self::Io { .. } => "exited_early",
        }
    }
}

impl From<SpawnError> for StartFailure {
    fn from(error: SpawnError) -> Self {
        Self::Spawn { reason: error.reason(), message: error.to_string(), source: Some(error.into()) }
    }
}

/// What an operator can do about a rung that could not be applied.
fn advice(rung: Rung) -> &'static str {
    match rung {
        Rung::Landlock => {
            "it needs Linux 5.13 with Landlock enabled, and a container runtime that permits its calls"
        }
        Rung::Seccomp => "it needs a kernel with seccomp filters",
        Rung::Namespaces => {
            "it needs root or unprivileged user namespaces, a container profile that permits them and mounts, and every \
             configured mount"
        }
        Rung::Uid => "it needs root or CAP_SETUID and CAP_SETGID",
        Rung::Cgroup => "it needs a delegated cgroup v2 group or writable v1 hierarchies",
    }
}

/// File name of the program without its path, for errors that clients read.
fn name(program: &Path) -> std::path::Display<'_> {
    Path::new(program.file_name().unwrap_or_default()).display()
}

fn list(paths: &[PathBuf]) -> String {
    let quoted: Vec<_> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_rung_is_named_with_advice() {
        for rung in Rung::ALL {
            let source = io::Error::from_raw_os_error(libc::EPERM);
            let error = SpawnError::Unisolated { program: "/opt/cli".into(), rung, source };
            assert_eq!(error.reason(), "isolation");
            let text = error.to_string();
            assert!(text.contains(&format!("`{}`", rung.as_str())) && text.contains(advice(rung)), "{text}");
            assert!(text.contains("not permitted") && !text.contains("/opt"), "{text}");
        }
    }

    #[test]
    fn every_errno_has_its_reason_and_names_no_path() {
        for (errno, reason) in [
            (libc::ENOENT, "not_found"),
            (libc::ENOTDIR, "not_found"),
            (libc::EACCES, "eacces"),
            (libc::EPERM, "eacces"),
            (libc::ENOEXEC, "enoexec"),
            (libc::EAGAIN, "eagain"),
            (libc::ENOMEM, "enomem"),
            (libc::EMFILE, "emfile"),
            (libc::ENFILE, "emfile"),
            (libc::EIO, "exited_early"),
        ] {
            let error = SpawnError::from_io(io::Error::from_raw_os_error(errno), Path::new("/opt/cli"));
            assert_eq!(error.reason(), reason, "{errno}");
            let text = error.to_string();
            assert!(text.contains("`cli`") && !text.contains("/opt"), "{text}");
        }
    }
}
