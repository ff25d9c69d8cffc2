//! The deadline of a server's node: without the server's help a tree ends with it, and never outlives it for long.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::{Child, Stdio},
};

use pilotlight_shim::fence::{Page, now};
use rustix::process::{geteuid, getpid, kill_process};

use super::*;

/// How long a tree may outlive its deadline: as long as the lease does.
const MARGIN: Duration = Duration::from_millis(500);
/// How long a server holds its sessions with one renewal: enough for a look at all processes of a busy machine.
const HOLD: Duration = Duration::from_secs(2);

const SHIM: &str = env!("CARGO_BIN_EXE_pilotlight-shim");

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

fn renew(page: &Page) {
    page.set(now() + nanos(HOLD));
}

/// A shell in the fence of the page.
fn fenced(page: &Page, options: &[&str], script: &str) -> Shim {
    let options = [&["--fence", "page"], options].concat();
    Shim::start_with(Command::new(SHIM), &[page.as_fd()], &options, "/bin/sh".as_ref(), &["-c", script])
}

/// Renews until something happens.
fn renewing<T>(page: &Page, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    eventually(what, LONG, || {
        renew(page);
        look()
    })
}

fn has_state(pid: Pid, states: &str) -> bool {
    status_field(pid, "State").is_some_and(|state| state.starts_with(|letter| states.contains(letter)))
}

/// The time since the deadline, which has passed.
fn late(page: &Page) -> Duration {
    Duration::from_nanos(now().checked_sub(page.deadline()).expect("the deadline has not passed"))
}

/// A process that holds the server's end of the lifeline and is stopped, as its server may be.
struct Stopped(Child);

impl Stopped {
    fn hold(shim: &mut Shim) -> Self {
        let control = shim.control.take().unwrap().into_inner();
        let mut holder = Command::new("/bin/sleep");
        let holder = holder.arg("600").stdin(Stdio::from(OwnedFd::from(control))).spawn().unwrap();
        let stopped = Self(holder);
        kill_process(stopped.pid(), Signal::STOP).unwrap();
        eventually("the server is stopped", LONG, || has_state(stopped.pid(), "T").then_some(()));
        stopped
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed()).unwrap()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

/// Waits for the end of a shim that nobody renews, and checks that it came with the deadline.
fn ends_with_its_deadline(shim: &mut Shim, page: &Page, token: &str, context: &str) {
    assert_eq!(shim.ended(LONG).code(), Some(0), "{context}");
    let late = late(page);
    assert_eq!(sleepers(token), [0; 0], "{context}");
    assert!(late < MARGIN, "{late:?} after the deadline, {context}");
}

#[test]
fn fence_ends_the_tree_of_a_stopped_server() {
    on_each_rung(|rung, options| {
        let (page, token) = (Page::create().unwrap(), token());
        renew(&page);
        let mut shim = fenced(&page, options, &format!("{} exec sleep {token}", escape_artists(&token)));
        shim.started();
        renewing(&page, "all of the tree runs", || (sleepers(&token).len() == 6).then_some(()));
        let stopped = Stopped::hold(&mut shim);
        assert!(now() < page.deadline() && sleepers(&token).len() == 6, "it ended early");
        ends_with_its_deadline(&mut shim, &page, &token, rung);
        assert!(has_state(stopped.pid(), "T"), "the server had no part in it");
    });
}

#[test]
fn fence_ends_a_cli_that_ignores_sigterm() {
    on_each_rung(|rung, options| {
        let (page, token) = (Page::create().unwrap(), token());
        renew(&page);
        // As long as it may take where the server is gone.
        let options = [options, &["--term-grace-ms", "5000"]].concat();
        let script = format!("trap '' TERM; setsid sleep {token} & while :; do sleep {token}; done");
        let mut shim = fenced(&page, &options, &script);
        shim.started();
        renewing(&page, "all of the tree runs", || (sleepers(&token).len() == 2).then_some(()));
        let _stopped = Stopped::hold(&mut shim);
        ends_with_its_deadline(&mut shim, &page, &token, rung);
    });
}

/// Landlock, the filter, another user and limits are the CLI's: the shim has its timer and its page in spite of them.
#[test]
fn fence_holds_in_every_isolation() {
    let mut isolated = vec!["--nofile", "64", "--fsize", "0", "--rung", "landlock", "--rung", "seccomp"];
    for path in ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc"] {
        isolated
            .extend(Some(["--read-only", path]).filter(|_| Path::new(path).exists()).into_iter().flatten());
    }
    if geteuid().is_root() {
        isolated.extend(["--uid", "65533", "--gid", "65533"]);
    }
    let plain = Shim::start(&isolated, "/bin/true", &[]).line();
    if plain.starts_with("unisolated") {
        left_out("no rungs of isolation here");
        return;
    }
    on_each_rung(|rung, options| {
        let (page, token) = (Page::create().unwrap(), token());
        renew(&page);
        let options = [options, &isolated].concat();
        let mut shim = fenced(&page, &options, &format!("setsid sleep {token} & exec sleep {token}"));
        let cli = shim.started();
        renewing(&page, "all of the tree runs", || (sleepers(&token).len() == 2).then_some(()));
        assert_eq!(status_field(cli, "Seccomp").as_deref(), Some("2"), "the filter is in force");
        let _stopped = Stopped::hold(&mut shim);
        ends_with_its_deadline(&mut shim, &page, &token, rung);
    });
}

/// The server hears of it where it listens.
#[test]
fn fence_lets_a_renewed_cli_live_and_says_why_it_ends() {
    let page = Page::create().unwrap();
    renew(&page);
    let mut shim =
        fenced(&page, &[], "trap 'echo flushed; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    let cli = shim.started();
    assert_eq!(shim.output_line(), "ready");
    let first = page.deadline();
    renewing(&page, "several deadlines pass", || (now() > first + nanos(HOLD)).then_some(()));
    assert!(!is_gone(cli), "it was renewed");
    let line = shim.line();
    assert!(late(&page) < MARGIN, "{:?}", late(&page));
    assert_eq!((line.as_str(), shim.output().as_str()), ("exited fenced 0", "flushed\n"));
    assert_eq!(shim.swept().2, 0);
    assert_eq!(shim.ended(LONG).code(), Some(0));
}

#[test]
fn fence_ends_a_frozen_tree() {
    on_each_rung(|rung, options| {
        let (page, token) = (Page::create().unwrap(), token());
        renew(&page);
        let mut shim = fenced(&page, options, &format!("setsid sleep {token} & exec sleep {token}"));
        shim.started();
        renewing(&page, "all of the tree runs", || (sleepers(&token).len() == 2).then_some(()));
        shim.order(b"f");
        let _stopped = Stopped::hold(&mut shim);
        ends_with_its_deadline(&mut shim, &page, &token, rung);
    });
}

/// As after the suspension of a machine: the tree gets no more time.
#[test]
fn fence_gives_no_grace_after_a_long_stop() {
    let page = Page::create().unwrap();
    renew(&page);
    let mut shim =
        fenced(&page, &[], "trap 'echo terminated' TERM; echo ready; while :; do sleep 0.01; done");
    shim.started();
    assert_eq!(shim.output_line(), "ready");
    kill_process(shim.pid(), Signal::STOP).unwrap();
    eventually("the shim is stopped", LONG, || has_state(shim.pid(), "T").then_some(()));
    eventually("the margin is over", LONG, || (now() > page.deadline() + nanos(MARGIN)).then_some(()));
    kill_process(shim.pid(), Signal::CONT).unwrap();
    assert_eq!((shim.line().as_str(), shim.output().as_str()), ("exited fenced 0", ""));
    assert_eq!(shim.ended(LONG).code(), Some(0));
}

/// A server that dies changes nothing about the deadline, but for the time to flush that it had configured.
#[test]
fn fence_cuts_the_time_of_a_broken_lifeline() {
    let (page, token) = (Page::create().unwrap(), token());
    renew(&page);
    let script = format!("trap '' TERM; echo ready; while :; do sleep {token}; done");
    let mut shim = fenced(&page, &["--term-grace-ms", "60000"], &script);
    shim.started();
    assert_eq!(shim.output_line(), "ready");
    shim.break_lifeline();
    ends_with_its_deadline(&mut shim, &page, &token, "lifeline");
}

#[test]
fn fence_without_a_usable_page_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("started");
    let script = format!("echo > {}", marker.display());
    let file = tempfile::tempfile().unwrap();
    let passed = Page::create().unwrap();
    let past = Page::create().unwrap();
    past.set(now());
    for (given, report) in [
        (None, "failed 9"),
        (Some(file.as_fd()), "failed 22"),
        (Some(passed.as_fd()), "failed 62"),
        (Some(past.as_fd()), "failed 62"),
    ] {
        let given: Vec<_> = given.into_iter().collect();
        let command = Command::new(SHIM);
        let options = ["--fence", "page"];
        let mut shim = Shim::start_with(command, &given, &options, "/bin/sh".as_ref(), &["-c", &script]);
        assert_eq!(shim.line(), report);
        assert_eq!(shim.line(), "", "nothing follows");
        assert_eq!(shim.ended(LONG).code(), Some(1));
    }
    assert!(!marker.exists(), "a CLI was started");
}

/// Descriptors of a process by number, each with what it leads to.
fn descriptors(pid: Pid) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).unwrap();
    let read = entries.filter_map(|entry| {
        let entry = entry.unwrap();
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        Some((entry.file_name().into_string().unwrap(), target))
    });
    read.collect()
}

fn maps(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_pid())).unwrap()
}

#[test]
fn fence_is_out_of_reach_of_cli_and_tools() {
    const MAPPED: &str = "memfd:pilotlight-fence";
    on_each_rung(|rung, options| {
        let (page, token) = (Page::create().unwrap(), token());
        page.set(now() + nanos(LONG * 10));
        let held = page.deadline();
        let server = format!("/proc/{}/fd/{}", getpid().as_raw_pid(), page.as_fd().as_raw_fd());
        // The way of a tool that is the server's user: through the server's own descriptor, where it may open it.
        let script = format!(
            "setsid sleep {token} & echo 00000000 1<>{server}; truncate -s 0 {server}; echo ready; exec sleep {token}"
        );
        let mut shim = fenced(&page, options, &script);
        let cli = shim.started();
        assert_eq!(shim.output_line(), "ready", "{rung}");
        wait_for_sleepers(&token, 2);
        for pid in sleepers(&token).into_iter().filter_map(Pid::from_raw).chain([cli]) {
            // A program that has just begun reads its locale.
            let mut open = descriptors(pid);
            open.retain(|(_, target)| !target.starts_with("/usr/lib/locale/"));
            let foreign = |target: &String| target.contains("memfd") || target.contains("timerfd");
            assert!(open.len() == 3 && !open.iter().any(|(_, target)| foreign(target)), "{open:?} {rung}");
            assert!(!maps(pid).contains(MAPPED), "{rung}");
        }
        assert_eq!(page.deadline(), held, "{rung}");
        // The shim itself holds the mapping, for reading, and no descriptor to open again.
        let of_shim = maps(shim.pid());
        let mapping = of_shim.lines().find(|line| line.contains(MAPPED)).unwrap();
        assert_eq!(mapping.split_whitespace().nth(1), Some("r--s"), "{mapping}");
        let open = descriptors(shim.pid());
        assert!(!open.iter().any(|(_, target)| target.contains("memfd")), "{open:?}");
        shim.order(b"k");
        assert_eq!(shim.line(), "exited signal 9", "an order is no deadline");
    });
}

/// Nobody sets CLOCK_BOOTTIME, and it counts a suspension.
#[test]
fn fence_waits_by_the_clock_that_nobody_sets() {
    const BOOTTIME: &str = "7";
    let page = Page::create().unwrap();
    page.set(now() + nanos(LONG * 10));
    let mut shim = fenced(&page, &[], "echo ready; cat");
    shim.started();
    assert_eq!(shim.output_line(), "ready");
    let timer = descriptors(shim.pid()).into_iter().find(|(_, target)| target.contains("timerfd")).unwrap().0;
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{timer}", shim.child.id())).unwrap();
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // 1: the time is a moment of this clock.
    assert_eq!((field("clockid:").as_str(), field("settime flags:").as_str()), (BOOTTIME, "01"), "{info}");
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let ours = Duration::from_nanos(now()).as_secs_f64();
    assert!((ours - uptime).abs() < LONG.as_secs_f64(), "{ours} is not the {uptime} s since the boot");
}
