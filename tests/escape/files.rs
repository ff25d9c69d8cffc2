//! Files: other sessions, records, credentials.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::etc::ENVIRONMENT;
use crate::findings::{self, Findings};
use crate::scene::{ALICE, Scene, read, secret};

/// The files of the victim's record.
fn record_files(record: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(record).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    let shown = |path: &Path| path.display().to_string();
    let victim = &scene.victim;
    let mut judge = |name: &str, gained: bool, seen: &str| findings.judge(&scene.walls, name, gained, seen);

    let private = [victim.dir.join("work/private"), victim.dir.join("home/private")];
    for path in &private {
        let printed = scene.attempt(&["read", &shown(path)]).await;
        judge("session-read", printed.contains(&scene.secrets.file), &printed);
        let printed = scene.attempt(&["append", &shown(path), "-changed"]).await;
        judge("session-write", read(path).ends_with("-changed"), &printed);
        let printed = scene.attempt(&["hardlink", &shown(path), "taken"]).await;
        judge("session-link", read(&scene.work.join("taken")).contains(&scene.secrets.file), &printed);
        std::fs::remove_file(scene.work.join("taken")).ok();
    }
    let planted = victim.dir.join("work/planted");
    let printed = scene.attempt(&["create", &shown(&planted), "x"]).await;
    judge("session-write", planted.exists(), &printed);
    let printed = scene.attempt(&["remove", &shown(&private[0])]).await;
    judge("session-write", !private[0].exists(), &printed);
    let made = victim.dir.join("work/made-meanwhile");
    let look = async || std::fs::write(&made, "").is_ok();
    let (_, printed) = scene.holding(&["watch", &shown(&victim.dir.join("work"))], look).await;
    judge("session-watch", printed.contains("made-meanwhile"), &printed);
    for path in [&victim.dir, &victim.record, &scene.keys.0] {
        let before = mode(path);
        let printed = scene.attempt(&["chmod", &shown(path)]).await;
        judge("file-modes", mode(path) != before, &printed);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(before)).unwrap();
    }
    for directory in ["/tmp", "/dev/shm"] {
        let (name, kept) = (format!("escape-{}", uuid::Uuid::new_v4()), secret());
        let path = Path::new(directory).join(name);
        let words = ["share", directory, path.file_name().unwrap().to_str().unwrap(), &kept];
        scene.attempt_by(ALICE, &words).await;
        let printed = scene.attempt(&["read", &shown(&path)]).await;
        judge("shared-directory", printed.contains(&kept), &printed);
        std::fs::remove_file(path).ok();
    }
    let sessions = victim.dir.parent().unwrap();
    let name = victim.dir.file_name().unwrap().to_str().unwrap();
    let printed = scene.attempt(&["list", &shown(sessions)]).await;
    judge("session-list", printed.contains(name), &printed);

    let records = record_files(&victim.record);
    assert!(!records.is_empty(), "the victim has a record");
    for (read_name, write_name, path) in records
        .into_iter()
        .map(|path| ("record-read", "record-write", path))
        .chain([&scene.keys.0, &scene.users_file].map(|path| ("keys-read", "keys-write", path.clone())))
    {
        let before = read(&path);
        let printed = scene.attempt(&["read", &shown(&path)]).await;
        judge(read_name, printed.contains(before.trim()), &printed);
        let printed = scene.attempt(&["append", &shown(&path), "\n"]).await;
        judge(write_name, read(&path) != before, &printed);
    }
    if scene.has_environment {
        let printed = scene.attempt(&["read", ENVIRONMENT]).await;
        judge("environment-read", printed.contains(&scene.secrets.server), &printed);
    }
    let planted = victim.record.join("planted");
    let printed = scene.attempt(&["create", &shown(&planted), "x"]).await;
    judge("record-write", planted.exists(), &printed);
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_files_of_others_are_out_of_reach() {
    findings::simulated(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_files_by_the_real_cli() {
    findings::real(attack).await;
}
