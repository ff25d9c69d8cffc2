//! Init process of a container: runs the program as its child, forwards signals, reaps orphans.
//!
//! The kernel reparents every orphan of a PID namespace to its first process: those of `docker exec`, of a killed shim.
//! The server cannot reap them: waiting for any child would take the exit statuses of its own children. So the first
//! process is a parent that does nothing else. When it exits, the kernel kills the rest of the namespace.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal as Number, WaitOptions, kill_process, setrlimit, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{FAILED, complain};

/// Maximum wait for remaining children (shims that flush and kill their trees) after the server has died.
const LAST_CHILDREN: Duration = Duration::from_secs(1);

const FORWARDED: [Number; 6] =
    [Number::TERM, Number::INT, Number::HUP, Number::QUIT, Number::USR1, Number::USR2];

/// Whether this process is the first of its PID namespace.
pub(crate) fn is_needed() -> bool {
    std::process::id() == 1
}

/// Runs the program again with the same arguments and returns its exit code. Must come before any thread is started.
pub(crate) fn run() -> ExitCode {
    // A core file would hold the environment. The server warns itself if the limit cannot be set.
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    let _refused = setrlimit(Resource::Core, nothing);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = runtime.and_then(|runtime| runtime.block_on(serve_as_child()));
    code.unwrap_or_else(|error| complain(&format!("cannot run as the first process: {error}"), FAILED))
}

async fn serve_as_child() -> std::io::Result<ExitCode> {
    // Registered before the child starts, so that no signal is missed.
    let mut signals = Signals::new()?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // A process group of its own: Ctrl-C in the terminal reaches only this process, which passes it on once.
    let server = command.args(arguments).process_group(0).spawn()?;
    let Some(server) = Pid::from_raw(server.id().cast_signed()) else {
        return Err(std::io::ErrorKind::InvalidData.into());
    };
    loop {
        if let Some(status) = reap(server).ended {
            let last = async {
                while reap(server).any_left {
                    signals.children.recv().await;
                }
            };
            // The rest is killed when this process exits.
            drop(tokio::time::timeout(LAST_CHILDREN, last).await);
            return Ok(code(status));
        }
        if let Some(number) = signals.next().await {
            // The child is not reaped yet, so the pid is still its own. A failure means that it has exited.
            let _ended = kill_process(server, number);
        }
    }
}

struct Reaped {
    /// Exit status of the server, if it has exited.
    ended: Option<ExitStatus>,
    any_left: bool,
}

fn reap(server: Pid) -> Reaped {
    let mut ended = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == server => {
                ended = Some(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return Reaped { ended, any_left: true },
            Err(_) => return Reaped { ended, any_left: false },
        }
    }
}

/// Exit code as shells encode it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED))
}

struct Signals {
    children: Signal,
    forwarded: Vec<(Number, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let listen = |number: Number| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        Ok(Self {
            children: signal(SignalKind::child())?,
            forwarded: FORWARDED.into_iter().map(listen).collect::<std::io::Result<_>>()?,
        })
    }

    /// The next signal for the server; `None` when a child has exited.
    async fn next(&mut self) -> Option<Number> {
        let Self { children, forwarded } = self;
        std::future::poll_fn(|context| {
            let number = forwarded
                .iter_mut()
                .find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
            match number {
                Some(number) => std::task::Poll::Ready(Some(number)),
                None => children.poll_recv(context).map(|_| None),
            }
        })
        .await
    }
}
