//! What is seen from outside: states of processes, accepted connections, received datagrams.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::SOON;
use crate::common::place::wait_until;
use crate::common::process::Process;
use crate::scene::read;

/// How long an event may take that is visible at once where it can happen at all, as a datagram over loopback.
const MOMENT: Duration = Duration::from_millis(300);

/// A field of `/proc/PID/status`.
pub(crate) fn status(process: Process, field: &str) -> String {
    let status = read(Path::new(&format!("/proc/{}/status", process.pid)));
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Whether the process is stopped. If so, it goes on.
pub(crate) fn was_stopped(process: Process) -> bool {
    // The signal takes effect when the process gets a processor, at the latest within this time.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
    let stops = || status(process, "State").starts_with('T');
    while !stops() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let is_stopped = stops();
    process.signal(Signal::CONT);
    is_stopped
}

pub(crate) fn is_traced(process: Process) -> bool {
    status(process, "TracerPid") != "0"
}

/// The line of `/proc/PID/limits` about message queues.
pub(crate) fn queue_limit(process: Process) -> String {
    let limits = read(Path::new(&format!("/proc/{}/limits", process.pid)));
    limits.lines().find(|line| line.starts_with("Max msgqueue")).unwrap_or_default().to_owned()
}

/// Where a link of `/proc/PID` leads.
pub(crate) fn link(process: Process, name: &str) -> String {
    let target = std::fs::read_link(format!("/proc/{}/{name}", process.pid));
    target.map(|target| target.display().to_string()).unwrap_or_default()
}

/// The targets of a process's descriptors that no other process has: sockets and pipes of its own.
pub(crate) fn descriptors(process: Process) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let targets = targets.map(|target| target.display().to_string());
    targets.filter(|target| target.starts_with("socket:") || target.starts_with("pipe:")).collect()
}

/// Whether there was a connection. One that the attacker claims to have may be accepted a moment later.
fn has_counted(accepted: &AtomicUsize, printed: &str) -> bool {
    let is_there = || accepted.load(Ordering::SeqCst) > 0;
    if printed.contains("connected") { wait_until(SOON, is_there) } else { is_there() }
}

/// A listener that counts whom it accepted.
pub(crate) struct Port {
    pub(crate) number: u16,
    accepted: Arc<AtomicUsize>,
}

impl Port {
    /// On every address of this host, of both families.
    pub(crate) fn open() -> Self {
        Self::of(TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).unwrap())
    }

    /// On one address.
    pub(crate) fn at(address: Ipv4Addr, port: u16) -> Self {
        Self::of(TcpListener::bind((address, port)).unwrap())
    }

    fn of(listener: TcpListener) -> Self {
        let number = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(connection);
            }
        });
        Self { number, accepted }
    }

    pub(crate) fn accepted(&self, printed: &str) -> bool {
        has_counted(&self.accepted, printed)
    }
}

/// A Unix socket that counts whom it accepted: a path, or an abstract name that begins with `@`.
pub(crate) struct UnixPort(Arc<AtomicUsize>);

impl UnixPort {
    pub(crate) fn open(name: &str) -> Self {
        let listener = match name.strip_prefix('@') {
            Some(name) => {
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                UnixListener::bind_addr(&address).unwrap()
            }
            None => UnixListener::bind(name).unwrap(),
        };
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                drop(connection);
            }
        });
        Self(accepted)
    }

    pub(crate) fn accepted(&self, printed: &str) -> bool {
        has_counted(&self.0, printed)
    }
}

/// A place for datagrams.
pub(crate) struct Datagrams(UdpSocket);

impl Datagrams {
    pub(crate) fn open() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(MOMENT)).unwrap();
        Self(socket)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub(crate) fn received(&self, text: &str) -> bool {
        let mut bytes = [0; 256];
        loop {
            match self.0.recv(&mut bytes) {
                Ok(length) => return &bytes[..length] == text.as_bytes(),
                // A socket with a time limit is not restarted after a signal.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// An address of this host that is not loopback; another loopback address where it has none.
pub(crate) fn outside_address() -> Ipv4Addr {
    // A datagram socket's connection sends nothing.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let chosen = socket.connect("192.0.2.200:9").and_then(|()| socket.local_addr());
    match chosen {
        Ok(SocketAddr::V4(address)) if !address.ip().is_unspecified() => *address.ip(),
        _ => Ipv4Addr::new(127, 0, 0, 2),
    }
}
