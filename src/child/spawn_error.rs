//! Why a child could not be started, told so that the reader knows what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Nothing runs after any of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("`{}` does not exist, or it is a script whose interpreter does not: check cli.program", .program.display())]
    NotFound { program: PathBuf },
    #[error("`{}` may not be executed by this user (children have no capabilities, as root neither): check its mode, its directories and the mount", .program.display())]
    NotPermitted { program: PathBuf },
    #[error("`{}` is no program for this machine: it may be cut short or lack its `#!` line; install it again", .program.display())]
    NotExecutable { program: PathBuf },
    #[error("no more processes may be started for `{}`: raise the limit on processes (RLIMIT_NPROC, pids.max)", .program.display())]
    WouldBlock { program: PathBuf },
    #[error("there is no memory to start `{}`: lower limits.max_children or the load", .program.display())]
    OutOfMemory { program: PathBuf },
    #[error("no more files may be opened to start `{}`: raise the limit on open files (RLIMIT_NOFILE)", .program.display())]
    TooManyFiles { program: PathBuf },
    #[error("the working directory `{}` for `{}` cannot be entered", .cwd.display(), .program.display())]
    NoWorkingDirectory { program: PathBuf, cwd: PathBuf },
    #[error(
        "the shim program is missing; looked for {}: install `pilotlight-shim` beside this program, set cli.shim, \
         or call `pilotlight::shim::run_if_asked()` first thing in main", list(.looked)
    )]
    ShimMissing { looked: Vec<PathBuf> },
    #[error("the shim ended before it could start `{}`; its standard error says why", .program.display())]
    ShimFailed { program: PathBuf },
    #[error("failed to start `{}`", .program.display())]
    Io {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// What the system said when `program` should have started.
    pub(super) fn from_io(source: io::Error, program: &Path) -> Self {
        let program = program.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::NotFound { program },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { program },
            Some(libc::ENOEXEC) => Self::NotExecutable { program },
            Some(libc::EAGAIN) => Self::WouldBlock { program },
            Some(libc::ENOMEM) => Self::OutOfMemory { program },
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyFiles { program },
            _ => Self::Io { program, source },
        }
    }

    /// The metric label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } | Self::NoWorkingDirectory { .. } | Self::ShimMissing { .. } => "not_found",
            Self::NotPermitted { .. } => "eacces",
            Self::NotExecutable { .. } => "enoexec",
            Self::WouldBlock { .. } => "eagain",
            Self::OutOfMemory { .. } => "enomem",
            Self::TooManyFiles { .. } => "emfile",
            Self::ShimFailed { .. } | Self::Io { .. } => "exited_early",
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let quoted: Vec<_> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_has_its_reason_and_names_the_program() {
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
            assert!(error.to_string().contains("/opt/cli"), "{error}");
        }
    }
}
