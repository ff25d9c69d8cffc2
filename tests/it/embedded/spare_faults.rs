//! Spares that fail, and spares in the way of users.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pilotlight::config::{Rung, UidRange};
use rustix::process::Signal;

use super::spares::{marked, ready, spare_clis, spares};
use super::*;
use crate::common::bench::signal;
use crate::common::installed::left_out;

/// A directory that children of any user id can read.
fn readable() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// A program at `path` with these lines where it is to be the CLI, and that ends where it is asked for its version.
fn script(path: &Path, lines: &str) {
    let text = format!("#!/bin/sh\ncase \"$*\" in *--print*) ;; *) exit 1 ;; esac\n{lines}\n");
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

/// A user id for each user, and nothing else that would end what a shim has left; false where that cannot be.
fn with_ids(config: &mut Config, first: u32, last: u32) {
    config.isolation.rungs = vec![Rung::Uid];
    config.isolation.uids = UidRange::new(first, last).unwrap();
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        left_out("the rung uid needs root");
    }
    is_root
}

/// The real user id of a process that lives.
fn uid_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let lives = !line("State:")?.starts_with(['Z', 'X']);
    line("Uid:")?.split_whitespace().next()?.parse().ok().filter(|_| lives)
}

/// The shims of this data directory.
fn shims(data: &Path) -> Vec<u32> {
    let is_shim = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("--term-grace-ms")
    };
    processes_in(data).into_iter().filter(is_shim).collect()
}

/// Takes a process out of all groups, by which it would be killed as well.
fn escape_groups(pid: u32) {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in groups.lines() {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        for place in [controllers.trim_start_matches("name="), "unified", ""] {
            // Where there is such a group: a file of this name made elsewhere would be taken for one.
            let group = Path::new("/sys/fs/cgroup").join(place).join("cgroup.procs");
            if let Ok(mut group) = std::fs::OpenOptions::new().write(true).open(group) {
                group.write_all(pid.to_string().as_bytes()).ok();
            }
        }
    }
}

/// A daemon without an environment outlives a shim that is killed: its user id is not given to the next spare, and is used
/// again once the daemon is gone.
#[tokio::test(flavor = "multi_thread")]
async fn user_id_with_a_process_is_not_reused() {
    if !is_root() {
        return;
    }
    let scripts = readable();
    let (cli, pids) = (scripts.path().join("cli"), scripts.path().join("pids"));
    std::fs::create_dir(&pids).unwrap();
    std::fs::set_permissions(&pids, PermissionsExt::from_mode(0o777)).unwrap();
    let daemon = format!("cd /; echo > {}/$$; exec sleep 600", pids.display());
    script(
        &cli,
        &format!("env -i PATH=$PATH setsid sh -c '{daemon}' </dev/null >/dev/null 2>&1 &\nexec sleep 600"),
    );
    let daemons = || -> Vec<u32> {
        let names = std::fs::read_dir(&pids).unwrap().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let bench = Bench::with(|config| {
        spares(1)(config);
        with_ids(config, 1_800_000_000, 1_800_000_009);
        config.cli.program = cli.display().to_string();
        config.session.spawn_timeout = Duration::from_secs(60);
    })
    .await;
    eventually("a spare has a daemon", || daemons().len() == 1).await;
    let first = daemons()[0];
    let id = uid_of(first).expect("it lives");
    assert_eq!(id, 1_800_000_000);
    escape_groups(first);
    signal(shims(bench.data.path())[0], Signal::KILL);
    eventually("the next spare has one", || daemons().len() == 2).await;
    assert_eq!(uid_of(first), Some(id), "this test is about a daemon that is left");
    let second = *daemons().iter().find(|pid| **pid != first).unwrap();
    assert_ne!(uid_of(second), Some(id), "two spares have one user id");
    signal(first, Signal::KILL);
    signal(second, Signal::KILL);
    let is_used_again = || {
        let used: Vec<u32> = daemons().into_iter().filter(|pid| uid_of(*pid) == Some(id)).collect();
        if used.is_empty() {
            shims(bench.data.path()).iter().for_each(|shim| signal(*shim, Signal::KILL));
            daemons()
                .into_iter()
                .filter(|pid| uid_of(*pid).is_some())
                .for_each(|pid| signal(pid, Signal::KILL));
        }
        !used.is_empty()
    };
    crate::common::eventually("its id is used again", 3 * crate::common::SOON, is_used_again).await;
    bench.pilot.shutdown(Duration::from_secs(5)).await;
    daemons().into_iter().filter(|pid| uid_of(*pid).is_some()).for_each(|pid| signal(pid, Signal::KILL));
}

/// The only permit to start is not held while the template is copied for a spare.
#[tokio::test(flavor = "multi_thread")]
async fn copy_for_a_spare_holds_up_no_start() {
    const FILES: usize = 3_000;
    let (data, template) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pilot = start(data.path(), |_| {}).await;
    say(&pilot.session("alice"), "the word is heliotrope").await;
    pilot.shutdown(Duration::from_secs(5)).await;
    for number in 0..FILES {
        std::fs::write(template.path().join(number.to_string()), "x").unwrap();
    }
    let pilot = start(data.path(), |config| {
        spares(1)(config);
        config.limits.starts_in_flight = 1;
        config.workspace.template = Some(template.path().to_owned());
    })
    .await;
    let directory = || marked(data.path()).into_iter().find(|directory| directory.exists());
    eventually("a copy has begun", || directory().is_some()).await;
    let copy = directory().expect("it is there");
    let is_copying = || copy.exists() && !copy.join("work").exists();
    assert!(is_copying(), "the copy is too short for this test");
    let alice = pilot.session("alice");
    let recalling = tokio::spawn({
        let alice = alice.clone();
        async move { say(&alice, "[[recall]]").await }
    });
    // A permit that the copy held would let no child begin before the end of the copy. Looked for often: the copy goes on.
    let begun = async {
        while alice.status().is_none_or(|status| status.pid.is_none()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(crate::common::SOON, begun).await.expect("alice has a child");
    assert!(is_copying(), "the start waited for the copy");
    assert_eq!(recalling.await.unwrap(), "the word is heliotrope");
    eventually("a spare is ready in the end", || pilot.spares_ready() == 1).await;
    pilot.shutdown(Duration::from_secs(5)).await;
    assert_eq!(marked(data.path()), Vec::<PathBuf>::new());
}

/// All spares are killed as users arrive: no two of them get one directory or one user id, and each is answered.
#[tokio::test(flavor = "multi_thread")]
async fn killed_spares_are_shared_by_no_users() {
    const ROUNDS: usize = 5;
    const SPARES: usize = 3;
    let has_ids = rustix::process::geteuid().is_root();
    for round in 0..ROUNDS {
        // The pauses after failures would add up.
        let bench = Bench::with(|config| {
            spares(SPARES)(config);
            if has_ids {
                with_ids(config, 1_810_000_000, 1_810_000_099);
            }
        })
        .await;
        ready(&bench, SPARES).await;
        let doomed = spare_clis(bench.data.path());
        assert_eq!(doomed.len(), SPARES);
        let arrivals: Vec<_> = (0..2 * SPARES)
            .map(|number| {
                let session = bench.pilot.session(format!("user {number}"));
                tokio::spawn(async move {
                    // A turn on a CLI that is killed may end without an answer.
                    let answered = async |text: &str| match ask(&session, text).await {
                        outcome if outcome.is_ok() => outcome.text,
                        _ => say(&session, text).await,
                    };
                    let word = format!("the word of {number}");
                    answered(&word).await;
                    let recalled = answered("[[recall]]").await;
                    assert!(recalled.contains(&word), "{recalled}");
                    let id_now = || session.status().and_then(|status| uid_of(status.pid?));
                    let mut id = id_now();
                    if id.is_none() {
                        // The kill came only now, and the next turn has a child of its own.
                        answered("hello").await;
                        id = id_now();
                    }
                    (session.workspace().await.unwrap().work, id.expect("it lives"))
                })
            })
            .collect();
        // Each round at another moment of the arrival.
        for _ in 0..round * 50 {
            tokio::task::yield_now().await;
        }
        doomed.iter().filter(|pid| is_alive(**pid)).for_each(|pid| signal(*pid, Signal::KILL));
        let (mut works, mut ids) = (HashSet::new(), HashSet::new());
        for arrival in arrivals {
            let (work, id) = arrival.await.unwrap();
            assert!(works.insert(work.clone()), "{} has two users", work.display());
            assert!(ids.insert(id) || !has_ids, "two users have the id {id}");
        }
        bench.end().await;
    }
}

/// A spare has the last user id of the range: it gives way to a user. Once all have users, the refusal says what to do.
#[tokio::test(flavor = "multi_thread")]
async fn spare_gives_its_user_id_to_a_user() {
    if !is_root() {
        return;
    }
    let bench = Bench::with(|config| {
        spares(1)(config);
        // Three, and that of probes.
        with_ids(config, 1_820_000_000, 1_820_000_003);
    })
    .await;
    ready(&bench, 1).await;
    let alice = bench.pilot.session("alice");
    say(&alice, "hello").await;
    ready(&bench, 1).await;
    let spare = spare_clis(bench.data.path())[0];
    let start_of = async |user: &str| {
        let session = bench.pilot.session(user);
        // Of another kind than the spare.
        let turn = session.send_with("hello", TurnOptions::default().model("another")).await?;
        let outcome = turn.finish().await;
        match outcome.status {
            Status::Aborted(error) => Err(error),
            _ => Ok(uid_of(pid(&session)).expect("it lives")),
        }
    };
    let (bob, carol) = (start_of("bob").await.unwrap(), start_of("carol").await.unwrap());
    assert!(!is_alive(spare), "carol has its id");
    let mut ids = [uid_of(pid(&alice)).expect("it lives"), bob, carol];
    ids.sort_unstable();
    assert_eq!(ids, [1_820_000_000, 1_820_000_001, 1_820_000_002]);
    let refused = start_of("dave").await.unwrap_err();
    assert_eq!(refused.code(), "no_user_id", "{refused}");
    assert!(refused.to_string().contains("isolation.uids"), "{refused}");
    assert_eq!(refused.retry_after(), None, "each has its user");
    bench.end().await;
}

/// Users who come at once, for whom only ids of spares are left, end one spare each.
#[tokio::test(flavor = "multi_thread")]
async fn users_without_ids_end_one_spare_each() {
    const SPARES: usize = 4;
    const USERS: usize = 2;
    if !is_root() {
        return;
    }
    // One is left to a user beside those of spares, and one is that of probes.
    let bench = Bench::with(|config| {
        spares(SPARES)(config);
        with_ids(config, 1_830_000_000, 1_830_000_005);
    })
    .await;
    ready(&bench, SPARES).await;
    let before = spare_clis(bench.data.path());
    let arrivals: Vec<_> = (0..=USERS)
        .map(|number| {
            let session = bench.pilot.session(format!("user {number}"));
            // Of another kind than the spares.
            let options = TurnOptions::default().model("another");
            tokio::spawn(async move { session.send_with("hello", options).await.unwrap().finish().await })
        })
        .collect();
    for arrival in arrivals {
        let outcome = arrival.await.unwrap();
        assert!(outcome.is_ok(), "{outcome:?}");
    }
    let left = before.iter().filter(|pid| is_alive(**pid)).count();
    assert_eq!(left, SPARES - USERS);
    bench.end().await;
}

/// An id that a process may have is given to nobody, and may be free soon: the refusal says when to try again.
#[tokio::test(flavor = "multi_thread")]
async fn user_id_in_doubt_is_worth_another_try() {
    if !is_root() {
        return;
    }
    let bench = Bench::with(|config| {
        spares(1)(config);
        with_ids(config, 1_840_000_000, 1_840_000_002);
    })
    .await;
    ready(&bench, 1).await;
    let spare = spare_clis(bench.data.path())[0];
    let own = uid_of(spare).expect("it lives");
    // A process with the id that nothing of the server ends.
    let mut foreign = std::process::Command::new("sleep");
    let mut foreign = std::os::unix::process::CommandExt::uid(&mut foreign, own).arg("600").spawn().unwrap();
    let [shim] = shims(bench.data.path())[..] else { panic!("one spare has one shim") };
    // Its end is not known: a process with its id may be left.
    for pid in [shim, spare] {
        escape_groups(pid);
    }
    signal(shim, Signal::KILL);
    eventually("the spare is gone", || bench.pilot.spares_ready() == 0).await;
    let turn = async |user: &str| {
        let session = bench.pilot.session(user);
        let turn = session.send_with("hello", TurnOptions::default().model("another")).await.unwrap();
        turn.finish().await.status
    };
    assert!(matches!(turn("alice").await, Status::Completed), "one id is left");
    let since = Instant::now();
    let Status::Aborted(refused) = turn("bob").await else { panic!("no id is left") };
    assert_eq!((refused.code(), refused.retry_after()), ("no_user_id", Some(Duration::from_secs(5))));
    assert!(since.elapsed() < Duration::from_secs(5), "nobody waits for it");
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    let again = async || matches!(turn("bob").await, Status::Completed);
    crate::common::eventually_some("the id is free", crate::common::SOON, async || {
        again().await.then_some(())
    })
    .await;
    bench.end().await;
}

/// The task of a spare fails while the spare starts: the next one starts after a pause.
#[tokio::test(flavor = "multi_thread")]
async fn spare_whose_task_failed_is_replaced() {
    let bench = Bench::with(spares(1)).await;
    ready(&bench, 1).await;
    let killed = spare_clis(bench.data.path())[0];
    bench.pilot.fail("spare", "").await;
    signal(killed, Signal::KILL);
    eventually("it is gone", || bench.pilot.spares_ready() == 0).await;
    ready(&bench, 1).await;
    bench.end().await;
}

/// A start for which the host has no room takes that of the spares.
#[tokio::test(flavor = "multi_thread")]
async fn start_without_descriptors_ends_the_spares() {
    let bench = Bench::with(spares(2)).await;
    ready(&bench, 2).await;
    let before = spare_clis(bench.data.path());
    let alice = bench.pilot.session("alice");
    bench.pilot.fail("start", "").await;
    // Of another kind than the spares.
    let turn = alice.send_with("hello", TurnOptions::default().model("another")).await.unwrap();
    let outcome = turn.finish().await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(before.iter().all(|pid| !is_alive(*pid)), "their room is needed");
    // Without spares it is refused, as ever.
    bench.pilot.fail("start", "").await;
    let bob = bench.pilot.session("bob").send("hello").await.unwrap().finish().await;
    let Status::Aborted(refused) = bob.status else { panic!("{bob:?}") };
    assert_eq!(refused.code(), "overloaded");
    bench.end().await;
}

/// A spare that serves ends the pauses after failures at once, not at the end of its session.
#[tokio::test(flavor = "multi_thread")]
async fn spare_that_serves_ends_the_pauses() {
    let bench = Bench::with(spares(1)).await;
    let replaced = async || {
        let killed = spare_clis(bench.data.path())[0];
        signal(killed, Signal::KILL);
        let is_new = || {
            let now = spare_clis(bench.data.path());
            bench.pilot.spares_ready() == 1 && now.len() == 1 && now[0] != killed
        };
        let since = Instant::now();
        eventually("it is replaced", is_new).await;
        since.elapsed()
    };
    ready(&bench, 1).await;
    // After pauses of one, two and four seconds; the next would be eight.
    for _ in 0..3 {
        replaced().await;
    }
    let alice = bench.pilot.session("alice");
    let spare = spare_clis(bench.data.path())[0];
    say(&alice, "hello").await;
    assert_eq!(pid(&alice), spare);
    ready(&bench, 1).await;
    let pause = replaced().await;
    assert!(pause < Duration::from_secs(7), "{pause:?}");
    bench.end().await;
}
