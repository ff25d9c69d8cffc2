//! The real credentials: searched from outside in everything that belongs to a session.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde_json::json;

use crate::common::installed::left_out;
use crate::common::layout::session_dir;
use crate::common::process::{Process, descendants};
use crate::common::program::{Answer, message};
use crate::findings::{self, Findings};
use crate::rungs::{Term, all_walls};
use crate::scene::{Cli, MALLORY, Scene, read, secret};

/// A user with OAuth credentials of its own.
const CAROL: &str = "carol";
const CHILD_KEEPS_THEM: &str = "[broker]\ncredentials = \"child\"\n";
/// Bytes that are read of a memory image at once, and files that are read at most.
const PIECE: usize = 1 << 20;
const MAX_FILE: u64 = 64 << 20;

/// Where a credential was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Environment,
    Arguments,
    Memory,
    File,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn has(bytes: &[u8], needle: &str) -> bool {
    memchr::memmem::find(bytes, needle.as_bytes()).is_some()
}

/// Whether the memory of a process has the text. Only pages that are there are read: the CLI reserves many more.
fn memory_has(process: Process, needle: &str) -> bool {
    let open = |name: &str| File::open(format!("/proc/{}/{name}", process.pid));
    // A process that has just ended has no memory.
    let (Ok(memory), Ok(pages)) = (open("mem"), open("pagemap")) else { return false };
    let page = procfs::page_size();
    let mut buffer = vec![0; PIECE];
    for line in read(Path::new(&format!("/proc/{}/maps", process.pid))).lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((begin, end)) = range.split_once('-') else { continue };
        let at = |text: &str| u64::from_str_radix(text, 16).unwrap_or_default();
        if !rest.starts_with('r') || rest.contains("[v") {
            continue;
        }
        let mut place = at(begin);
        while place < at(end) {
            let length = (at(end) - place).min(PIECE as u64);
            let mut entries = vec![0; usize::try_from(length / page * 8).unwrap()];
            let known = pages.read_at(&mut entries, place / page * 8).unwrap_or_default();
            // The highest bits of an entry: the page is in memory, or swapped.
            let is_there =
                entries[..known].chunks(8).any(|entry| entry.last().is_some_and(|top| top >> 6 != 0));
            let piece = &mut buffer[..usize::try_from(length).unwrap()];
            if is_there && memory.read_at(piece, place).is_ok_and(|read| has(&piece[..read], needle)) {
                return true;
            }
            place += length;
        }
    }
    false
}

/// Whether a file below the directory has the text. Links are not followed.
fn files_have(directory: &Path, needle: &str) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let Ok(of) = entry.metadata() else { return false };
        let path = entry.path();
        if of.is_dir() {
            return files_have(&path, needle);
        }
        of.is_file() && of.len() <= MAX_FILE && std::fs::read(path).is_ok_and(|bytes| has(&bytes, needle))
    })
}

/// The directories of a session: its own, that for temporary files, and what its processes see as shared ones.
fn directories(scene: &Scene, user: &str, family: &[Process]) -> BTreeSet<PathBuf> {
    let data = scene.place.data_dir().canonicalize().unwrap();
    let mut found = BTreeSet::from([session_dir(&data, user, "default")]);
    for process in family {
        let environ = read(Path::new(&format!("/proc/{}/environ", process.pid)));
        let temporary = environ.split('\0').find_map(|entry| entry.strip_prefix("TMPDIR="));
        let root = PathBuf::from(format!("/proc/{}/root", process.pid));
        found.extend(temporary.map(|path| root.join(path.trim_start_matches('/'))));
        for shared in ["tmp", "dev/shm"] {
            // The host's own has the files of the tests, among them the server's configuration.
            let place = |path: PathBuf| std::fs::metadata(path).ok().map(|of| (of.dev(), of.ino()));
            let is_hosts = place(root.join(shared)) == place(Path::new("/").join(shared));
            found.extend((!is_hosts).then(|| root.join(shared)));
        }
    }
    found.insert("/dev/shm".into());
    found
}

/// Everywhere inside a user's session where the text is.
fn places(scene: &Scene, user: &str, child: Process, needle: &str) -> BTreeSet<Place> {
    let shim = child.parent().and_then(Process::of).expect("a shim");
    let family: Vec<_> = [shim].into_iter().chain(descendants(shim.pid)).collect();
    assert!(family.len() >= 2, "a shim and a child");
    let mut found = BTreeSet::new();
    for process in &family {
        let of = |name: &str| std::fs::read(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
        found.extend(has(&of("environ"), needle).then_some(Place::Environment));
        found.extend(has(&of("cmdline"), needle).then_some(Place::Arguments));
        found.extend(memory_has(*process, needle).then_some(Place::Memory));
    }
    let mut directories = directories(scene, user, &family).into_iter();
    found.extend(directories.any(|directory| files_have(&directory, needle)).then_some(Place::File));
    found
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    if !geteuid().is_root() {
        return left_out("credentials in memory images: only root reads them");
    }
    let mut judge = |what: &str, place: Place, found: &BTreeSet<Place>| {
        let seen = format!("{what} in {place}: {found:?}");
        findings.judge(&scene.walls, "real-credentials", found.contains(&place), &seen);
    };
    let child = scene.child(MALLORY).await;
    let found = places(scene, MALLORY, child, &scene.secrets.operator);
    for place in [Place::Environment, Place::Memory] {
        judge("the operator's key", place, &found);
    }
    assert!(!found.contains(&Place::Arguments) && !found.contains(&Place::File), "{found:?}");

    let (access, refresh) = (secret(), secret());
    let mut body = message("[[say:ready]]");
    body["oauth_credentials"] =
        json!({ "access_token": access, "refresh_token": refresh, "expires_at": 4_102_444_800_000_u64 });
    let turn = scene.request("POST", "/v1/messages/keepalive", CAROL).json(&body);
    assert_eq!(Answer::of(turn).await.text(), "ready");
    let child = scene.child(CAROL).await;
    for (what, needle) in [("an access token", &access), ("a refresh token", &refresh)] {
        let found = places(scene, CAROL, child, needle);
        judge(what, Place::File, &found);
        assert!(!found.contains(&Place::Arguments), "{found:?}");
        if !scene.walls.has(Term::Landlock) && !scene.walls.has(Term::Namespaces) {
            continue;
        }
        // Without a broker, the CLI may or may not have read the file yet.
        for place in [Place::Environment, Place::Memory] {
            judge(what, place, &found);
        }
    }
    let found = places(scene, CAROL, child, &scene.secrets.operator);
    assert_eq!(found, BTreeSet::new(), "the operator's key in a session with credentials of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_real_credentials_are_nowhere_inside() {
    findings::simulated(attack).await;
    if !geteuid().is_root() {
        return;
    }
    // The search finds what is there, whatever the walls.
    let walls = all_walls().into_iter().rfind(|walls| walls.has(Term::Root)).expect("all walls of root");
    let scene = Scene::with(&Cli::Simulated, &walls, CHILD_KEEPS_THEM).await;
    let child = scene.child(MALLORY).await;
    let found = places(&scene, MALLORY, child, &scene.secrets.operator);
    assert_eq!(found, BTreeSet::from([Place::Environment, Place::Memory]), "{walls}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_real_credentials_by_the_real_cli() {
    findings::real(attack).await;
}
