//! With real shims and real processes. The shim's binary has to be built: `cargo test` builds it, `cargo test --lib`
//! alone uses the one that is there.

use super::*;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::super::Groups;
use pilotlight_shim::fence::{self, Page};
use pilotlight_shim::isolation::{Mount, Network};

const LONG: Duration = Duration::from_secs(20);
const PROMISE: Duration = Duration::from_secs(1);

fn shim() -> ShimProgram {
    ShimProgram::locate(None).expect("first run `cargo build --bin pilotlight-shim`")
}

fn env() -> Vec<(OsString, OsString)> {
    vec![("PATH".into(), "/usr/bin:/bin".into()), ("LANG".into(), "C".into())]
}

fn start_in(cgroup: Option<PathBuf>, program: &str, args: &[&str]) -> Result<Box<Contained>, SpawnError> {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let launch = Launch {
        program: Path::new(program),
        args: &args,
        env: &env(),
        cwd: Path::new("/"),
        limits: &ChildLimits::default(),
        isolation: &Isolation::default(),
        cgroup,
        fence: None,
    };
    spawn(&shim(), &launch)
}

fn start_isolated(isolation: &Isolation, script: &str) -> Box<Contained> {
    let launch = Launch {
        program: Path::new("/bin/bash"),
        args: &["-c".into(), script.into()],
        env: &env(),
        cwd: Path::new("/"),
        limits: &ChildLimits::default(),
        isolation,
        cgroup: None,
        fence: None,
    };
    spawn(&shim(), &launch).unwrap()
}

fn start(script: &str) -> Box<Contained> {
    start_in(None, "/bin/sh", &["-c", script]).unwrap()
}

fn token() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("8000.{:07}{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn sleepers(token: &str) -> usize {
    let wanted = format!("sleep\0{token}\0");
    fs::read_dir("/proc")
        .unwrap()
        .filter(|entry| {
            let path = entry.as_ref().unwrap().path().join("cmdline");
            fs::read(path).is_ok_and(|line| line == wanted.as_bytes())
        })
        .count()
}

/// Neither running nor a zombie.
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn eventually_blocking(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !look() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        super::super::host::pause(Duration::from_millis(2));
    }
}

async fn eventually(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !look() {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn done(sweep: Sweep) -> SweepReport {
    match sweep {
        Sweep::Done(swept) => swept,
        other => panic!("the shim did not sweep: {other:?}"),
    }
}

#[tokio::test]
async fn a_child_talks_ends_and_is_accounted_for() {
    let token = token();
    let mut child = start(&format!("(setsid sleep {token} &); cat; echo problem >&2; exit 4"));
    let pid = child.shim.started().await.unwrap();
    assert_eq!(child.shim.pid(), Some(pid));
    let shim_pid = child.shim.shim_pid().unwrap();
    eventually("the sleeper runs", LONG, || sleepers(&token) == 1).await;
    child.input.write_all(b"hello\n").await.unwrap();
    child.input.shutdown().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.output.read_to_string(&mut out).await.unwrap();
    assert_eq!(child.shim.exited().await, Exit::Code(4));
    let ended = child.shim.gone().await;
    child.stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello\n", "problem\n"));
    assert_eq!((done(ended).killed, done(ended).stuck), (1, 0));
    assert_eq!(child.shim.gone().await, ended, "may be asked again");
    assert_eq!(child.shim.shim_pid(), None);
    assert_eq!(sleepers(&token), 0);
    assert!(!exists(shim_pid) && !exists(pid));
}

#[tokio::test]
async fn the_environment_is_what_was_given_and_nothing_else() {
    let mut child = start_in(None, "/bin/cat", &["/proc/self/environ"]).unwrap();
    let mut text = String::new();
    child.output.read_to_string(&mut text).await.unwrap();
    let mut entries: Vec<_> = text.split_terminator('\0').collect();
    entries.sort_unstable();
    assert_eq!(entries.len(), 3, "{entries:?}");
    assert_eq!((entries[0], entries[1]), ("LANG=C", "PATH=/usr/bin:/bin"));
    assert!(entries[2].starts_with("PILOTLIGHT_CHILD="), "{entries:?}");
    child.shim.gone().await;
}

#[tokio::test]
async fn orders_reach_the_child_at_once() {
    // Given before the runtime has seen the socket.
    let mut terminated = start("exec sleep 600");
    terminated.shim.terminate();
    assert_eq!(terminated.shim.exited().await, Exit::Signal(15));
    let mut killed = start("trap '' TERM; sleep 600 & wait");
    killed.shim.terminate();
    killed.shim.kill_tree();
    assert_eq!(killed.shim.exited().await, Exit::Signal(9));
    killed.shim.gone().await;
}

#[tokio::test]
async fn what_cannot_start_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "text").unwrap();
    let broken = dir.path().join("broken");
    fs::write(&broken, b"\x7fELF and no more").unwrap();
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&broken, mode).unwrap();
    for (program, reason) in [
        ("/nonexistent/cli", "not_found"),
        (plain.to_str().unwrap(), "eacces"),
        (broken.to_str().unwrap(), "enoexec"),
    ] {
        let mut child = start_in(None, program, &[]).unwrap();
        let error = child.shim.started().await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        // Callers read it: the file's name, and not where it lies.
        let name = program.rsplit('/').next().unwrap();
        let message = error.to_string();
        assert!(message.contains(name) && !message.contains(program), "{message}");
        let ended = child.shim.gone().await;
        assert_eq!(ended, Sweep::NothingStarted);
        assert_eq!(child.shim.exited().await, Exit::Unknown);
    }

    let launch = Launch {
        program: Path::new("/bin/true"),
        args: &[],
        env: &[],
        cwd: Path::new("/nonexistent"),
        limits: &ChildLimits::default(),
        isolation: &Isolation::default(),
        cgroup: None,
        fence: None,
    };
    assert!(matches!(spawn(&shim(), &launch), Err(SpawnError::NoWorkingDirectory { .. })));
    let missing = ShimProgram { path: "/nonexistent/shim".into(), args: &[] };
    let launch = Launch { cwd: Path::new("/"), ..launch };
    assert!(matches!(spawn(&missing, &launch), Err(SpawnError::ShimGone)));
    // A program that is no shim at all.
    let no_shim = ShimProgram { path: "/bin/true".into(), args: &[] };
    let mut child = spawn(&no_shim, &launch).unwrap();
    assert!(matches!(child.shim.started().await, Err(SpawnError::ShimFailed { .. })));
}

#[tokio::test]
async fn waits_can_be_given_up_and_taken_up_again() {
    let mut child = start("read line; exit 3");
    for _ in 0..50 {
        tokio::select! {
            biased;
            _ = child.shim.gone() => panic!("it lives"),
            () = tokio::task::yield_now() => {}
        }
        tokio::select! {
            biased;
            _ = child.shim.exited() => panic!("it lives"),
            () = tokio::task::yield_now() => {}
        }
    }
    child.shim.started().await.unwrap();
    child.input.write_all(b"\n").await.unwrap();
    assert_eq!(child.shim.exited().await, Exit::Code(3));
    for _ in 0..50 {
        tokio::select! {
            biased;
            _ = child.shim.gone() => break,
            () = tokio::task::yield_now() => {}
        }
    }
    child.shim.gone().await;
    assert_eq!(child.shim.exited().await, Exit::Code(3));
}

#[tokio::test]
async fn a_dropped_handle_leaves_neither_process_nor_zombie() {
    let token = token();
    let mut child =
        start(&format!("setsid sleep {token} & (env -i setsid sleep {token} &) ; exec sleep {token}"));
    let pid = child.shim.started().await.unwrap();
    let shim_pid = child.shim.shim_pid().unwrap();
    eventually("all run", LONG, || sleepers(&token) == 3).await;
    drop(child.shim);
    eventually("all gone", PROMISE, || sleepers(&token) == 0 && !exists(pid) && !exists(shim_pid)).await;
}

#[test]
fn dropped_runtime_leaves_no_process_and_no_zombie() {
    const CHILDREN: usize = 20;
    let token = token();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let shims = runtime.block_on(async {
        let mut shims = Vec::new();
        for _ in 0..CHILDREN {
            let mut child = start(&format!("setsid sleep {token} & exec sleep {token}"));
            child.shim.started().await.unwrap();
            shims.push(child.shim.shim_pid().unwrap());
            let held = async move {
                child.shim.gone().await;
                unreachable!("it lives longer than the runtime");
            };
            #[expect(
                clippy::disallowed_methods,
                reason = "a task that the runtime cancels when it is dropped"
            )]
            tokio::spawn(held);
        }
        shims
    });
    eventually_blocking("all run", LONG, || sleepers(&token) == 2 * CHILDREN);
    let begun = Instant::now();
    drop(runtime);
    // Twenty at once on a machine that is busy with other tests.
    eventually_blocking("all gone", LONG, || sleepers(&token) == 0);
    eventually_blocking("no zombie", LONG, || !shims.iter().any(|pid| exists(*pid)));
    eprintln!("{CHILDREN} trees gone and reaped {:?} after the runtime", begun.elapsed());
}

#[tokio::test]
async fn a_killed_shim_is_made_good_by_the_marker() {
    let token = token();
    let mut child = start(&format!("setsid sleep {token} & exec sleep {token}"));
    let pid = child.shim.started().await.unwrap();
    eventually("both run", LONG, || sleepers(&token) == 2).await;
    let shim_pid = child.shim.shim_pid().unwrap();
    kill_process(Pid::from_raw(shim_pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(child.shim.exited().await, Exit::Unknown);
    let ended = child.shim.gone().await;
    // The CLI itself may be found dying.
    assert!(matches!(ended, Sweep::ShimDied { method: KillMethod::Marker, killed: 1 | 2 }), "{ended:?}");
    assert_eq!(sleepers(&token), 0);
    eventually("nothing is left", PROMISE, || !exists(shim_pid)).await;
    eventually("the CLI is reaped by init", LONG, || !exists(pid)).await;
}

#[tokio::test]
async fn a_killed_shim_is_made_good_by_the_cgroup() {
    let Some(base) = Groups::detect(&format!("pilotlight-spawn-test-{}", std::process::id()), false).base
    else {
        pilotlight_test_support::installed::left_out("no writable cgroup v2 here");
        return;
    };
    let token = token();
    let dir = base.child_dir("one");
    let script = format!("(env -i setsid sleep {token} &) ; exec sleep {token}");
    let mut child = start_in(Some(dir.clone()), "/bin/sh", &["-c", &script]).unwrap();
    child.shim.started().await.unwrap();
    eventually("both run", LONG, || sleepers(&token) == 2).await;
    let shim_pid = child.shim.shim_pid().unwrap();
    kill_process(Pid::from_raw(shim_pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    let ended = child.shim.gone().await;
    assert!(matches!(ended, Sweep::ShimDied { method: KillMethod::Cgroup, killed: 1 | 2 }), "{ended:?}");
    assert_eq!(sleepers(&token), 0);
    assert!(!dir.exists());
    base.remove();
}

#[tokio::test]
async fn a_host_that_reaps_everything_itself_is_tolerated() {
    let mut child = start("exec sleep 600");
    child.shim.started().await.unwrap();
    let shim_pid = Pid::from_raw(child.shim.shim_pid().unwrap().cast_signed()).unwrap();
    kill_process(shim_pid, Signal::KILL).unwrap();
    waitpid(Some(shim_pid), WaitOptions::empty()).unwrap();
    let ended = child.shim.gone().await;
    assert!(matches!(ended, Sweep::ShimDied { .. }), "{ended:?}");
}

/// Takes as long as a shim may take to answer.
#[tokio::test]
async fn a_stopped_shim_is_woken_to_do_its_work() {
    let token = token();
    let mut child = start(&format!("(env -i setsid sleep {token} &) ; exec sleep {token}"));
    child.shim.started().await.unwrap();
    eventually("both run", LONG, || sleepers(&token) == 2).await;
    let shim_pid = child.shim.shim_pid().unwrap();
    kill_process(Pid::from_raw(shim_pid.cast_signed()).unwrap(), Signal::STOP).unwrap();
    child.shim.kill_tree();
    let begun = Instant::now();
    child.shim.gone().await;
    assert!(begun.elapsed() < SHIM_ANSWERS_WITHIN + LONG);
    eventually("all gone", PROMISE, || sleepers(&token) == 0 && !exists(shim_pid)).await;
}

#[tokio::test]
async fn lines_of_output_come_as_they_are_written() {
    let mut child = start("echo one; read line; echo two");
    child.shim.started().await.unwrap();
    let mut io = BufReader::new(&mut child.output);
    let mut line = String::new();
    io.read_line(&mut line).await.unwrap();
    assert_eq!(line, "one\n");
    child.input.write_all(b"\n").await.unwrap();
    line.clear();
    io.read_line(&mut line).await.unwrap();
    assert_eq!(line, "two\n");
    child.shim.gone().await;
    assert_eq!(child.shim.exited().await, Exit::Code(0));
}

#[tokio::test]
async fn a_private_network_ends_in_the_servers_socket() {
    let system = ["/usr", "/bin", "/lib", "/lib64"].into_iter().filter(|path| Path::new(path).exists());
    let isolation = Isolation {
        namespaces: true,
        network: Network::Private { port: 8080 },
        mounts: system.map(Mount::read).collect(),
        ..Isolation::default()
    };
    let mut child = start_isolated(&isolation, "echo hello > /dev/tcp/127.0.0.1/8080; read line");
    if let Err(SpawnError::Unisolated { source, .. }) = child.shim.started().await {
        pilotlight_test_support::installed::left_out(&format!("no namespaces can be made here: {source}"));
        return;
    }
    let listener = child.shim.take_listener().expect("the socket comes before the child runs");
    assert!(child.shim.take_listener().is_none(), "there is one");
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello\n");
    child.shim.kill_tree();
    assert_eq!(done(child.shim.gone().await).method, KillMethod::Namespace);
}

#[tokio::test]
async fn a_rung_that_fails_is_named() {
    for rung in [Rung::Landlock, Rung::Namespaces] {
        let isolation = Isolation {
            landlock: rung == Rung::Landlock,
            namespaces: rung == Rung::Namespaces,
            mounts: vec![Mount::read("/nonexistent/tools")],
            ..Isolation::default()
        };
        let mut child = start_isolated(&isolation, "true");
        let error = child.shim.started().await.unwrap_err();
        assert!(matches!(error, SpawnError::Unisolated { rung: named, .. } if named == rung), "{error:?}");
        assert_eq!(child.shim.gone().await, Sweep::NothingStarted);
    }
}

/// Starts a shell in the fence of this page.
fn start_fenced(page: &Page, script: &str) -> Box<Contained> {
    let launch = Launch {
        program: Path::new("/bin/sh"),
        args: &["-c".into(), script.into()],
        env: &env(),
        cwd: Path::new("/"),
        limits: &ChildLimits::default(),
        isolation: &Isolation::default(),
        cgroup: None,
        fence: Some(page.as_fd()),
    };
    spawn(&shim(), &launch).unwrap()
}

#[tokio::test]
async fn a_child_ends_at_the_deadline_of_its_node() {
    const HOLD: u64 = 2_000_000_000;
    let (page, token) = (Page::create().unwrap(), token());
    page.set(fence::now() + HOLD);
    let mut child = start_fenced(&page, &format!("setsid sleep {token} & exec sleep {token}"));
    child.shim.started().await.unwrap();
    eventually("both run", LONG, || {
        page.set(fence::now() + HOLD);
        sleepers(&token) == 2
    })
    .await;
    let exit = child.shim.exited().await;
    assert!(fence::now() >= page.deadline(), "it ended early");
    assert_eq!(exit, Exit::Fenced);
    assert_eq!(done(child.shim.gone().await).stuck, 0);
    assert_eq!(sleepers(&token), 0);
}

/// Signals the shim of a child as a tool could.
fn signal_shim(child: &Contained, signal: Signal) {
    let shim = child.shim.shim_pid().and_then(|pid| Pid::from_raw(pid.cast_signed())).unwrap();
    kill_process(shim, signal).unwrap();
}

#[tokio::test]
async fn lost_child_of_a_stopped_shim_ends_at_once() {
    let (page, token, lost) = (Page::create().unwrap(), token(), CancellationToken::new());
    page.set(u64::MAX);
    let mut child = start_fenced(&page, &format!("setsid sleep {token} & exec sleep {token}"));
    child.shim.end_when(lost.clone());
    child.shim.started().await.unwrap();
    eventually("both run", LONG, || sleepers(&token) == 2).await;
    signal_shim(&child, Signal::STOP);
    lost.cancel();
    let ended = timeout(PROMISE, async { (child.shim.exited().await, child.shim.gone().await) });
    let (exit, sweep) = ended.await.expect("it ends although its shim is stopped");
    assert_eq!((exit, done(sweep).stuck), (Exit::Fenced, 0));
    assert_eq!(sleepers(&token), 0);
}

/// A shim that is stopped again and again does nothing more: its tree ends without it.
#[tokio::test]
async fn lost_child_ends_while_a_tool_stops_its_shim() {
    let (page, token, lost) = (Page::create().unwrap(), token(), CancellationToken::new());
    page.set(u64::MAX);
    // Not before the shim has reported the start: this test waits for that.
    let script = format!("shim=$PPID; read line; setsid sleep {token} & while kill -STOP $shim; do :; done");
    let mut child = start_fenced(&page, &script);
    child.shim.end_when(lost.clone());
    child.shim.started().await.unwrap();
    child.input.write_all(b"\n").await.unwrap();
    eventually("both run", LONG, || sleepers(&token) == 1).await;
    lost.cancel();
    let ended = timeout(PROMISE, async { (child.shim.exited().await, child.shim.gone().await) });
    let (exit, _) = ended.await.expect("it ends although its shim is stopped");
    assert_eq!((exit, sleepers(&token)), (Exit::Fenced, 0));
}

#[tokio::test]
async fn lost_child_that_has_ended_keeps_its_exit() {
    let lost = CancellationToken::new();
    let mut child = start("exit 3");
    child.shim.end_when(lost.clone());
    assert_eq!(child.shim.exited().await, Exit::Code(3));
    lost.cancel();
    assert_eq!(done(child.shim.gone().await).stuck, 0);
    assert_eq!(child.shim.exited().await, Exit::Code(3));
}

#[tokio::test]
async fn no_child_starts_after_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("started");
    let page = Page::create().unwrap();
    for deadline in [0, fence::now()] {
        page.set(deadline);
        let mut child = start_fenced(&page, &format!("echo > {}", marker.display()));
        let error = child.shim.started().await.unwrap_err();
        assert!(matches!(error, SpawnError::Fenced { .. }), "{error:?}");
        assert_eq!((error.reason(), child.shim.gone().await), ("fenced", Sweep::NothingStarted));
    }
    assert!(!marker.exists(), "a child was started");
}

#[tokio::test]
async fn what_is_no_page_starts_no_child() {
    let file = tempfile::tempfile().unwrap();
    let launch = Launch {
        program: Path::new("/bin/true"),
        args: &[],
        env: &[],
        cwd: Path::new("/"),
        limits: &ChildLimits::default(),
        isolation: &Isolation::default(),
        cgroup: None,
        fence: Some(file.as_fd()),
    };
    let mut child = spawn(&shim(), &launch).unwrap();
    let error = child.shim.started().await.unwrap_err();
    assert!(matches!(error, SpawnError::Io { .. }), "{error:?}");
    assert_eq!(child.shim.gone().await, Sweep::NothingStarted);
    let mut text = String::new();
    child.stderr.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("the page of the deadline cannot be used"), "{text}");
}
