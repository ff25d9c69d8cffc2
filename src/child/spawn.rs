//! Starts a child through its shim; the handle of the shim.
//!
//! The server must never fork: with gigabytes of memory a fork stalls every thread for a tenth of a second. The standard
//! library starts a program without a fork if it sets only descriptors, directory, environment and an absolute path. The
//! shim does the rest.
//!
//! The handle is the lifeline. When it is dropped, for any reason, the shim sees the end of the control socket and kills
//! the tree. The reaper thread then reaps the shim.

use std::{
    ffi::OsString,
    future::poll_fn,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    sync::OnceLock,
    task::{Poll, ready},
    time::Duration,
};

use rustix::net::{SendFlags, send};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::{UnixStream, unix::pipe},
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::{
    SpawnError,
    exit::{Exit, OomKills},
    locate::ShimProgram,
    reaper::{self, Aftermath, Ward},
};
use pilotlight_shim::{
    args::{self, ChildLimits},
    fd_passing,
    report::{self, KillMethod, MAX_LINE, Report, SweepReport},
};

/// Variable with a unique value in each child's environment. It identifies the tree of a killed shim.
const CHILD_MARKER: &str = "PILOTLIGHT_CHILD";
/// Maximum time of a shim to kill its tree. It sweeps within 3 s or reports stuck processes; later the shim itself hangs.
const SHIM_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Interval at which a wait for the reaper ensures that its thread runs: the system may have refused it.
const REAPER_CHECK: Duration = Duration::from_secs(1);

/// Program to start.
pub(crate) struct Launch<'a> {
    /// Absolute path.
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [OsString],
    /// Complete environment; nothing is inherited.
    pub(crate) env: &'a [(OsString, OsString)],
    pub(crate) cwd: &'a Path,
    pub(crate) limits: &'a ChildLimits,
    /// Path of its cgroup, from `CgroupBase::child_dir`.
    pub(crate) cgroup: Option<PathBuf>,
}

/// A requested child. [`ShimHandle::started`] returns whether it runs.
#[derive(Debug)]
pub(crate) struct Contained {
    /// Standard input of the child.
    pub(crate) input: UnixStream,
    /// Standard output of the child.
    pub(crate) output: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
    pub(crate) shim: ShimHandle,
    /// The kernel's counter before the start.
    pub(crate) oom_kills: OomKills,
}

/// End of a child's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// The shim killed it; with `stuck > 0` it still tries.
    Done(SweepReport),
    /// The shim died first; the next kill method found `killed` processes.
    ShimDied { rung: KillMethod, killed: usize },
    /// The program did not start: there was no tree.
    NothingStarted,
}

/// Starts the shim, which starts the child. Needs a runtime; takes well under a millisecond.
pub(crate) fn spawn(shim: &ShimProgram, launch: &Launch<'_>) -> Result<Box<Contained>, SpawnError> {
    let failed = |error| SpawnError::from_io(error, launch.program);
    let oom_kills = OomKills::now();
    // Standard output is a pipe: many small writes cost its reader a third of a socket's cost. The others carry little
    // data, and the kernel limits the number of full-size pipes of an unprivileged user.
    let (input, input_theirs) = StdStream::pair().map_err(failed)?;
    let (output, output_theirs) = io::pipe().map_err(failed)?;
    let (control, control_theirs) = StdStream::pair().map_err(failed)?;
    let (stderr, stderr_theirs) = io::pipe().map_err(failed)?;
    // Registered before the start: nothing can fail once the process runs.
    let input = registered(input).map_err(failed)?;
    let output = pipe::Receiver::from_owned_fd(output.into()).map_err(failed)?;
    fd_passing::send_output(&control, output_theirs.as_fd()).map_err(failed)?;
    drop(output_theirs);
    let control = registered(control).map_err(failed)?;
    let stderr = pipe::Receiver::from_owned_fd(stderr.into()).map_err(failed)?;

    let marker = uuid::Uuid::new_v4().simple().to_string();
    let mut command = Command::new(&shim.path);
    command
        .args(shim.args)
        .args(args::encode(launch.cgroup.as_deref(), launch.limits, launch.program, launch.args))
        .env_clear()
        .envs(launch.env.iter().map(|(key, value)| (key, value)))
        .env(CHILD_MARKER, &marker)
        .current_dir(launch.cwd)
        .stdin(OwnedFd::from(input_theirs))
        .stdout(OwnedFd::from(control_theirs))
        .stderr(stderr_theirs);
    let child = command.spawn().map_err(|error| not_spawned(error, shim, launch))?;
    let ward = Ward::new(child, launch.cgroup.clone(), format!("{CHILD_MARKER}={marker}"));
    let shim = ShimHandle {
        program: launch.program.to_owned(),
        term_grace: launch.limits.term_grace,
        control: Some(control),
        unread: Vec::new(),
        reported: Reported::default(),
        killed_at: OnceLock::new(),
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

/// Error of a shim that did not start: the errno may be about the shim or about the directory.
fn not_spawned(error: io::Error, shim: &ShimProgram, launch: &Launch<'_>) -> SpawnError {
    if !launch.cwd.is_dir() {
        return SpawnError::NoWorkingDirectory { program: launch.program.into() };
    }
    match SpawnError::from_io(error, &shim.path) {
        SpawnError::NotFound { .. } => SpawnError::ShimGone,
        other => other,
    }
}

/// Reports of the shim.
#[derive(Debug, Default)]
struct Reported {
    ungrouped: bool,
    pid: Option<u32>,
    failed: Option<i32>,
    exit: Option<Exit>,
    swept: Option<SweepReport>,
}

/// The lifeline of one child. Dropping it kills the child's whole tree. Every wait is cancel-safe.
#[derive(Debug)]
pub(crate) struct ShimHandle {
    program: PathBuf,
    term_grace: Duration,
    /// `None` once the shim has exited.
    control: Option<UnixStream>,
    unread: Vec<u8>,
    reported: Reported,
    killed_at: OnceLock<Instant>,
    /// `None` once the reaper has it.
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
            if let Some(errno) = self.reported.failed {
                return Err(SpawnError::from_io(io::Error::from_raw_os_error(errno), &self.program));
            }
            if !self.listen().await {
                return Err(SpawnError::ShimFailed { program: self.program.clone() });
            }
        }
    }

    /// The child's pid, once it is known. For display and measurement only; never to be signalled.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.reported.pid
    }

    /// The shim's pid, the root of the tree; `None` once it is reaped.
    pub(crate) fn shim_pid(&self) -> Option<u32> {
        self.ward.as_ref().map(Ward::shim_pid)
    }

    /// Whether a started child is missing from its intended cgroup.
    pub(crate) fn is_ungrouped(&self) -> bool {
        self.reported.ungrouped
    }

    /// Requests SIGTERM for the child.
    pub(crate) fn terminate(&self) {
        self.order(report::TERMINATE);
    }

    /// Requests the kill of the whole tree.
    pub(crate) fn kill_tree(&self) {
        self.killed_at.get_or_init(Instant::now);
        self.order(report::KILL);
    }

    /// Waits until the child has exited; the rest of its tree may still be alive.
    pub(crate) async fn exited(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.reported.exit {
                return exit;
            }
            if !self.listen().await {
                return Exit::Unknown;
            }
        }
    }

    /// Waits until the tree is gone and the shim is reaped, or until the shim reports stuck processes. Bounded only after
    /// [`Self::kill_tree`].
    pub(crate) async fn gone(&mut self) -> Sweep {
        if let Some(sweep) = self.sweep {
            return sweep;
        }
        while self.aftermath.is_none() {
            if self.reported.swept.is_some_and(|swept| swept.stuck > 0) {
                // The shim stays as long as its stuck processes; the reaper waits for it.
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
                Ok(aftermath) => return self.swept_by(aftermath.ok()),
                Err(_) => reaper::ensure_running(),
            }
        }
    }

    fn swept_by(&mut self, aftermath: Option<Aftermath>) -> Sweep {
        let sweep = match (self.reported.swept, aftermath.and_then(|aftermath| aftermath.swept)) {
            (Some(swept), _) => Sweep::Done(swept),
            (None, _) if self.reported.failed.is_some() => Sweep::NothingStarted,
            (None, Some((rung, killed))) => Sweep::ShimDied { rung, killed },
            (None, None) => Sweep::ShimDied { rung: KillMethod::Marker, killed: 0 },
        };
        self.sweep = Some(sweep);
        sweep
    }

    fn order(&self, order: u8) {
        if let Some(control) = &self.control {
            // Bypasses the runtime, which may not know yet that the socket is writable. One byte always fits.
            let _shim_is_gone = send(control.as_fd(), &[order], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Reads the next report; false at the end.
    async fn listen(&mut self) -> bool {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                if let Some(report) = line.strip_suffix(b"\n").and_then(Report::parse) {
                    self.reported.note(report);
                }
                return true;
            }
            let Some(control) = &mut self.control else { return false };
            // Polled by hand: this wait restarts with every line of the CLI and must be cheap.
            let read = poll_fn(|context| {
                let mut bytes = [0_u8; MAX_LINE];
                let mut buffer = ReadBuf::new(&mut bytes);
                let read = ready!(Pin::new(&mut *control).poll_read(context, &mut buffer));
                Poll::Ready(read.map(|()| buffer.filled().to_vec()))
            });
            match read.await {
                // The shim never writes such a long line.
                Ok(bytes) if !bytes.is_empty() && self.unread.len() <= MAX_LINE => self.unread.extend(bytes),
                _ => self.control = None,
            }
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
            Report::Started(pid) => self.pid = Some(pid),
            Report::Failed(errno) => self.failed = Some(errno),
            Report::Exited(exit) => self.exit = Some(exit),
            Report::Swept(swept) => self.swept = Some(swept),
        }
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
