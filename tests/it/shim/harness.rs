//! One shim, started as the server starts it, and looks at what becomes of its tree.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, IoSlice, PipeReader, Read as _, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::Pid;
use tokio::time::Instant;

use crate::common::installed::left_out;

/// What the promise says for everything that ends.
pub(crate) const PROMISE: Duration = Duration::from_secs(1);
/// For what has no promise but must not hang: a busy machine may take its time.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) struct Shim {
    pub(crate) child: Child,
    pub(crate) control: Option<BufReader<UnixStream>>,
    pub(crate) input: UnixStream,
    pub(crate) output: BufReader<UnixStream>,
    pub(crate) stderr: PipeReader,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Shim {
    /// The CLI is `sh -c script`; `options` go before the `--`.
    pub(crate) fn sh(options: &[&str], script: &str) -> Self {
        Self::start(options, "/bin/sh", &["-c", script])
    }

    pub(crate) fn start(options: &[&str], program: impl AsRef<OsStr>, args: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_pilotlight-shim")), options, program.as_ref(), args)
    }

    pub(crate) fn start_by(command: Command, options: &[&str], program: &OsStr, args: &[&str]) -> Self {
        Self::start_with(command, &[], options, program, args)
    }

    /// `given`: descriptors that wait behind the CLI's stdout.
    pub(crate) fn start_with(
        mut command: Command,
        given: &[BorrowedFd<'_>],
        options: &[&str],
        program: &OsStr,
        args: &[&str],
    ) -> Self {
        let (input, input_theirs) = UnixStream::pair().unwrap();
        let (output, output_theirs) = UnixStream::pair().unwrap();
        let (control, control_theirs) = UnixStream::pair().unwrap();
        let (stderr, stderr_theirs) = std::io::pipe().unwrap();
        control.set_read_timeout(Some(LONG)).unwrap();
        output.set_read_timeout(Some(LONG)).unwrap();
        for descriptor in [output_theirs.as_fd()].iter().chain(given) {
            give(&control, descriptor);
        }
        drop(output_theirs);
        command.args(options).arg("--").arg(program).args(args);
        command
            .stdin(OwnedFd::from(input_theirs))
            .stdout(OwnedFd::from(control_theirs))
            .stderr(stderr_theirs);
        let child = command.spawn().unwrap();
        let cgroup = options.iter().position(|o| *o == "--cgroup").map(|at| PathBuf::from(options[at + 1]));
        Self {
            child,
            control: Some(BufReader::new(control)),
            input,
            output: BufReader::new(output),
            stderr,
            cgroup,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.as_mut().unwrap().read_line(&mut line).expect("a report");
        line.trim_end().to_owned()
    }

    pub(crate) fn started(&mut self) -> Pid {
        let line = self.line();
        let pid = line.strip_prefix("started ").unwrap_or_else(|| panic!("not started: {line:?}"));
        Pid::from_raw(pid.parse().unwrap()).unwrap()
    }

    /// `(rung, killed, stuck)`
    pub(crate) fn swept(&mut self) -> (String, u64, u64) {
        let line = self.line();
        let words: Vec<_> = line.split(' ').collect();
        let ["swept", rung, killed, _micros, stuck] = words[..] else { panic!("not swept: {line:?}") };
        (rung.to_owned(), killed.parse().unwrap(), stuck.parse().unwrap())
    }

    pub(crate) fn order(&mut self, byte: &[u8]) {
        self.control.as_mut().unwrap().get_mut().write_all(byte).unwrap();
    }

    /// As the death of the server does. Closing alone would not be seen while a process that another test is just starting has a
    /// copy.
    pub(crate) fn break_lifeline(&mut self) {
        if let Some(control) = self.control.take() {
            control.get_ref().shutdown(Shutdown::Both).unwrap();
        }
    }

    /// A line of the CLI's output.
    pub(crate) fn output_line(&mut self) -> String {
        let mut line = String::new();
        // A socket with a time limit is not restarted after a signal: this call is, a bare `read` is not.
        self.output.read_line(&mut line).expect("output");
        line.trim_end_matches('\n').to_owned()
    }

    pub(crate) fn output(&mut self) -> String {
        let mut all = String::new();
        self.output.read_to_string(&mut all).unwrap();
        all
    }

    pub(crate) fn ended(&mut self, within: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually("the shim ends", within, || child.try_wait().unwrap())
    }
}

/// Sends a descriptor ahead of the shim, as the server does with the CLI's stdout.
pub(crate) fn give(control: &UnixStream, descriptor: impl AsFd) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(control, &[IoSlice::new(b"o")], &mut ancillary, SendFlags::empty()).unwrap();
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.control = None;
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            pause();
        }
        if let Some(dir) = &self.cgroup {
            let _left_by_a_killed_shim = fs::remove_dir(dir);
        }
    }
}

pub(crate) fn pause() {
    let polled =
        rustix::event::poll(&mut [], Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 2_000_000 }));
    // Children of other tests end meanwhile, and their signal ends the pause.
    assert!(matches!(polled, Ok(_) | Err(rustix::io::Errno::INTR)), "{polled:?}");
}

pub(crate) fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        pause();
    }
}

/// A duration for `sleep` that no other process has: it marks processes even without an environment.
pub(crate) fn token() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("9000.{:07}{:04}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The running `sleep` processes with this token.
pub(crate) fn sleepers(token: &str) -> Vec<i32> {
    let wanted = format!("sleep\0{token}\0");
    processes()
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes()))
        .collect()
}

pub(crate) fn wait_for_sleepers(token: &str, count: usize) {
    eventually("all of the tree runs", LONG, || (sleepers(token).len() == count).then_some(()));
}

pub(crate) fn status_field(pid: Pid, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(field))?.trim_start_matches(':').trim().to_owned())
}

pub(crate) fn is_gone(pid: Pid) -> bool {
    status_field(pid, "State").is_none_or(|state| state.starts_with('Z'))
}

/// A directory for a new group, if this machine lets us make one with `cgroup.kill`.
pub(crate) fn cgroup_dir() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, dir, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then_some(dir)
    });
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let dir = Path::new(mount?).join(own?).join(format!("pilotlight-test-{}", token()));
    let usable = fs::create_dir(&dir).is_ok() && dir.join("cgroup.kill").exists();
    let _fresh = fs::remove_dir(&dir);
    usable.then_some(dir)
}

/// Options for a CLI in namespaces that sees the programs of the system, if this machine lets us make them.
pub(crate) fn in_namespaces() -> Option<Vec<&'static str>> {
    static OPTIONS: OnceLock<(Vec<String>, bool)> = OnceLock::new();
    let (options, usable) = OPTIONS.get_or_init(|| {
        let work = std::env::current_dir().unwrap().to_str().unwrap().to_owned();
        let system = ["/usr", "/lib", "/lib64", "/bin", "/etc", &work];
        let mounts = system.into_iter().filter(|path| Path::new(path).exists());
        let words = ["--rung", "namespaces"].into_iter().chain(mounts.flat_map(|path| ["--read-only", path]));
        let options: Vec<_> = words.map(str::to_owned).collect();
        let plain: Vec<_> = options.iter().map(String::as_str).collect();
        let usable = Shim::start(&plain, "/bin/true", &[]).line().starts_with("started ");
        (options, usable)
    });
    usable.then(|| options.iter().map(String::as_str).collect())
}

/// Runs a check on every rung that this machine has.
pub(crate) fn on_each_rung(check: impl Fn(&'static str, &[&str])) {
    check("walk", &[]);
    match in_namespaces() {
        Some(options) => check("namespace", &options),
        None => left_out("no namespaces can be made here"),
    }
    match cgroup_dir() {
        Some(dir) => {
            check("cgroup", &["--cgroup", dir.to_str().unwrap()]);
            assert!(!dir.exists(), "the group is left: {}", dir.display());
        }
        None => left_out("no writable cgroup v2 here, only the walk was tested"),
    }
}

/// Five that escape by the usual ways: plain, own session, two daemons, one without environment.
pub(crate) fn escape_artists(token: &str) -> String {
    format!(
        "sleep {token} & setsid sleep {token} & (setsid sleep {token} &) ; (sleep {token} &) ; \
         (env -i setsid sleep {token} &) ;"
    )
}
