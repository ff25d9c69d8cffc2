//! Scripts for Node as child processes, with the packages that `tests/run` has installed.

use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::common::installed::missing;
use crate::common::place::{MARK, Place};

/// Where `tests/run` installs the packages for Node.
pub(crate) fn node_modules() -> Option<PathBuf> {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk/node");
    let home = std::env::var_os("PILOTLIGHT_NODE_SDKS").map_or(usual, PathBuf::from);
    let found = Some(home.join("node_modules")).filter(|modules| modules.is_dir());
    if found.is_none() {
        missing("the packages for Node are not installed (tests/run installs them)");
    }
    found
}

/// Node that sees these packages and nothing else of the machine.
pub(crate) fn node(place: &Place, modules: &Path) -> Command {
    let mut command = Command::new("node");
    command.current_dir(place.path()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", place.path());
    command.env("LANG", "C.UTF-8").env("NODE_SDKS", modules).env(MARK, place.id());
    command
}
