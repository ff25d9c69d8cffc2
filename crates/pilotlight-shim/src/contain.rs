//! The main function of the shim: start the CLI, wait for its exit or an order, kill the tree, exit.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
    process::{Signal, setpriority_process},
    stdio,
};

use super::{
    args::{self, Args},
    cgroup::{Group, Joined},
    fd_passing,
    fence::Watch,
    freeze,
    isolate::{self, OomScore, PreExec},
    isolation::Rung,
    kill::{Tree, drain_signals, now, timespec},
    launch::{self, Argv, Start, Started},
    privilege,
    report::{DEADLINE_PASSED, FREEZE, KILL, Report, TERMINATE, THAW},
    rungs::{Refusal, namespaces},
    sys,
};

/// Exit code if the CLI did not start; the report and stderr have the details.
const NOT_STARTED: i32 = 1;

/// Highest nice value. The shim runs for microseconds, so other processes do not notice.
const HIGHEST_PRIORITY: i32 = -20;

/// Runs the shim; returns its exit code.
pub(crate) fn run(line: impl Iterator<Item = OsString>) -> i32 {
    sys::close_inherited();
    let args = match args::parse(line) {
        Ok(args) => args,
        Err(mistake) => {
            eprintln!("pilotlight-shim: {mistake}; this program is started by pilotlight, not by hand");
            return failed(Errno::INVAL.raw_os_error());
        }
    };
    let signals = match sys::block_signals().and_then(|signals| isolate::become_subreaper().map(|()| signals))
    {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("pilotlight-shim: failed to become a subreaper: {error}");
            return failed(errno(&error));
        }
    };
    let term_grace = args.limits.term_grace;
    let wanted_group = args.cgroup.is_some();
    let joined = match Joined::open(&args.limits.groups) {
        Ok(joined) => joined,
        Err(error) => return refused(&Refusal::of(Rung::Cgroup)(error)),
    };
    let received = Received::receive(args.fenced);
    if server_is_gone() {
        joined.remove(true);
        return NOT_STARTED;
    }
    let start = |Received { output, fence }| Ok((start(args, &joined, &output)?, fence));
    let ((started, group), fence) = match received.and_then(start) {
        Ok(started) => started,
        Err(refusal) => {
            joined.remove(false);
            return refused(&refusal);
        }
    };
    if wanted_group && group.is_none() {
        send_report(Report::Ungrouped);
    }
    send_report(Report::Started(started.cli.as_raw_pid().cast_unsigned()));
    release_pipes();
    // The shim must get the processor next to a fork bomb. The CLI runs already and does not inherit it. Refused without
    // privilege.
    let _refused = setpriority_process(None, HIGHEST_PRIORITY);
    // Signals to the CLI need no other capability.
    let _kept = privilege::keep_cap_kill();
    let mut tree = Tree::new(started, signals.as_fd(), send_report);
    let orphaned = watch(&mut tree, group.as_ref(), fence, term_grace);
    let base = group.as_ref().and_then(Group::parent);
    tree.sweep(group);
    joined.remove(orphaned);
    if let Some(base) = base.filter(|_| orphaned) {
        // The server is gone, so the last shim removes the parent group.
        let _inhabited = fs::remove_dir(base);
    }
    0
}

/// What waits on the control socket when the shim starts.
struct Received {
    output: OwnedFd,
    fence: Option<Watch>,
}

impl Received {
    /// A page that is announced must be there, and its deadline not over: a CLI never starts without its fence.
    fn receive(fenced: bool) -> Result<Self, Refusal> {
        let output = fd_passing::receive_queued(stdio::stdout())?;
        let fence = fenced.then(|| fd_passing::receive_queued(stdio::stdout()).and_then(Watch::open));
        let fence = fence.transpose().inspect_err(|error| {
            eprintln!("pilotlight-shim: the page of the deadline cannot be used: {error}");
        })?;
        match fence.as_ref().and_then(Watch::look) {
            None => Ok(Self { output, fence }),
            Some(_) => Err(Refusal { rung: None, errno: DEADLINE_PASSED }),
        }
    }
}

/// Whether the lifeline broke before the start: a CLI would only run to be killed.
fn server_is_gone() -> bool {
    let peeked = recv(stdio::stdout(), &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Ok((_, 0)))
}

/// Starts the CLI, in its cgroup if the group can be created.
fn start(args: Args, joined: &Joined, output: &OwnedFd) -> Result<(Started, Option<Group>), Refusal> {
    let group = args.cgroup.as_deref().and_then(|dir| Group::create(dir).ok());
    let group_dir: Option<OwnedFd> = group.as_ref().and_then(|group| group.open_dir().ok());
    let score = OomScore::set(args.limits.oom_score_adj);
    let start = Start {
        argv: Argv::new(&args.argv),
        output: output.as_fd(),
        before: PreExec::new(&args.limits, &args.isolation, joined),
        group: group_dir.as_ref().map(OwnedFd::as_fd),
    };
    let started = if args.isolation.namespaces { namespaces::spawn(&start) } else { launch::spawn(&start) };
    drop(score);
    // The CLI is not in the group, so `cgroup.kill` would kill nothing.
    let group = match group {
        Some(group) if !started.as_ref().is_ok_and(|started| started.is_member) => {
            let _inhabited = group.remove();
            None
        }
        group => group,
    };
    Ok((started?, group))
}

/// Closes the shim's copies of the CLI's pipes: the server must see the CLI close them.
fn release_pipes() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _kept = stdio::dup2_stdin(&null).and_then(|()| stdio::dup2_stderr(&null));
    }
}

/// Waits until the CLI exits, the server orders the kill, or the grace time after a broken lifeline or a passed deadline
/// is over. Returns whether the lifeline broke.
fn watch(tree: &mut Tree<'_>, group: Option<&Group>, mut fence: Option<Watch>, term_grace: Duration) -> bool {
    let control = stdio::stdout();
    // From then on the control socket is not polled.
    let mut orphaned = false;
    // Set when the lifeline breaks or the deadline passes.
    let mut end: Option<Instant> = None;
    loop {
        tree.reap();
        let left = end.map(|end| end.saturating_duration_since(now()));
        if tree.exit.is_some() || left.is_some_and(|left| left.is_zero()) {
            return orphaned;
        }
        let timer = fence.as_ref().map(Watch::timer);
        let mut ready = [
            PollFd::from_borrowed_fd(timer.unwrap_or(tree.signals), PollFlags::IN),
            PollFd::from_borrowed_fd(tree.signals, PollFlags::IN),
            PollFd::new(&control, PollFlags::IN),
        ];
        let polled = usize::from(timer.is_none())..if orphaned { 2 } else { 3 };
        let wait = left.map(timespec);
        match poll(ready.get_mut(polled).unwrap_or_default(), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Without poll(2) the shim cannot wait, so it kills the tree at once.
            Err(_) => return orphaned,
        }
        let [timer_rang, child_exited, control_ready] = ready.map(|fd| !fd.revents().is_empty());
        if child_exited {
            drain_signals(tree.signals);
        }
        let passed = fence.as_ref().filter(|_| timer_rang).and_then(Watch::look);
        if let Some(passed) = passed {
            (fence, tree.fenced) = (None, true);
            let grace = passed.grace(term_grace);
            if !grace.is_zero() {
                terminate(tree, group);
            }
            end = earlier(end, now() + grace);
        }
        if control_ready {
            match read_order() {
                Order::Freeze => freeze::freeze(group),
                Order::Thaw => freeze::thaw(group),
                Order::Terminate => terminate(tree, group),
                Order::Kill => return orphaned,
                Order::LifelineBroken => {
                    terminate(tree, group);
                    orphaned = true;
                    end = earlier(end, now() + term_grace);
                }
                Order::None => {}
            }
        }
    }
}

fn earlier(end: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(end.map_or(other, |end| end.min(other)))
}

#[derive(Debug, PartialEq, Eq)]
enum Order {
    None,
    Freeze,
    Thaw,
    Terminate,
    Kill,
    LifelineBroken,
}

fn read_order() -> Order {
    let mut bytes = [0_u8; 16];
    match rustix::io::read(stdio::stdout(), &mut bytes) {
        Ok(0) => Order::LifelineBroken,
        Ok(len) => order_of(bytes.get(..len).unwrap_or_default()),
        Err(Errno::INTR | Errno::AGAIN) => Order::None,
        Err(_) => Order::LifelineBroken,
    }
}

/// The order of bytes that arrived together: a kill makes all others pointless, and the end of the CLI needs no freeze.
fn order_of(bytes: &[u8]) -> Order {
    if bytes.contains(&KILL) {
        return Order::Kill;
    }
    if bytes.contains(&TERMINATE) {
        return Order::Terminate;
    }
    match bytes.iter().rev().find(|byte| matches!(**byte, FREEZE | THAW)) {
        Some(&FREEZE) => Order::Freeze,
        Some(_) => Order::Thaw,
        None => Order::None,
    }
}

/// Sends SIGTERM, and lets a frozen or stopped tree run, so that the CLI can act on it.
fn terminate(tree: &Tree<'_>, group: Option<&Group>) {
    tree.signal_cli(Signal::TERM);
    freeze::thaw(group);
}

/// Sends a line to the server. It never blocks, and a missing server is no error.
fn send_report(report: Report) {
    let line = report.encode();
    let _server_is_gone = send(stdio::stdout(), line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn refused(refusal: &Refusal) -> i32 {
    if let Some(rung) = refusal.rung {
        send_report(Report::Unisolated(rung, refusal.errno));
    }
    failed(refusal.errno)
}

fn failed(errno: i32) -> i32 {
    send_report(Report::Failed(errno));
    NOT_STARTED
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_arrive_together_are_one() {
        for (bytes, order) in [
            (&b""[..], Order::None),
            (b"x", Order::None),
            (b"f", Order::Freeze),
            (b"c", Order::Thaw),
            (b"fc", Order::Thaw),
            (b"cf", Order::Freeze),
            (b"ft", Order::Terminate),
            (b"tf", Order::Terminate),
            (b"tkf", Order::Kill),
        ] {
            assert_eq!(order_of(bytes), order, "{bytes:?}");
        }
    }
}
