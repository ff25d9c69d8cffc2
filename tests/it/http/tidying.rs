//! SIGKILL in the middle of a sweep, a deletion, an export, a backup and a restore: nothing that is half done is shown as
//! whole, and the next start tidies.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::events::Watching;
use crate::common::layout::{record_dir, session_dir, session_dirs};
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, place};
use crate::common::{SOON, eventually};

const CONFIG: &str = "[http]\nrequests_per_minute = 0\n";
/// Instants of the kill after the work has begun to show.
const INSTANTS: [u64; 6] = [0, 1, 3, 10, 30, 100];

async fn waited(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// A data directory with a session of each user, and no server.
async fn former(place: &Arc<Place>, users: &[String]) {
    let (mut program, site) = Program::ready(place, CONFIG).await;
    for user in users {
        site.turn(user, &format!("hello of {user}")).await.text();
    }
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
}

fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

/// Each user has the whole session or nothing, and nothing else is on the disk. Returns how many have one.
async fn whole_or_nothing(place: &Arc<Place>, site: &Site, users: &[String]) -> usize {
    let data = place.data_dir();
    let mut whole = 0;
    for user in users {
        let listed = Answer::of(site.of("GET", "/v1/sessions", user)).await.json();
        let listed = listed["sessions"].as_array().unwrap().len();
        let is_there = session_dir(&data, user, "default").join("home").exists();
        let has_record = record_dir(&data, user, "default").join("session.json").exists();
        assert_eq!((listed == 1, listed == 1), (is_there, has_record), "{user}");
        whole += listed;
    }
    assert_eq!(session_dirs(&data).len(), whole, "directories of no session are left");
    for user in users.iter().filter(|user| session_dir(&data, user, "default").exists()) {
        let answer = site.turn(user, "[[recall]]").await;
        assert!(!answer.body.contains("context_lost"), "{user}: {answer:?}");
        assert!(answer.text().contains(&format!("hello of {user}")), "{user}");
    }
    whole
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_sweep_leaves_no_half_session() {
    for instant in INSTANTS {
        let (place, users) = (place(), users(6));
        former(&place, &users).await;
        let last_used =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 40 * 86_400;
        for user in &users {
            let file = record_dir(&place.data_dir(), user, "default").join("session.json");
            let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            record["last_used"] = json!({ "secs_since_epoch": last_used, "nanos_since_epoch": 0 });
            std::fs::write(&file, record.to_string()).unwrap();
        }
        {
            let config = format!("{CONFIG}[retention]\nidle_days = 30\nsweep_interval = \"100ms\"");
            let (program, site) = Program::ready(&place, &config).await;
            Watching::all(&site).await.until("expired").await;
            waited(instant).await;
            program.signal(Signal::KILL);
        }
        let (_program, site) = Program::ready(&place, CONFIG).await;
        let whole = whole_or_nothing(&place, &site, &users).await;
        assert!(whole < users.len(), "{instant}: nothing was swept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_deletion_of_a_user_is_all_or_nothing() {
    let mut deleted = 0;
    for instant in INSTANTS {
        let (place, users) = (place(), users(2));
        former(&place, &users).await;
        {
            let (program, site) = Program::ready(&place, CONFIG).await;
            for name in ["a", "b", "c", "d"] {
                let named = site.asking(&users[0], &crate::common::program::message("more"));
                assert_eq!(Answer::of(named.header("x-pilotlight-session", name)).await.status, 200);
            }
            let request = site.web().delete(format!("{}/v1/users/{}", site.admin, users[0]));
            let asking = tokio::spawn(request.send());
            waited(instant).await;
            program.signal(Signal::KILL);
            asking.await.unwrap().ok();
        }
        let notes = place.data_dir().join("records/.deleted-users");
        let has_begun = std::fs::read_dir(&notes).is_ok_and(|notes| notes.count() > 0);
        let (_program, site) = Program::ready(&place, CONFIG).await;
        let listed = Answer::of(site.of("GET", "/v1/sessions", &users[0])).await.json();
        let left = listed["sessions"].as_array().unwrap().len();
        assert!(left == 5 || left == 0, "{instant}: {listed}");
        assert!(!has_begun || left == 0, "{instant}: a deletion that began is not finished");
        deleted += usize::from(left == 0);
        assert_eq!(session_dirs(&place.data_dir()).len(), left + 1, "{instant}");
        assert!(std::fs::read_dir(&notes).is_ok_and(|notes| notes.count() == 0) || !notes.exists());
        assert!(site.turn(&users[1], "[[recall]]").await.text().contains("hello of user-1"));
    }
    assert!(deleted > 0, "no deletion had begun");
}

fn command(arguments: &[&str], data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    command.args(arguments).arg("--data-dir").arg(data_dir).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn succeeds(arguments: &[&str], data_dir: &Path) -> bool {
    command(arguments, data_dir).status().unwrap().success()
}

/// Runs a command and kills it this long after `begun` is there.
async fn killed(arguments: &[&str], data_dir: &Path, begun: &Path, instant: u64) {
    let mut child = command(arguments, data_dir).spawn().unwrap();
    eventually("the command begins", SOON, || begun.exists()).await;
    waited(instant).await;
    child.kill().ok();
    child.wait().unwrap();
}

/// A killed backup or export has no manifest, and is not taken for one; the server and its data are untouched.
#[tokio::test(flavor = "multi_thread")]
async fn killed_backup_and_export_are_no_whole_ones() {
    let (here, users) = (place(), users(8));
    let (program, site) = Program::ready(&here, CONFIG).await;
    for user in &users {
        site.turn(user, &format!("hello of {user}")).await.text();
    }
    let data = here.data_dir();
    for instant in [0, 3, 30, 300, 600] {
        let at = |name: &str| here.path().join(format!("{name}-{instant}"));
        let (backup, export, restored) = (at("backup"), at("export"), at("restored"));
        killed(&["backup", backup.to_str().unwrap()], &data, &backup, instant).await;
        let is_whole = backup.join("backup.json").exists();
        assert_eq!(succeeds(&["restore", backup.to_str().unwrap()], &restored), is_whole, "{instant}");
        assert!(is_whole || !restored.join("format").exists(), "{instant}");
        assert!(!succeeds(&["backup", backup.to_str().unwrap()], &data), "it overwrites nothing");
        let arguments = ["user", "export", &users[0], "--to", export.to_str().unwrap()];
        killed(&arguments, &data, &export, instant.min(3)).await;
        if export.join("export.json").exists() {
            assert!(export.join("sessions").read_dir().unwrap().next().is_some());
        }
        assert!(!succeeds(&arguments, &data), "it overwrites nothing");
    }
    let backup = here.path().join("whole");
    assert!(succeeds(&["backup", backup.to_str().unwrap()], &data));
    program.signal(Signal::KILL);
    drop((program, site));
    let (_program, site) = Program::ready(&here, CONFIG).await;
    assert_eq!(whole_or_nothing(&here, &site, &users).await, users.len());
}

/// A server that is killed during a backup changes nothing about it.
#[tokio::test(flavor = "multi_thread")]
async fn backup_survives_the_kill_of_its_server() {
    let (here, there, users) = (place(), place(), users(4));
    let (program, site) = Program::ready(&here, CONFIG).await;
    for user in &users {
        site.turn(user, &format!("hello of {user}")).await.text();
    }
    let backup = here.path().join("backup");
    let mut child = command(&["backup", backup.to_str().unwrap()], &here.data_dir()).spawn().unwrap();
    eventually("the backup begins", SOON, || backup.join("data/records").exists()).await;
    program.signal(Signal::KILL);
    drop((program, site));
    // The next one tidies what the killed one has left, beside the backup.
    let (_program, _site) = Program::ready(&here, CONFIG).await;
    assert!(child.wait().unwrap().success());
    assert!(succeeds(&["restore", backup.to_str().unwrap()], &there.data_dir()));
    let (_restored, site) = Program::ready(&there, CONFIG).await;
    assert_eq!(whole_or_nothing(&there, &site, &users).await, users.len());
}

/// A server refuses what a killed restore has left, and takes what a whole one has.
#[tokio::test(flavor = "multi_thread")]
async fn killed_restore_is_refused_or_whole() {
    let (here, users) = (place(), users(8));
    former(&here, &users).await;
    let backup = here.path().join("backup");
    let backup = backup.to_str().unwrap();
    assert!(succeeds(&["backup", backup], &here.data_dir()));
    let mut unfinished = 0;
    for instant in [0, 1, 2, 4, 8, 200] {
        let there = place();
        killed(&["restore", backup], &there.data_dir(), &there.data_dir().join("format"), instant).await;
        let format = std::fs::read_to_string(there.data_dir().join("format")).unwrap();
        assert!(!succeeds(&["restore", backup], &there.data_dir()), "it overwrites nothing");
        if format.starts_with("restore unfinished") {
            unfinished += 1;
            let serve = ["serve", "--cli", "sim", "--listen", "0", "--admin-listen", "0"];
            assert!(!succeeds(&serve, &there.data_dir()), "{instant}: half of a directory is served");
        } else {
            let (_program, site) = Program::ready(&there, CONFIG).await;
            assert_eq!(whole_or_nothing(&there, &site, &users).await, users.len(), "{instant}");
        }
    }
    assert!(unfinished > 0, "every restore was faster than its kill");
}
