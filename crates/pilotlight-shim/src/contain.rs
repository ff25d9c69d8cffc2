//! The shim's life: start the CLI, wait for the first reason to end, kill the tree, exit.

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
    net::{SendFlags, send},
    process::{Pid, Signal, setpriority_process},
    stdio,
};

use super::{
    args::{self, Args},
    cgroup::Group,
    handover,
    isolate::{self, ForCli, OomScore},
    kill::{Tree, forget_wakeup, now, timespec},
    privilege,
    report::{KILL, Report, TERMINATE},
    sys,
};

/// The exit code when there was nothing to start; details are in the report and on stderr.
const NOT_STARTED: i32 = 1;

/// The highest priority. The shim is awake for microseconds, so nobody else notices.
const FIRST_IN_LINE: i32 = -20;

/// Runs the shim to its end; returns its exit code.
pub(crate) fn run(line: impl Iterator<Item = OsString>) -> i32 {
    sys::close_inherited();
    let args = match args::parse(line) {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("pilotlight-shim: {wrong}; pilotlight starts this program, it is of no use by hand");
            return failed(Errno::INVAL.raw_os_error());
        }
    };
    let signals = match sys::take_over_signals().and_then(|signals| isolate::myself().map(|()| signals)) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("pilotlight-shim: failed to become a subreaper: {error}");
            return failed(errno(&error));
        }
    };
    let term_grace = args.limits.term_grace;
    let wanted_group = args.cgroup.is_some();
    let (cli, group) = match handover::receive_output(stdio::stdout()).and_then(|output| start(args, &output))
    {
        Ok(started) => started,
        Err(error) => return failed(errno(&error)),
    };
    if wanted_group && group.is_none() {
        tell(Report::Ungrouped);
    }
    tell(Report::Started(cli.as_raw_pid().cast_unsigned()));
    let_go();
    // Against a crowd that forks, the one who ends it must get the processor. Not inherited by the CLI, which runs
    // already; refused without privilege.
    let _refused = setpriority_process(None, FIRST_IN_LINE);
    // The signals to come need nothing else.
    let _kept = privilege::keep_what_kills();
    let mut tree = Tree::new(cli, signals.as_fd(), tell);
    let orphaned = watch(&mut tree, term_grace);
    let base = group.as_ref().and_then(Group::base);
    tree.sweep(group);
    if let Some(base) = base.filter(|_| orphaned) {
        // The last one to leave; nobody else will.
        let _inhabited = fs::remove_dir(base);
    }
    0
}

/// Starts the CLI, in its group if there can be one.
fn start(args: Args, output: &OwnedFd) -> io::Result<(Pid, Option<Group>)> {
    let group = args.cgroup.as_deref().and_then(|dir| Group::create(dir).ok());
    let entrance: Option<OwnedFd> = group.as_ref().and_then(|group| group.entrance().ok());
    let score = OomScore::set(args.limits.oom_score_adj);
    let before = ForCli::new(&args.limits);
    let cli = sys::spawn(&args.argv, output.as_fd(), &before, entrance.as_ref().map(OwnedFd::as_fd));
    drop(score);
    let (cli, is_member) = cli.map_or_else(|error| (Err(error), false), |(cli, member)| (Ok(cli), member));
    // Nobody could join: the rung says so, instead of killing nobody.
    let group = match group {
        Some(group) if !is_member => {
            let _inhabited = group.remove();
            None
        }
        group => group,
    };
    Ok((cli?, group))
}

/// Gives up the shim's own ends of the CLI's pipes: the server shall see them close when the CLI closes them.
fn let_go() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _kept = stdio::dup2_stdin(&null).and_then(|()| stdio::dup2_stderr(&null));
    }
}

/// Waits until the CLI ended, the server wants the tree killed, or the grace after a broken lifeline is over.
/// Whether the lifeline was broken.
fn watch(tree: &mut Tree<'_>, term_grace: Duration) -> bool {
    let control = stdio::stdout();
    // Set once the lifeline is broken: nobody is left to listen to, and the end is near.
    let mut deadline: Option<Instant> = None;
    loop {
        tree.reap();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
        if tree.exit.is_some() || left.is_some_and(|left| left.is_zero()) {
            return deadline.is_some();
        }
        let mut ready =
            [PollFd::from_borrowed_fd(tree.signals, PollFlags::IN), PollFd::new(&control, PollFlags::IN)];
        let (listening, wait) = (if deadline.is_some() { 1 } else { 2 }, left.map(timespec));
        match poll(ready.split_at_mut(listening).0, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Not able to watch: end it now rather than never.
            Err(_) => return deadline.is_some(),
        }
        let [ended, order] = ready.map(|fd| !fd.revents().is_empty());
        if ended {
            forget_wakeup(tree.signals);
        }
        if order {
            match read_orders() {
                Orders::Terminate => terminate(tree),
                Orders::Kill => return deadline.is_some(),
                Orders::LifelineBroken => {
                    terminate(tree);
                    deadline = Some(now() + term_grace);
                }
                Orders::None => {}
            }
        }
    }
}

enum Orders {
    None,
    Terminate,
    Kill,
    LifelineBroken,
}

fn read_orders() -> Orders {
    let mut bytes = [0_u8; 16];
    match rustix::io::read(stdio::stdout(), &mut bytes) {
        Ok(0) => Orders::LifelineBroken,
        Ok(len) => {
            let orders = bytes.get(..len).unwrap_or_default();
            if orders.contains(&KILL) {
                Orders::Kill
            } else if orders.contains(&TERMINATE) {
                Orders::Terminate
            } else {
                Orders::None
            }
        }
        Err(Errno::INTR | Errno::AGAIN) => Orders::None,
        Err(_) => Orders::LifelineBroken,
    }
}

/// SIGTERM, and SIGCONT so that a stopped CLI can act upon it.
fn terminate(tree: &Tree<'_>) {
    tree.signal_cli(Signal::TERM);
    tree.signal_cli(Signal::CONT);
}

/// Sends a line to the server. Nothing is to be done if it is not there; it must not hold up the shim.
fn tell(report: Report) {
    let line = report.encode();
    let _nobody_listens = send(stdio::stdout(), line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn failed(errno: i32) -> i32 {
    tell(Report::Failed(errno));
    NOT_STARTED
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
