//! A hundred sessions with all walls: they start at once, work, and leave nothing behind whatever is killed.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::installed::say;
use crate::common::process::{Process, all, descendants};
use crate::common::program::Program;
use crate::common::{SOON, eventually};
use crate::kernel::hierarchies;
use crate::observers::link;
use crate::rungs::{Term, Walls, extreme_walls};
use crate::scene::{Cli, Scene, as_user, read, tool};

const SESSIONS: usize = 100;
/// A start on a busy machine with two processors takes up to a tenth of a second.
const CONFIG: &str = "[limits]\nqueue_deadline = \"120s\"\nqueue = 1024\n[session]\nidle_timeout = \"10m\"\n";
const NAMESPACES: [&str; 6] = ["pid", "mnt", "net", "user", "ipc", "uts"];
/// How long after SIGKILL of everything a part of it may be seen.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// What the sessions of a server have of the host.
struct Holdings {
    family: Vec<Process>,
    namespaces: BTreeSet<String>,
    uids: BTreeSet<u32>,
    marker: String,
    interfaces: BTreeSet<String>,
    /// In clock ticks since the boot: a process that began later is another one, even in a namespace of the same number.
    until: u64,
}

fn namespaces_of(process: Process) -> Vec<String> {
    NAMESPACES.iter().map(|name| link(process, &format!("ns/{name}"))).filter(|it| !it.is_empty()).collect()
}

fn uid_of(process: Process) -> Option<u32> {
    std::fs::metadata(format!("/proc/{}", process.pid)).ok().map(|of| of.uid())
}

fn interfaces() -> BTreeSet<String> {
    let names = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn began(process: Process) -> u64 {
    let stat = read(Path::new(&format!("/proc/{}/stat", process.pid)));
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    fields.split(' ').nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or_default()
}

impl Holdings {
    fn of(scene: &Scene) -> Self {
        let family = descendants(scene.program.process().pid);
        let server: BTreeSet<_> = namespaces_of(scene.program.process()).into_iter().collect();
        let namespaces = family.iter().flat_map(|process| namespaces_of(*process));
        let uids = family.iter().filter_map(|process| uid_of(*process)).filter(|uid| *uid >= 1_000_000);
        let environ = read(Path::new(&format!("/proc/{}/environ", scene.victim.shim.pid)));
        let marker = environ.split('\0').find_map(|entry| entry.strip_prefix("PILOTLIGHT_INSTANCE="));
        Self {
            namespaces: namespaces.filter(|it| !server.contains(it)).collect(),
            uids: uids.collect(),
            marker: marker.expect("the instance's marker").to_owned(),
            interfaces: interfaces(),
            until: family.iter().map(|process| began(*process)).max().unwrap_or_default(),
            family,
        }
    }

    /// Processes that are still there.
    fn processes(&self) -> Vec<String> {
        let is_ours = |process: &Process| {
            let is_inside = namespaces_of(*process).iter().any(|it| self.namespaces.contains(it));
            let is_of_uid = uid_of(*process).is_some_and(|uid| self.uids.contains(&uid));
            self.family.contains(process) || ((is_inside || is_of_uid) && began(*process) <= self.until)
        };
        all().into_iter().filter(is_ours).map(Process::describe).collect()
    }

    /// Namespaces that something keeps without a process in them: a mount or a descriptor.
    fn kept_namespaces(&self) -> Vec<String> {
        let mounts = read(Path::new("/proc/self/mountinfo"));
        let mounted = mounts.lines().filter(|line| line.contains("nsfs")).map(str::to_owned);
        let held = all().into_iter().flat_map(|process| {
            let entries =
                std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
            entries.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        });
        let held = held.map(|target| target.display().to_string());
        mounted
            .chain(held)
            .filter(|text| self.namespaces.iter().any(|it| text.contains(it.as_str())))
            .collect()
    }

    /// What the user ids still have: shared memory of System V, and files where all may write.
    fn of_uids(&self) -> Vec<String> {
        let segments = read(Path::new("/proc/sysvipc/shm"));
        let uid = |line: &&str| line.split_whitespace().nth(7).and_then(|uid| uid.parse().ok());
        let segments = segments.lines().filter(|line| uid(line).is_some_and(|uid| self.uids.contains(&uid)));
        let shared =
            ["/tmp", "/dev/shm", "/var/tmp"].map(|path| std::fs::read_dir(path).into_iter().flatten());
        let files = shared.into_iter().flatten().flatten().filter(|entry| {
            std::fs::symlink_metadata(entry.path()).is_ok_and(|of| self.uids.contains(&of.uid()))
        });
        segments.map(str::to_owned).chain(files.map(|entry| entry.path().display().to_string())).collect()
    }

    fn groups(&self) -> Vec<PathBuf> {
        hierarchies().into_iter().flat_map(|(mount, _)| groups_below(&mount, &self.marker, 6)).collect()
    }

    fn mounts(scene: &Path) -> Vec<String> {
        let mounts = read(Path::new("/proc/self/mountinfo"));
        let place = scene.display().to_string();
        mounts.lines().filter(|line| line.contains(&place)).map(str::to_owned).collect()
    }
}

fn groups_below(directory: &Path, marker: &str, depth: usize) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let found = directories.flat_map(|entry| {
        let is_ours = entry.file_name().to_string_lossy().contains(marker);
        let below = if depth == 0 { Vec::new() } else { groups_below(&entry.path(), marker, depth - 1) };
        below.into_iter().chain(is_ours.then(|| entry.path()))
    });
    found.collect()
}

/// Starts all sessions at once; each runs a tool that stays.
async fn storm(scene: &Arc<Scene>) {
    let begin = Instant::now();
    let mut users = JoinSet::new();
    for number in 0..SESSIONS {
        let scene = scene.clone();
        users.spawn(async move {
            let stays = tool("setsid sleep 8888.8 </dev/null >/dev/null 2>&1 &");
            let user = format!("user-{number}");
            let answer = scene.turn(&user, &format!("{stays}[[say:served]]")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.text();
        });
    }
    while let Some(user) = users.join_next().await {
        user.expect("every user is served");
    }
    let all = SESSIONS + 2;
    let line = format!("{all} sessions with {}: started within {:?}", scene.walls, begin.elapsed());
    say(&line);
}

async fn killed(walls: &Walls, with_shims: bool) {
    let scene = Arc::new(Scene::with(&Cli::Simulated, walls, CONFIG).await);
    let before = interfaces();
    storm(&scene).await;
    let holdings = Holdings::of(&scene);
    assert!(holdings.family.len() > 3 * SESSIONS, "{} processes", holdings.family.len());
    if walls.has(Term::Namespaces) {
        assert!(holdings.namespaces.len() > 3 * SESSIONS, "{} namespaces", holdings.namespaces.len());
    }
    if walls.has(Term::Uid) {
        assert!(holdings.uids.len() >= SESSIONS, "{} user ids", holdings.uids.len());
    }
    let server = scene.program.process();
    if with_shims {
        let shims = holdings.family.iter().filter(|process| process.parent() == Some(server.pid));
        shims.for_each(|shim| shim.kill());
    }
    server.kill();
    let left = || holdings.processes();
    let gone = tokio::time::timeout(GONE_WITHIN, eventually("gone", SOON, || left().is_empty())).await;
    assert!(gone.is_ok(), "left with {walls}: {:#?}", left());
    assert_eq!(Holdings::mounts(scene.place.path()), Vec::<String>::new(), "mounts with {walls}");
    assert_eq!(holdings.kept_namespaces(), Vec::<String>::new(), "namespaces with {walls}");
    assert_eq!(holdings.of_uids(), Vec::<String>::new(), "of the user ids with {walls}");
    assert_eq!(holdings.interfaces, before);
    assert_eq!(interfaces(), before, "{walls}");
    // The groups of a killed server are empty now; its next start removes them.
    let user = if walls.has(Term::Root) { Term::Root } else { Term::Unprivileged };
    let config = read(&scene.place.path().join("served.toml"));
    let (mut program, site) = Program::serve_by(&scene.place, as_user(user), &config).await;
    site.ready().await;
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    assert_eq!(holdings.groups(), Vec::<PathBuf>::new(), "groups are left with {walls}");
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_hundred_sessions_leave_nothing() {
    for walls in extreme_walls() {
        killed(&walls, false).await;
        // Without the PID namespace, tools of a shim that is killed together with its server go at the next start.
        if walls.has(Term::Namespaces) {
            killed(&walls, true).await;
        }
    }
}
