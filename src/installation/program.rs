//! Which program is the CLI. Looked up for every start, so that one which was installed or repaired since is used
//! without a restart of the service.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::config::CliConfig;
use crate::error::{StartError, StartFailure};

/// The built-in simulation, as a program name.
const SIM: &str = "sim";

/// How to find the CLI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Program {
    /// The simulated CLI: an executable of pilotlight with an argument before all others.
    Sim,
    /// A name to be looked up in PATH.
    Name(String),
    /// A path.
    Path(PathBuf),
}

/// A program that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Absolute.
    pub(crate) path: PathBuf,
    /// Arguments before all others.
    pub(crate) first_args: Vec<OsString>,
}

impl Program {
    pub(crate) fn of(config: &CliConfig) -> Self {
        match config.program.as_str() {
            SIM => Self::Sim,
            // Relative to where the service was started, not to a workspace.
            path if path.contains('/') => {
                Self::Path(std::path::absolute(path).unwrap_or_else(|_| path.into()))
            }
            name => Self::Name(name.to_owned()),
        }
    }

    /// Refuses the simulated CLI where this program was built without it.
    pub(crate) fn check_is_built(&self) -> Result<(), StartError> {
        match self {
            Self::Sim if cfg!(not(feature = "sim")) => Err(StartError::SimNotBuilt),
            _ => Ok(()),
        }
    }

    /// Where it is now.
    ///
    /// # Errors
    /// [`StartFailure::Spawn`] if there is no such program. Whether a path leads to one is found out by starting it.
    pub(crate) fn find(&self) -> Result<Found, StartFailure> {
        let plain = |path: PathBuf| Found { path, first_args: Vec::new() };
        match self {
            Self::Path(path) => Ok(plain(path.clone())),
            Self::Name(name) => {
                let directories = std::env::var_os("PATH").unwrap_or_default();
                let candidates = std::env::split_paths(&directories).map(|directory| directory.join(name));
                let found = candidates
                    .filter_map(|path| std::path::absolute(path).ok())
                    .find(|path| is_program(path));
                found.map(plain).ok_or_else(|| {
                    missing(format!(
                        "`{name}` was not found in PATH: install it, or set cli.program to its path"
                    ))
                })
            }
            Self::Sim => simulation().ok_or_else(|| {
                missing(
                    "the simulation was not found: install `pilotlight` beside this program, or call \
                     pilotlight::sim::run_if_asked() first thing in main"
                        .to_owned(),
                )
            }),
        }
    }
}

fn missing(message: String) -> StartFailure {
    StartFailure::Spawn { reason: "not_found", message, source: None }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// This program, if it can be the simulation, else `pilotlight` beside it or one directory up (where tests and examples
/// find it).
#[cfg(feature = "sim")]
fn simulation() -> Option<Found> {
    let own = std::env::current_exe().ok()?;
    let with = |path: PathBuf, word: &str| Found { path, first_args: vec![word.into()] };
    if pilotlight_sim::can_be_sim() {
        return Some(with(own, pilotlight_sim::SIM_ARG));
    }
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("pilotlight"));
    beside.into_iter().find(|path| is_program(path)).map(|path| with(path, pilotlight_sim::SIM_ARG))
}

/// None: this program was built without the simulated CLI.
#[cfg(not(feature = "sim"))]
fn simulation() -> Option<Found> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Program {
        Program::of(&CliConfig { program: name.to_owned(), ..CliConfig::default() })
    }

    #[test]
    fn sim_is_refused_without_its_feature() {
        let refused = program("sim").check_is_built().err().map(|error| error.to_string());
        assert_eq!(refused.is_some(), cfg!(not(feature = "sim")));
        assert!(refused.is_none_or(|text| text.contains("feature `sim`")));
        program("claude").check_is_built().unwrap();
    }

    #[test]
    fn names_are_looked_up_and_paths_are_taken() {
        assert_eq!(program("sim"), Program::Sim);
        assert_eq!(program("/opt/claude"), Program::Path("/opt/claude".into()));
        assert!(matches!(program("./claude"), Program::Path(path) if path.is_absolute()));
        assert_eq!(program("sh").find().unwrap().path.file_name().unwrap(), "sh");
        let error = program("no-such-program-anywhere").find().unwrap_err();
        assert_eq!(error.reason(), "not_found");
        assert!(error.to_string().contains("cli.program"));
    }
}
