//! Starting a child through its shim, and the handle on the shim.
//!
//! The big process must never fork: with gigabytes of memory that takes a tenth of a second in which every
//! thread stalls. The standard library starts a program without forking as long as nothing but descriptors,
//! directory, environment and an absolute path is asked for; all else is done by the shim, later.
//!
//! The handle is the lifeline. However it goes (dropped by a cancelled task, with the runtime, with the process),
//! the shim sees the end of the control socket and kills the tree; the reaper's thread collects the shim.

use std::ffi::OsString;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{SendFlags, send};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::net::{UnixStream, unix::pipe};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::SpawnError;
use super::exit::{Exit, OomKills};
use super::locate::ShimProgram;
use super::lost::{Due, Lost};
use super::reaper::{self, Aftermath, Ward};
use pilotlight_shim::args::{self, ChildLimits};
use pilotlight_shim::fd_passing;
use pilotlight_shim::isolation::{Isolation, Rung};
use pilotlight_shim::report::{self, KillMethod, MAX_LINE, Report, SweepReport};

/// In every child's environment, with a value of its own: by it the tree is found if its shim is killed.
const CHILD_MARKER: &str = "PILOTLIGHT_CHILD";
/// Maximum time for a shim to obey an order to kill: it sweeps within 3 s or reports stuck processes.
const SHIM_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How often a wait for the reaper checks that it has its thread, which the system may have refused.
const REAPER_CHECK: Duration = Duration::from_secs(1);

pub(crate) struct Launch<'a> {
    /// An absolute path.
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [OsString],
    /// The whole environment: nothing is inherited.
    pub(crate) env: &'a [(OsString, OsString)],
    pub(crate) cwd: &'a Path,
    pub(crate) limits: &'a ChildLimits,
    pub(crate) isolation: &'a Isolation,
    /// Where its group shall be made, from `CgroupBase::child_dir`.
    pub(crate) cgroup: Option<PathBuf>,
    /// The page of the deadline at which the shim ends it; `None`: there is none.
    pub(crate) fence: Option<BorrowedFd<'a>>,
}

/// A requested child. [`ShimHandle::started`] returns once it runs.
#[derive(Debug)]
pub(crate) struct Contained {
    pub(crate) input: UnixStream,
    pub(crate) output: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
    pub(crate) shim: ShimHandle,
    /// The kernel's count before the start.
    pub(crate) oom_kills: OomKills,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// The shim; with `stuck > 0` it is still at it.
    Done(SweepReport),
    /// The shim died first; `killed` were found by the next means.
    ShimDied { method: KillMethod, killed: usize },
    /// There was no tree: the program could not be started.
    NothingStarted,
}

/// Starts the shim, which starts the child. Inside a runtime; takes well under a millisecond.
pub(crate) fn spawn(shim: &ShimProgram, launch: &Launch<'_>) -> Result<Box<Contained>, SpawnError> {
    let failed = |error| SpawnError::from_io(error, launch.program);
    let oom_kills = OomKills::begin(launch.cgroup.as_deref());
    // The output is a pipe: many small writes cost its reader a third of what they cost on a socket. The others carry
    // little, and the kernel limits the number of full-size pipes of an unprivileged user.
    let (input, input_theirs) = StdStream::pair().map_err(failed)?;
    let (output, output_theirs) = io::pipe().map_err(failed)?;
    let (control, control_theirs) = StdStream::pair().map_err(failed)?;
    let (stderr, stderr_theirs) = io::pipe().map_err(failed)?;
    // Registered before there is a process: nothing can fail once it runs.
    let input = registered(input).map_err(failed)?;
    let output = pipe::Receiver::from_owned_fd(output.into()).map_err(failed)?;
    fd_passing::send_output(&control, output_theirs.as_fd()).map_err(failed)?;
    drop(output_theirs);
    if let Some(page) = launch.fence {
        fd_passing::send_page(&control, page).map_err(failed)?;
    }
    let control = registered(control).map_err(failed)?;
    let stderr = pipe::Receiver::from_owned_fd(stderr.into()).map_err(failed)?;

    let marker = uuid::Uuid::new_v4().simple().to_string();
    let mut command = Command::new(&shim.path);
    command
        .args(shim.args)
        .args(args::encode(
            launch.cgroup.as_deref(),
            launch.fence.is_some(),
            launch.limits,
            launch.isolation,
            launch.program,
            launch.args,
        ))
        .env_clear()
        .envs(launch.env.iter().map(|(key, value)| (key, value)))
        .env(CHILD_MARKER, &marker)
        .current_dir(launch.cwd)
        .stdin(OwnedFd::from(input_theirs))
        .stdout(OwnedFd::from(control_theirs))
        .stderr(stderr_theirs);
    let child = command.spawn().map_err(|error| not_spawned(error, shim, launch))?;
    let ward = Ward::new(
        child,
        launch.cgroup.clone(),
        launch.limits.groups.clone(),
        format!("{CHILD_MARKER}={marker}"),
    );
    let shim = ShimHandle {
        program: launch.program.to_owned(),
        term_grace: launch.limits.term_grace,
        control: Some(control),
        unread: Vec::new(),
        passed: None,
        reported: Reported::default(),
        killed_at: OnceLock::new(),
        lost: None,
        ward: Some(ward),
        aftermath: None,
        sweep: None,
    };
    Ok(Box::new(Contained { input, output, stderr, shim, oom_kills }))
}

fn registered(stream: StdStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The shim itself did not start: the same errno may be about it or about the directory.
fn not_spawned(error: io::Error, shim: &ShimProgram, launch: &Launch<'_>) -> SpawnError {
    if !launch.cwd.is_dir() {
        return SpawnError::NoWorkingDirectory { program: launch.program.into() };
    }
    match SpawnError::from_io(error, &shim.path) {
        SpawnError::NotFound { .. } => SpawnError::ShimGone,
        other => other,
    }
}

#[derive(Debug, Default)]
struct Reported {
    ungrouped: bool,
    listener: Option<TcpListener>,
    unisolated: Option<(Rung, i32)>,
    pid: Option<u32>,
    failed: Option<i32>,
    exit: Option<Exit>,
    swept: Option<SweepReport>,
}

/// The lifeline of one child. Dropping it ends the child's whole tree.
///
/// Every wait keeps its state in the handle, so it may be cancelled and taken up again.
#[derive(Debug)]
pub(crate) struct ShimHandle {
    program: PathBuf,
    term_grace: Duration,
    /// `None` once the shim has closed it, by ending.
    control: Option<UnixStream>,
    unread: Vec<u8>,
    /// A descriptor that came with the unread bytes.
    passed: Option<OwnedFd>,
    reported: Reported,
    killed_at: OnceLock<Instant>,
    /// The end that comes with the loss of the session; `None`: it cannot be lost.
    lost: Option<Lost>,
    /// Until it is with the reaper.
    ward: Option<Ward>,
    aftermath: Option<oneshot::Receiver<Aftermath>>,
    sweep: Option<Sweep>,
}

impl ShimHandle {
    /// Waits until the program runs; returns its pid.
    pub(crate) async fn started(&mut self) -> Result<u32, SpawnError> {
        loop {
            if let Some(pid) = self.reported.pid {
                return Ok(pid);
            }
            if let (Some((rung, errno)), Some(_)) = (self.reported.unisolated, self.reported.failed) {
                let source = io::Error::from_raw_os_error(errno);
                return Err(SpawnError::Unisolated { program: self.program.clone(), rung, source });
            }
            if let Some(errno) = self.reported.failed {
                return Err(SpawnError::from_io(io::Error::from_raw_os_error(errno), &self.program));
            }
            if !self.listen().await {
                return Err(SpawnError::ShimFailed { program: self.program.clone() });
            }
        }
    }

    /// The child's pid, once it is known. Only to be shown and measured: only the shim may signal it.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.reported.pid
    }

    /// The shim's pid, the root of the tree; `None` when it is gone.
    pub(crate) fn shim_pid(&self) -> Option<u32> {
        self.ward.as_ref().map(Ward::shim_pid)
    }

    /// Whether the child was to be in a group and is not, once it has started.
    pub(crate) fn is_ungrouped(&self) -> bool {
        self.reported.ungrouped
    }

    /// The socket that listens in the child's private network, once it has started. Non-blocking.
    #[cfg_attr(not(feature = "broker"), expect(dead_code, reason = "only the broker serves it"))]
    pub(crate) fn take_listener(&mut self) -> Option<TcpListener> {
        self.reported.listener.take()
    }

    /// Stops the whole tree from running, until [`Self::thaw`] or [`Self::terminate`].
    pub(crate) fn freeze(&self) {
        self.order(report::FREEZE);
    }

    pub(crate) fn thaw(&self) {
        self.order(report::THAW);
    }

    pub(crate) fn terminate(&self) {
        self.order(report::TERMINATE);
    }

    pub(crate) fn kill_tree(&self) {
        self.killed_at.get_or_init(Instant::now);
        self.order(report::KILL);
    }

    /// Has the tree ended at once when `lost` is cancelled, also if its shim is stopped. Happens while one of the waits does.
    pub(crate) fn end_when(&mut self, lost: CancellationToken) {
        self.lost = Some(Lost::when(lost));
    }

    /// Waits until the child has ended; the rest of its tree may still be dying.
    pub(crate) async fn exited(&mut self) -> Exit {
        loop {
            if self.reported.exit.is_none() && self.listen().await {
                continue;
            }
            let exit = self.reported.exit.unwrap_or(Exit::Unknown);
            let is_lost = self.lost.as_ref().is_some_and(Lost::has_begun);
            return match exit {
                Exit::Signal(_) | Exit::Unknown if is_lost => Exit::Fenced,
                exit => exit,
            };
        }
    }

    /// Waits until nothing is left of the tree and the shim is reaped, or until the shim reports that something
    /// cannot be killed. Bounded only after [`Self::kill_tree`].
    pub(crate) async fn gone(&mut self) -> Sweep {
        if let Some(sweep) = self.sweep {
            return sweep;
        }
        while self.aftermath.is_none() {
            if self.reported.swept.is_some_and(|swept| swept.stuck > 0) {
                // It stays as long as what is stuck; the reaper waits for it without hurry.
                self.give_up_lifeline(None);
                return self.swept_by(None);
            }
            let late = self.killed_at.get().map(|at| *at + SHIM_ANSWERS_WITHIN);
            let patience = tokio::select! {
                more = self.listen() => if more { continue } else { SHIM_ANSWERS_WITHIN },
                () = until(late) => Duration::ZERO,
            };
            self.give_up_lifeline(Some(patience));
        }
        loop {
            let Some(aftermath) = &mut self.aftermath else { return self.swept_by(None) };
            match timeout(REAPER_CHECK, aftermath).await {
                Ok(aftermath) => return self.swept_by(aftermath.ok().flatten()),
                Err(_) => reaper::ensure_running(),
            }
        }
    }

    fn swept_by(&mut self, aftermath: Aftermath) -> Sweep {
        let sweep = match (self.reported.swept, aftermath) {
            (Some(swept), _) => Sweep::Done(swept),
            (None, _) if self.reported.failed.is_some() => Sweep::NothingStarted,
            (None, Some((method, killed))) => Sweep::ShimDied { method, killed },
            (None, None) => Sweep::ShimDied { method: KillMethod::Marker, killed: 0 },
        };
        self.sweep = Some(sweep);
        sweep
    }

    fn order(&self, order: u8) {
        if let Some(control) = &self.control {
            // Not through the runtime, which may not know yet that it can be written. A byte always fits.
            let _shim_is_gone = send(control.as_fd(), &[order], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Takes in the next report; false when there will be none any more.
    async fn listen(&mut self) -> bool {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                match line.strip_suffix(b"\n").and_then(Report::parse) {
                    Some(Report::Listening) => {
                        self.reported.listener = self.passed.take().map(TcpListener::from)
                    }
                    Some(report) => self.reported.note(report),
                    None => {}
                }
                return true;
            }
            let Some(control) = &mut self.control else { return false };
            // Polled by hand, for this wait starts again with every line of the CLI, and has to be cheap.
            let read = poll_fn(|context| poll_received(control, context));
            let received = tokio::select! {
                received = read => received,
                due = due(self.lost.as_mut()) => {
                    self.lose(due);
                    continue;
                }
            };
            match received {
                // The shim never writes more than a line without an end.
                Ok((bytes, passed)) if !bytes.is_empty() && self.unread.len() <= MAX_LINE => {
                    self.unread.extend(bytes);
                    self.passed = passed.or(self.passed.take());
                }
                _ => self.control = None,
            }
        }
    }

    fn lose(&self, due: Due) {
        let signal = match due {
            Due::Order => {
                self.kill_tree();
                Signal::CONT
            }
            Due::KillShim => Signal::KILL,
        };
        if let Some(ward) = &self.ward {
            ward.signal(signal);
        }
    }

    /// Closes the control socket and hands the shim to the reaper.
    fn give_up_lifeline(&mut self, patience: Option<Duration>) {
        self.control = None;
        self.aftermath = self.ward.take().map(|ward| ward.hand_over(patience));
    }
}

impl Drop for ShimHandle {
    fn drop(&mut self) {
        if self.ward.is_some() {
            self.give_up_lifeline(Some(self.term_grace + SHIM_ANSWERS_WITHIN));
        }
    }
}

impl Reported {
    fn note(&mut self, report: Report) {
        match report {
            Report::Ungrouped => self.ungrouped = true,
            // Noted with its descriptor.
            Report::Listening => {}
            Report::Unisolated(rung, errno) => self.unisolated = Some((rung, errno)),
            Report::Started(pid) => self.pid = Some(pid),
            Report::Failed(errno) => self.failed = Some(errno),
            Report::Exited(exit) => self.exit = Some(exit),
            Report::Swept(swept) => self.swept = Some(swept),
        }
    }
}

type Received = (Vec<u8>, Option<OwnedFd>);

/// The next bytes of the shim and the descriptor that came with them.
fn poll_received(control: &UnixStream, context: &mut Context<'_>) -> Poll<io::Result<Received>> {
    loop {
        ready!(control.poll_read_ready(context))?;
        let mut bytes = [0_u8; MAX_LINE];
        match control.try_io(Interest::READABLE, || fd_passing::receive(control, &mut bytes)) {
            Ok((length, passed)) => {
                return Poll::Ready(Ok((bytes.get(..length).unwrap_or_default().to_vec(), passed)));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

async fn due(lost: Option<&mut Lost>) -> Due {
    match lost {
        Some(lost) => lost.due().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
