//! The first process of a container: starts the program again as its child, hands signals on, and reaps what others
//! leave.
//!
//! The kernel gives every orphan of a PID namespace to its first process: those of `docker exec`, of a shim that was
//! killed. A server cannot reap them, for who waits for any child takes the ends of its own children away from the code
//! that waits for them. So the first process is a parent that does nothing else. When it ends, the kernel ends all that
//! is left in the namespace.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal as Number, WaitOptions, kill_process, setrlimit, wait};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{FAILED, complain};

/// What the server leaves when it dies (shims that flush and end their trees) gets so much time before the kernel ends it.
const LAST_CHILDREN: Duration = Duration::from_secs(1);

/// Signals that are for the server. Others end or stop a process that nobody can replace, or mean nothing here.
const HANDED_ON: [Number; 6] =
    [Number::TERM, Number::INT, Number::HUP, Number::QUIT, Number::USR1, Number::USR2];

/// Whether this process is the first of its PID namespace.
pub(crate) fn is_needed() -> bool {
    std::process::id() == 1
}

/// Runs the program once more with the same arguments until it ends; gives its exit code. Before any thread is started.
pub(crate) fn run() -> ExitCode {
    // An image of our memory would hold what the environment holds. The server says so itself if it cannot be.
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    let _refused = setrlimit(Resource::Core, nothing);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = runtime.and_then(|runtime| runtime.block_on(serve_as_child()));
    code.unwrap_or_else(|error| complain(&format!("cannot run as the first process: {error}"), FAILED))
}

async fn serve_as_child() -> std::io::Result<ExitCode> {
    // Listened for before there is a child: none is missed.
    let mut signals = Signals::new()?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // A group of its own: a key pressed in the terminal reaches us alone, and the server once.
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
            // Who is left then is ended with us.
            drop(tokio::time::timeout(LAST_CHILDREN, last).await);
            return Ok(code(status));
        }
        if let Some(number) = signals.next().await {
            // It is our child and not reaped: the number is its own.
            let _ended = kill_process(server, number);
        }
    }
}

struct Reaped {
    /// How the server ended, if it did.
    ended: Option<ExitStatus>,
    any_left: bool,
}

/// Reaps all that has ended.
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

/// As shells give it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED))
}

struct Signals {
    children: Signal,
    handed_on: Vec<(Number, Signal)>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let listen = |number: Number| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        Ok(Self {
            children: signal(SignalKind::child())?,
            handed_on: HANDED_ON.into_iter().map(listen).collect::<std::io::Result<_>>()?,
        })
    }

    /// The next one that is for the server; `None`: a child has ended.
    async fn next(&mut self) -> Option<Number> {
        let Self { children, handed_on } = self;
        std::future::poll_fn(|context| {
            let number = handed_on
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
