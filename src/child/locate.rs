//! Location of the shim: a binary beside the server's, or the server's program itself.

use std::path::{Path, PathBuf};

use super::SpawnError;
use pilotlight_shim::SHIM_ARG;

const BINARY: &str = "pilotlight-shim";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShimProgram {
    pub(super) path: PathBuf,
    /// Arguments before the shim's own.
    pub(super) args: &'static [&'static str],
}

impl ShimProgram {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Arguments before the shim's own.
    pub(crate) fn args(&self) -> &'static [&'static str] {
        self.args
    }

    /// Locates the shim, once at start-up. A configured path has no fallback.
    pub(crate) fn locate(configured: Option<&Path>) -> Result<Self, SpawnError> {
        let this_program = std::env::current_exe().ok();
        choose(configured, this_program.as_deref(), pilotlight_shim::can_be_shim(), Path::is_file)
    }
}

fn choose(
    configured: Option<&Path>,
    this_program: Option<&Path>,
    can_be_shim: bool,
    is_file: impl Fn(&Path) -> bool,
) -> Result<ShimProgram, SpawnError> {
    let looked: Vec<PathBuf> = match configured {
        // Absolute, because children start in other directories.
        Some(path) => std::path::absolute(path).into_iter().collect(),
        // The parent directory too: cargo builds tests and examples one level below the programs.
        None => this_program
            .iter()
            .flat_map(|exe| exe.ancestors().skip(1).take(2))
            .map(|dir| dir.join(BINARY))
            .collect(),
    };
    if let Some(path) = looked.iter().find(|path| is_file(path)) {
        return Ok(ShimProgram { path: path.clone(), args: &[] });
    }
    match this_program {
        Some(exe) if configured.is_none() && can_be_shim => {
            Ok(ShimProgram { path: exe.to_owned(), args: &[SHIM_ARG] })
        }
        _ => Err(SpawnError::ShimMissing { looked }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        configured: Option<&str>,
        can_be_shim: bool,
        there: &[&str],
    ) -> Result<ShimProgram, SpawnError> {
        let exe = Some(Path::new("/opt/app/bin/server"));
        choose(configured.map(Path::new), exe, can_be_shim, |path| {
            there.iter().any(|file| path == Path::new(file))
        })
    }

    #[test]
    fn nearest_binary_is_used_before_the_program_itself() {
        let binary = |path: &str| ShimProgram { path: path.into(), args: &[] };
        let (beside, above) = ("/opt/app/bin/pilotlight-shim", "/opt/app/pilotlight-shim");
        assert_eq!(chosen(None, true, &[beside, above]).unwrap(), binary(beside));
        assert_eq!(chosen(None, true, &[above]).unwrap(), binary(above));
        assert_eq!(
            chosen(None, true, &[]).unwrap(),
            ShimProgram { path: "/opt/app/bin/server".into(), args: &[SHIM_ARG] }
        );
        assert_eq!(chosen(Some("/x/shim"), true, &["/x/shim", beside]).unwrap(), binary("/x/shim"));
    }

    #[test]
    fn missing_shim_is_an_error_with_its_places() {
        let error = chosen(None, false, &[]).unwrap_err().to_string();
        assert!(error.contains("/opt/app/bin/pilotlight-shim") && error.contains("run_if_asked"), "{error}");
        // A configured path has no silent fallback.
        let error = chosen(Some("/x/shim"), true, &["/opt/app/bin/pilotlight-shim"]).unwrap_err();
        assert!(
            matches!(&error, SpawnError::ShimMissing { looked } if looked == &[PathBuf::from("/x/shim")])
        );
        assert_eq!(error.reason(), "not_found");
    }
}
