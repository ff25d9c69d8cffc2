//! `pilotlight backup` and `restore`.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::common::layout::session_dir;
use crate::common::place::Place;
use crate::common::program::{Answer, Program, Site, message, place};

fn run(arguments: &[&str], data_dir: &Path) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    let output = command.args(arguments).arg("--data-dir").arg(data_dir).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn done(arguments: &[&str], data_dir: &Path) -> String {
    let (is_done, said) = run(arguments, data_dir);
    assert!(is_done, "{arguments:?}: {said}");
    said
}

/// Takes a turn of a session after the other until the task is dropped.
async fn turns(site: Site, user: &'static str) {
    for number in 0.. {
        let answer = Answer::of(site.asking(user, &message(&format!("later {number}")))).await;
        assert_eq!(answer.status, 200);
    }
}

/// A backup of a server with running turns has every turn that was answered before.
#[tokio::test(flavor = "multi_thread")]
async fn backup_of_a_running_server_is_restored_elsewhere() {
    let (here, there) = (place(), place());
    let config = "[permissions]\npolicy = \"allow\"\n[http]\nrequests_per_minute = 0";
    let (program, site) = Program::ready(&here, config).await;
    for user in ["alice", "bob", "carol"] {
        for number in 0..3 {
            assert_eq!(site.turn(user, &format!("turn {number} of {user}")).await.status, 200);
        }
    }
    let tool = "[[tool:Bash {\"command\":\"echo kept > file && ln -s /etc/passwd link && mkfifo pipe\"}]]";
    assert_eq!(site.turn("alice", tool).await.status, 200);
    let running = ["bob", "carol"].map(|user| tokio::spawn(turns(site.clone(), user)));
    let backup = here.path().join("backup");
    let to = backup.display().to_string();
    let said = done(&["backup", &to], &here.data_dir());
    assert!(said.contains("3 sessions") && said.contains("1 files left out"), "{said}");
    // SIGKILL: what the backup has is all there is.
    running.iter().for_each(|task| task.abort());
    program.signal(rustix::process::Signal::KILL);
    drop(program);

    let said = done(&["restore", &to], &there.data_dir());
    assert!(said.contains("3 sessions"), "{said}");
    assert_files(&there);
    let (_program, site) = Program::ready(&there, config).await;
    for user in ["alice", "bob", "carol"] {
        let answer = site.turn(user, "[[recall]]").await;
        assert!(!answer.body.contains("context_lost"), "{user}: {answer:?}");
        let text = answer.text();
        for number in 0..3 {
            assert!(text.contains(&format!("turn {number} of {user}")), "{user}: {text}");
        }
    }
}

fn assert_files(there: &Arc<Place>) {
    let work = session_dir(&there.data_dir(), "alice", "default").join("work");
    assert_eq!(std::fs::read_to_string(work.join("file")).unwrap(), "kept\n");
    assert_eq!(std::fs::read_link(work.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert!(!work.join("pipe").exists());
}

/// What one child has put in the place of its transcripts costs no other session its restore.
#[tokio::test(flavor = "multi_thread")]
async fn planted_transcripts_do_not_stop_a_restore() {
    let (here, there) = (place(), place());
    let (program, site) = Program::ready(&here, "").await;
    for user in ["alice", "bob", "carol"] {
        assert_eq!(site.turn(user, "hello").await.status, 200);
    }
    let backup = here.path().join("backup");
    let to = backup.display().to_string();
    done(&["backup", &to], &here.data_dir());
    drop((site, program));
    for (user, is_link) in [("bob", true), ("carol", false)] {
        let home = session_dir(&backup.join("data"), user, "default").join("home/.claude");
        let projects = home.join("projects");
        std::fs::remove_dir_all(&projects).unwrap();
        if is_link {
            std::os::unix::fs::symlink("/etc", &projects).unwrap();
        } else {
            std::fs::write(&projects, "").unwrap();
        }
    }
    let said = done(&["restore", &to], &there.data_dir());
    assert!(said.contains("3 sessions") && said.contains("2 files left out"), "{said}");
    let (_program, site) = Program::ready(&there, "").await;
    assert!(site.turn("alice", "[[recall]]").await.text().contains("hello"));
}

/// Neither overwrites anything, and half of one is not taken for a whole.
#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_refuse_what_is_not_empty() {
    let place = place();
    let (program, site) = Program::ready(&place, "").await;
    assert_eq!(site.turn("alice", "hello").await.status, 200);
    let data = place.data_dir();
    let at = |name: &str| place.path().join(name).display().to_string();
    let refused = |arguments: &[&str], data: &Path, why: &str| {
        let (is_done, said) = run(arguments, data);
        assert!(!is_done && said.contains(why), "{arguments:?}: {said}");
    };
    done(&["backup", &at("one")], &data);
    refused(&["backup", &at("one")], &data, "is not empty");
    refused(&["backup", &data.join("inner").display().to_string()], &data, "lies in the data directory");
    refused(&["backup", &at("two")], &place.path().join("nowhere"), "is no data directory");
    refused(&["restore", &at("one")], &data, "in use");
    drop((site, program));
    refused(&["restore", &at("one")], &data, "is not empty");
    refused(&["restore", &at("nothing")], &place.path().join("new"), "is no backup");
    std::fs::remove_file(place.path().join("one/backup.json")).unwrap();
    refused(&["restore", &at("one")], &place.path().join("new"), "is no backup");
    // What an interrupted restore leaves is refused by a server.
    let cut = place.path().join("cut");
    std::fs::create_dir_all(cut.join("records")).unwrap();
    std::fs::write(cut.join("format"), "restore unfinished").unwrap();
    refused(&["serve", "--cli", "sim", "--listen", "0", "--admin-listen", "0"], &cut, "no format number");
}
