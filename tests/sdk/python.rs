//! The scripts beside this file as child processes, each with packages that `tests/run` has installed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::common::installed::missing;
use crate::common::place::{MARK, Place};
use crate::node::{node, node_modules};

/// The packages that `tests/run` installs.
pub(crate) const PINNED: &str = include_str!("pinned.txt");

/// More than any script takes, on a machine busy with other tests.
const RUNS_WITHIN: Duration = Duration::from_secs(180);

/// Which version of a package: they stand in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Age {
    Current,
    YearOld,
}

/// A script beside this file and the packages that it imports.
pub(crate) struct Script {
    name: &'static str,
    packages: Packages,
}

enum Packages {
    Python(PathBuf),
    Node(PathBuf),
}

impl Script {
    /// The script with the package that its name begins with; nothing, after having said so, if that is not installed.
    pub(crate) fn with_package(name: &'static str, age: Age) -> Option<Self> {
        let (package, _) = name.split_once('_').expect("a script's name begins with its package");
        Some(Self { name, packages: Packages::Python(package_of(package, age)?) })
    }

    /// The script for Node; nothing, after having said so, if its packages are not installed.
    pub(crate) fn in_node(name: &'static str) -> Option<Self> {
        Some(Self { name, packages: Packages::Node(node_modules()?) })
    }

    /// Runs it to its end, which must be a good one and come in time.
    pub(crate) async fn run(&self, place: &Place, variables: &[(&str, &str)]) {
        let (mut command, end, home) = match &self.packages {
            Packages::Python(package) => (python(place, package), "py", package),
            Packages::Node(modules) => (node(place, modules), "mjs", modules),
        };
        command.arg(file_of(self.name, end)).envs(variables.iter().copied());
        let (is_good, written) = finished(command, place, RUNS_WITHIN).await;
        // Seen if the test fails, or with `--nocapture`.
        println!("{} with {}:\n{written}", self.name, home.display());
        assert!(is_good, "{} has failed", self.name);
    }
}

/// A script's file.
pub(crate) fn file_of(name: &str, end: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(format!("{name}.{end}"))
}

/// The packages that are installed together with one whose name begins so, of this age.
pub(crate) fn pinned(package: &str, age: Age) -> &'static str {
    let is_it = |line: &&str| {
        let name = line.split_once("==").map(|(name, _)| name).and_then(|name| name.strip_prefix(package));
        name.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let found = PINNED.lines().filter(|line| !line.starts_with('#')).filter(is_it).nth(age as usize);
    found.unwrap_or_else(|| panic!("no such version of {package}"))
}

/// Where a package is.
pub(crate) fn package_of(package: &str, age: Age) -> Option<PathBuf> {
    let pinned = pinned(package, age);
    let name = pinned.replace("==", "-").replace(' ', "+");
    let found = home().map(|home| home.join(name)).filter(|home| home.is_dir());
    if found.is_none() {
        missing(&format!("{pinned} is not installed (tests/run installs it)"));
    }
    found
}

/// Where `tests/run` puts packages for the Python of this machine.
fn home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("PILOTLIGHT_SDKS") {
        return Some(home.into());
    }
    let tag = "import sys; print(sys.implementation.cache_tag)";
    let asked = std::process::Command::new("python3").args(["-c", tag]).output().ok()?;
    let tag = String::from_utf8(asked.stdout).ok()?;
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sdk").join(tag.trim()))
}

/// Python that sees this package, its own library and nothing else of the machine, and that writes nothing beside sources.
pub(crate) fn python(place: &Place, package: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-S", "-u"]).current_dir(place.path()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", place.path());
    command.env("LANG", "C.UTF-8").env("PYTHONPATH", package).env(MARK, place.id());
    command.env("PYTHONPYCACHEPREFIX", package.with_file_name("compiled"));
    command
}

/// Waits for a program's end, at most this time: whether it was a good one, and all that it wrote.
pub(crate) async fn finished(mut command: Command, place: &Place, within: Duration) -> (bool, String) {
    // A file and no pipe: what was written is there also if the time is up.
    let path = place.path().join(format!("written-{}", uuid::Uuid::new_v4()));
    let file = std::fs::File::create(&path).expect("a file for its output");
    let errors = file.try_clone().expect("the same file");
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let mut child = command.kill_on_drop(true).spawn().expect("it starts");
    let ended = timeout(within, child.wait()).await;
    if ended.is_err() {
        child.kill().await.expect("it can be killed");
    }
    let mut written = String::from_utf8_lossy(&std::fs::read(&path).expect("its output")).into_owned();
    if ended.is_err() {
        written.push_str(&format!("\nkilled after {within:?}\n"));
    }
    (ended.is_ok_and(|status| status.expect("it was waited for").success()), written)
}
