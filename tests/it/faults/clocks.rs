//! Time that jumps, stands still, or belongs to another process.

use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use super::*;
use tokio::sync::Mutex;

use crate::common::place::Place;
use crate::common::process::descendants;

/// Adds the number in a file to the wall clock, and to that clock alone.
const OTHER_CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long long *offset;
__attribute__((constructor)) static void find(void) {
    int file = open(getenv("TEST_CLOCK"), O_RDONLY);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && offset) now->tv_sec += *offset;
    return result;
}
"#;

/// A server whose wall clock can be set, and the file that sets it.
fn with_other_clock(place: &Place) -> Option<(Command, std::fs::File)> {
    let (source, library, clock) =
        (place.path().join("clock.c"), place.path().join("clock.so"), place.path().join("clock"));
    std::fs::write(&source, OTHER_CLOCK).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        return None;
    }
    let set = std::fs::File::create(&clock).unwrap();
    set.write_all_at(&0_i64.to_ne_bytes(), 0).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    command.env("LD_PRELOAD", library).env("TEST_CLOCK", clock);
    Some((command, set))
}

/// A clock that jumps evicts nobody and hangs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn fault_32_clock_jump_evicts_and_hangs_none() {
    let place = place();
    let Some((command, clock)) = with_other_clock(&place) else {
        return crate::common::installed::left_out("no C compiler to build another clock with");
    };
    let config = "session = { idle_timeout = \"8s\", stall_timeout = \"1s\" }\nmetrics = { sample_interval = \"100ms\" }";
    let attack = Attack::by(place, command, config).await;
    for user in ["carol", "dave"] {
        attack.turn_of(user, "hello").await.text();
    }
    attack.say("hello").await;
    let pids = async || {
        let mut pids = Vec::new();
        for user in ["carol", "dave", MALLORY] {
            pids.push(attack.site.entry(user, "default").await["pid"].clone());
        }
        pids
    };
    let before = pids().await;
    let shown = async || attack.site.metric("last_sample_timestamp_seconds", &[]).await;
    let (real, began) = (shown().await, Instant::now());
    // The server looks for idle children at least once in that time, whatever the wall clock says.
    while began.elapsed() < Duration::from_secs(10) {
        for hours in [1, -1, 24, 0] {
            // Nobody rests longer than one round.
            for user in ["carol", "dave"] {
                attack.turn_of(user, "hello").await.text();
            }
            attack.note_turn();
            let request = attack.site.asking(MALLORY, &message("[[deltas:20]][[delay:50]]"));
            let turn = tokio::spawn(async move { Reply::of(&Answer::of(request).await) });
            attack.state("busy").await;
            let jump = hours * 3600_i64;
            clock.write_all_at(&jump.to_ne_bytes(), 0).unwrap();
            let passed = || began.elapsed().as_secs_f64();
            let jumped =
                async || ((shown().await - real - passed() - jump as f64).abs() < 60.0).then_some(());
            eventually_some("the server sees another time", SOON, jumped).await;
            assert_eq!(turn.await.unwrap().text().len(), 80);
        }
    }
    assert_eq!(pids().await, before, "everybody still has the same child");
    assert_eq!(attack.site.metric("evictions_total", &[]).await, 1.0, "only the one of the warm-up");
    assert_eq!(attack.site.metric("hangs_total", &[]).await, 0.0);
    attack.over().await;
}

/// Stops the server and everything that it has started. As on a machine that is suspended, the server never runs while
/// its children do not: it is stopped first, and let go last.
fn suspend(attack: &Attack) -> Vec<Process> {
    let server = attack.program.process();
    server.signal(Signal::STOP);
    // Stopped, it starts no more.
    let family = descendants(server.pid);
    family.iter().for_each(|process| process.signal(Signal::STOP));
    family
}

fn wake(attack: &Attack, family: &[Process]) {
    family.iter().for_each(|process| process.signal(Signal::CONT));
    attack.program.process().signal(Signal::CONT);
}

/// Held by the test that takes a processor away for a third of a second at a time, and by one whose children have less time than
/// that to answer.
static PROCESSORS: Mutex<()> = Mutex::const_new(());

/// A suspended machine wakes up without a single verdict.
#[tokio::test(flavor = "multi_thread")]
async fn fault_33_suspend_kills_no_child() {
    let _all = PROCESSORS.lock().await;
    // Each suspension is longer than all that a silent child is granted, and longer than a message may stay unread.
    let limits = "stall_timeout = \"400ms\", ping_timeout = \"250ms\", write_timeout = \"1s\", spawn_timeout = \"1500ms\"";
    let attack = Attack::with(&format!("session = {{ {limits} }}")).await;
    let users = ["carol", "dave", "erin", MALLORY];
    for user in users {
        attack.turn_of(user, "hello").await.text();
    }
    for round in 0..4 {
        // One whose child is just starting.
        let newcomer = format!("newcomer {round}");
        attack.start_args_of(&newcomer, "--fault slow-start=900");
        // Silent, as those who wait for the model; they are asked, and answer, all the time.
        let ask = |user: &str, text: &str| {
            attack.note_turn();
            let request = attack.site.asking(user, &message(text));
            tokio::spawn(async move { Reply::of(&Answer::of(request).await) })
        };
        let mut turns: Vec<_> = users.iter().map(|user| ask(user, "[[sleep:3500]]done")).collect();
        let busy = async || (attack.site.metric("sessions", &["state=\"busy\""]).await >= 4.0).then_some(());
        eventually_some("all are at work", SOON, busy).await;
        turns.push(ask(&newcomer, "done"));
        // Another moment each time between a question and its answer.
        tokio::time::sleep(Duration::from_millis(400 + 70 * round)).await;
        let family = suspend(&attack);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        wake(&attack, &family);
        for turn in turns {
            assert!(turn.await.unwrap().text().ends_with(": done"));
        }
    }
    assert_eq!(attack.site.metric("hangs_total", &[]).await, 0.0);
    assert_eq!(attack.site.metric("restarts_total", &[]).await, 0.0);
    attack.over().await;
}

/// Takes nine tenths of one processor, in pieces of which each is longer than a child may take to answer.
struct Hog(Child);

impl Hog {
    fn start() -> Option<Self> {
        let spin = "use Time::HiRes qw(time sleep); while (1) { my $t = time; 1 while time - $t < 0.36; sleep 0.04 }";
        let mut command = Command::new("chrt");
        command.args(["-f", "1", "taskset", "-c", "0", "perl", "-e", spin]).stdin(Stdio::null());
        let mut child = command.stderr(Stdio::null()).spawn().ok()?;
        let pid = child.id();
        let runs =
            || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"perl"));
        if crate::common::place::wait_until(Duration::from_secs(2), runs) {
            return Some(Self(child));
        }
        child.kill().ok();
        child.wait().ok();
        None
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A starved machine widens the deadlines and hangs nobody.
#[tokio::test(flavor = "multi_thread")]
async fn fault_36_starved_host_widens_deadlines() {
    let _all = PROCESSORS.lock().await;
    // Without the patience for those that are not let run, a blackout is a verdict.
    let attack = Attack::with("session = { stall_timeout = \"150ms\", ping_timeout = \"100ms\" }").await;
    let users = ["carol", "dave", "erin", MALLORY];
    for user in users {
        attack.turn_of(user, "hello").await.text();
    }
    let pin = |process: Process| {
        let pid = process.pid.to_string();
        let pinned =
            Command::new("taskset").args(["-a", "-p", "-c", "0", &pid]).stdout(Stdio::null()).status();
        pinned.is_ok_and(|status| status.success())
    };
    let server = attack.program.process();
    let pinned = pin(server) && descendants(server.pid).into_iter().all(|it| pin(it) || !it.is_alive());
    let Some(hog) = Hog::start().filter(|_| pinned) else {
        return crate::common::installed::left_out("no processor can be taken away here (root, chrt, perl)");
    };
    let began = Instant::now();
    let mut turns = 0;
    while began.elapsed() < Duration::from_secs(12) {
        let running: Vec<_> = users
            .iter()
            .map(|user| {
                attack.note_turn();
                let request = attack.site.asking(user, &message("[[sleep:2500]]done"));
                tokio::spawn(async move { Reply::of(&Answer::of(request).await) })
            })
            .collect();
        for turn in running {
            assert!(turn.await.unwrap().text().ends_with(": done"));
            turns += 1;
        }
    }
    drop(hog);
    assert!(turns >= 8, "{turns}");
    let (hangs, restarts) =
        (attack.site.metric("hangs_total", &[]).await, attack.site.metric("restarts_total", &[]).await);
    assert_eq!((hangs, restarts), (0.0, 0.0), "in {turns} turns");
    attack.over().await;
}
