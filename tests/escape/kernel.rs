//! The kernel: rights, namespaces, mounts, cgroups, settings, keys.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::sync::Mutex;

use crate::common::installed::left_out;
use crate::common::process::{Process, descendants};
use crate::findings::{self, Findings};
use crate::observers::link;
use crate::rungs::Term;
use crate::scene::{ALICE, MALLORY, PERL, Scene, command, read, run_as, secret, unique_number};

/// One attempt at a time changes the host; it is undone at once.
static HOST: Mutex<()> = Mutex::const_new(());
/// A setting without effect where no core file is written, and one that names a program of root.
const SETTINGS: [&str; 2] = ["/proc/sys/kernel/core_uses_pid", "/proc/sys/kernel/core_pattern"];

/// The process of the attempt with this name, from outside.
fn attacker(scene: &Scene, name: &str) -> Option<Process> {
    let all = descendants(scene.program.process().pid).into_iter();
    let is_it = |process: &Process| {
        let arguments = process.arguments();
        arguments.first().is_some_and(|program| program == PERL)
            && arguments.get(2).is_some_and(|it| it == name)
    };
    all.into_iter().find(is_it)
}

/// Mount points of cgroup hierarchies, each with the name of its line in `/proc/PID/cgroup`.
pub(crate) fn hierarchies() -> Vec<(PathBuf, String)> {
    let mounts = read(Path::new("/proc/self/mounts"));
    let of = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let (path, kind, options) = (fields.get(1)?, fields.get(2)?, fields.get(3)?);
        let name = match *kind {
            "cgroup2" => String::new(),
            "cgroup" => options.split(',').next_back()?.to_owned(),
            _ => return None,
        };
        Some((PathBuf::from(path), name))
    };
    mounts.lines().filter_map(of).collect()
}

/// The group of a process in one hierarchy.
fn group(process: Process, hierarchy: &str) -> Option<String> {
    let groups = read(Path::new(&format!("/proc/{}/cgroup", process.pid)));
    let mut lines =
        groups.lines().filter_map(|line| line.split_once(':').map(|(_, rest)| rest.split_once(':')));
    lines.find_map(|line| line.filter(|(name, _)| *name == hierarchy).map(|(_, path)| path.to_owned()))
}

/// A set-uid program of root in the attacker's workspace, and a file that only root may read.
async fn set_uid(scene: &Scene) -> Option<(bool, String)> {
    let has_nothing_to_gain = scene.walls.has(Term::Root) && !scene.walls.has(Term::Uid);
    if !geteuid().is_root() || has_nothing_to_gain {
        return None;
    }
    let (program, file) = (scene.work.join("set-uid"), scene.work.join("of-root"));
    crate::common::built::copy_program("/bin/cat", &program);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o6755)).unwrap();
    let secret = secret();
    std::fs::write(&file, &secret).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let printed = scene.attempt(&["set-uid", "./set-uid", "of-root"]).await;
    let gained = printed.contains(&secret);
    if !scene.walls.has(Term::Uid) {
        // The same outside of any wall succeeds: the program and the file are as they should be.
        let mut outside = run_as(Term::Unprivileged, Path::new("/bin/sh"));
        let attempt = command(&["set-uid", "./set-uid", "of-root"]).replace(">loot 2>&1", "");
        let output = outside.args(["-c", &attempt]).current_dir(&scene.work).output().unwrap();
        let outside = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(outside.contains(&secret), "the attack works outside: {output:?}");
    }
    std::fs::remove_file(program).unwrap();
    std::fs::remove_file(file).unwrap();
    Some((gained, printed))
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    let mut judge = |name: &str, gained: bool, seen: &str| findings.judge(&scene.walls, name, gained, seen);
    let child = scene.child(MALLORY).await;

    if let Some((gained, printed)) = set_uid(scene).await {
        judge("set-uid", gained, &printed);
    }
    let look = async || {
        attacker(scene, "user-namespace").is_some_and(|it| link(it, "ns/user") != link(child, "ns/user"))
    };
    let (gained, printed) = scene.holding(&["user-namespace"], look).await;
    judge("user-namespace", gained, &printed);
    let look = async || {
        let mounts = attacker(scene, "mount").map(|it| read(Path::new(&format!("/proc/{}/mounts", it.pid))));
        mounts.is_some_and(|mounts| {
            mounts.lines().any(|line| line.starts_with("none ") && line.contains("/mounted tmpfs"))
        })
    };
    let target = scene.work.join("mounted").display().to_string();
    let (gained, printed) = scene.holding(&["mount", &target], look).await;
    judge("mount", gained, &printed);

    for (mount, name) in hierarchies() {
        let Some(own) = group(child, &name).filter(|own| own != "/") else { continue };
        let look = async || attacker(scene, "group").is_some_and(|it| group(it, &name) != Some(own.clone()));
        let (gained, printed) = scene.holding(&["group", &mount.display().to_string()], look).await;
        judge("leave-group", gained, &printed);
    }

    host(scene, &mut judge).await;

    let (number, kept) = (unique_number().to_string(), secret());
    scene.attempt_by(ALICE, &["keep-segment", &number, &kept]).await;
    let printed = scene.attempt(&["find-segment", &number]).await;
    judge("shared-memory", printed.contains(&kept), &printed);
    scene.attempt_by(ALICE, &["drop-segment", &number]).await;

    let (name, kept) = (format!("escape-{}", uuid::Uuid::new_v4()), secret());
    scene.attempt_by(ALICE, &["keep-key", &name, &kept]).await;
    let printed = scene.attempt(&["find-key", &name]).await;
    judge("keyring", printed.contains(&kept), &printed);
}

/// Attempts on the settings of the host.
async fn host(scene: &Scene, judge: &mut impl FnMut(&str, bool, &str)) {
    let _alone = HOST.lock().await;
    for path in SETTINGS {
        let setting = || read(Path::new(path)).trim_end_matches('\n').to_owned();
        let before = setting();
        let other = match before.as_str() {
            "0" => "1".to_owned(),
            "1" => "0".to_owned(),
            // A blank at the end changes nothing.
            text => format!("{text} "),
        };
        let look = async || {
            let changed = setting() != before;
            if changed {
                std::fs::write(path, &before).unwrap();
            }
            changed
        };
        let (gained, printed) = scene.holding(&["setting", path, &other], look).await;
        judge("host-setting", gained, &printed);
    }

    // The letter for help only writes a line to the kernel's log.
    let trigger = "/proc/sysrq-trigger";
    if !Path::new(trigger).exists() {
        return left_out("/proc/sysrq-trigger: this kernel has none");
    }
    let (gained, printed) = scene.holding(&["setting", trigger, "h"], async || true).await;
    judge("sysrq", gained, &printed);
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_kernel_is_out_of_reach() {
    findings::simulated(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_kernel_by_the_real_cli() {
    findings::real(attack).await;
}
