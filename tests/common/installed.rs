//! Where the real CLI is, and what happens to its tests where it is not.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The version that the tests are written for; `tests/run` installs it and the others, by these two lines.
pub const VERSION: &str = "2.1.197";

/// An older and a newer one, for the few tests of what must work with any.
pub const OTHERS: [&str; 2] = ["2.0.76", "2.1.332"];

/// The installed CLI, or nothing after having said which test is left out. Fails where nothing may be left out.
pub fn real_cli(test: &str) -> Option<PathBuf> {
    let found = find();
    if found.is_none() {
        assert!(
            !all_required(),
            "the real CLI is not installed, and nothing may be left out here: run tests/run"
        );
        say(&format!("{test}: left out: real CLI not installed (tests/run installs it)"));
    }
    found
}

/// As [`real_cli`], in one of the other versions.
pub fn other_cli(version: &str, test: &str) -> Option<PathBuf> {
    assert!(OTHERS.contains(&version), "{version} is not installed by tests/run");
    let found = installed(version).canonicalize().ok();
    if found.is_none() {
        assert!(
            !all_required(),
            "the CLI {version} is not installed, and nothing may be left out: run tests/run"
        );
        say(&format!("{test}: left out: CLI {version} not installed (tests/run installs it)"));
    }
    found
}

/// Where `tests/run` puts a version.
fn installed(version: &str) -> PathBuf {
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/real-cli");
    let all = std::env::var_os("PILOTLIGHT_REAL_CLIS").map_or(usual, PathBuf::from);
    all.join(version).join("node_modules/.bin/claude")
}

/// The path of the CLI without the symbolic links in it.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PILOTLIGHT_REAL_CLI").map_or_else(|| installed(VERSION), PathBuf::from);
    path.canonicalize().ok()
}

/// Writes to the standard error itself: the test runner shows what passing tests print to nobody.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

/// Says what part of a test is left out because this machine cannot do it. `tests/run` gathers it and says it at its end.
pub fn left_out(what: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say(&format!("{test}: left out: {what}"));
    if let Some(file) = std::env::var_os("PILOTLIGHT_LEFT_OUT") {
        let file = std::fs::File::options().append(true).create(true).open(file);
        writeln!(file.expect("the list can be written"), "{test}: {what}").expect("the list is written");
    }
}

/// Whether a test that cannot run is a failure.
pub fn all_required() -> bool {
    let is_set = |name: &str| std::env::var(name).is_ok_and(|value| value == "true" || value == "1");
    is_set("CI") || is_set("PILOTLIGHT_REQUIRE_ALL")
}

/// The browser's version that the page was looked at in; `tests/run` installs it where it may, by this line.
pub const CHROMIUM: &str = "156.0.8078.79-1~deb12u1";

/// A Chromium that runs without a screen, or nothing after having said that it is missing. Any version does.
pub fn chromium() -> Option<PathBuf> {
    const NAMES: [&str; 4] = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
    let given = std::env::var_os("PILOTLIGHT_CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    let found = given.or_else(|| all.find(|program| program.is_file()));
    if found.is_none() {
        left_out("no Chromium is installed (Debian: chromium-headless-shell)");
    }
    found
}
