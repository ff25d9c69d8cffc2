//! Where the programs under test and the repository are.

use std::path::{Path, PathBuf};

/// The program `pilotlight` that Cargo built for the running test.
pub fn pilotlight() -> PathBuf {
    program("pilotlight")
}

/// The program `pilotlight-shim` that Cargo built for the running test.
pub fn shim() -> PathBuf {
    program("pilotlight-shim")
}

/// Copies a program that is executed afterwards. By another process: this one forks all the time for other tests, and a fork
/// that holds the copy open for writing, if only for a moment, makes its execution fail (ETXTBSY).
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied = std::process::Command::new("cp").arg(from.as_ref()).arg(to.as_ref()).status();
    assert!(copied.expect("cp runs").success(), "{} is copied", from.as_ref().display());
}

/// Root directory of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this file is two folders below the root")
}

/// Directory of everything that Cargo has built for the running test: `target`, as a rule.
pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.ancestors().nth(3).expect("target/PROFILE/deps/TEST").to_owned()
}

/// Cargo places programs one directory above the test binaries.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let program = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join(name);
    assert!(program.exists(), "{} is not built: run a whole test binary with cargo test", program.display());
    program
}
