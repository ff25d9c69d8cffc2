//! A user id for each user: its children run as it, its files belong to it, and the server still manages them.

use std::os::unix::fs::MetadataExt;

use super::{served, session_directories, tool};
use crate::common::program::{Answer, Program, message, place};
use crate::common::{SOON, eventually_some};

/// The owners of the working directories of all sessions, in order.
fn owners(place: &crate::common::place::Place) -> Vec<u32> {
    let work = session_directories(place).into_iter().map(|session| session.join("work"));
    let mut owners: Vec<_> = work.map(|work| std::fs::metadata(work).unwrap().uid()).collect();
    owners.sort_unstable();
    owners
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_has_an_id_of_its_own() {
    let place = place();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let config = "";
    let Some((program, site)) = served(&place, &["uid"], config).await else { return };
    let id = async |site: &crate::common::program::Site, user: &str| {
        tool(site, user, "id -u; id -g").await.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (alice, bob) = (id(&site, "alice").await, id(&site, "bob").await);
    assert_eq!(
        (alice.clone(), bob.clone()),
        (vec!["1900000000".to_owned(); 2], vec!["1900000001".to_owned(); 2])
    );
    assert_eq!(owners(&place), [1_900_000_000, 1_900_000_001]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", site.pid("bob").await)).unwrap();
    assert!(status.contains("Uid:\t1900000001\t1900000001"), "{status}");
    // The server reads, writes and removes what belongs to its users.
    tool(&site, "alice", "mkdir -p d/e && chmod 0 d/e && echo x > f && chmod 0 f").await;
    assert_eq!(Answer::of(site.session("DELETE", "default?purge=true", "alice")).await.status, 200);
    assert_eq!(owners(&place), [1_900_000_001]);
    // Another start gives the same ids.
    drop((site, program));
    let Some((_program, site)) = served(&place, &["uid"], config).await else { return };
    assert_eq!(id(&site, "bob").await, bob);
    assert_eq!(id(&site, "alice").await, alice);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_follow_the_rung_and_return() {
    let place = place();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let own = rustix::process::geteuid().as_raw();
    for (rungs, expected) in [(&[][..], own), (&["uid"][..], 1_900_000_000), (&[], own)] {
        let Some((_program, site)) = served(&place, rungs, "").await else { return };
        let output = tool(&site, "alice", "cat kept 2>/dev/null; echo again >> kept && id -u").await;
        assert!(output.contains(&expected.to_string()), "{rungs:?}: {output}");
        let work = session_directories(&place).remove(0).join("work");
        let kept = std::fs::metadata(work.join("kept")).unwrap();
        assert_eq!((kept.uid(), std::fs::metadata(&work).unwrap().uid()), (expected, expected), "{rungs:?}");
    }
    let kept = session_directories(&place).remove(0).join("work/kept");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "again\n".repeat(3));
}

/// The files of a new session are given to its user when the child starts: the turn has not written them.
#[tokio::test(flavor = "multi_thread")]
async fn files_given_to_a_user_are_not_of_the_turn() {
    let (place, template) = (place(), tempfile::tempdir().unwrap());
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    std::fs::write(template.path().join("given"), "int main;").unwrap();
    let config = format!("[workspace]\ntemplate = \"{}\"\n", template.path().display());
    let Some((_program, site)) = served(&place, &["uid"], &config).await else { return };
    let mut body = message(r#"[[tool:Bash {"command":"echo 1 > made"}]]"#);
    body["include_files"] = true.into();
    let events = Answer::of(site.asking("alice", &body)).await.events();
    let written = events.iter().filter(|event| event["type"] == "file_created");
    assert_eq!(written.map(|event| &event["path"]).collect::<Vec<_>>(), ["made"], "{events:#?}");
    assert_eq!(owners(&place), [1_900_000_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_ids_are_a_clear_refusal() {
    let place = place();
    std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let config = "[isolation]\nrungs = [\"uid\"]\nuids = \"300000-300001\"\n";
    let (program, site): (Program, _) = Program::ready(&place, config).await;
    if site.metric("isolation_info", &["rung=\"uid\""]).await != 1.0 {
        return crate::common::installed::left_out("the rung uid cannot be built here");
    }
    assert_eq!(site.turn("alice", "hello").await.status, 200);
    // The last id of the range is the probes'.
    let answer = site.turn("bob", "hello").await;
    let (status, code, text) = answer.error();
    assert_eq!((status, code.as_str()), (503, "no_user_id"), "{text}");
    eventually_some("the log names the key", SOON, async || {
        program.err().contains("isolation.uids").then_some(())
    })
    .await;
    assert_eq!(site.turn("alice", "hello again").await.status, 200);
}
