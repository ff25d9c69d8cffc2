//! A self-test of the isolation: a program that tries what a CLI must not be able to do.
//!
//! The shim executable runs it in place of a CLI, with the argument [`PROBE_ARG`] and the attempts to make, each as
//! `WORD=TARGET` or `WORD`. It prints one line `WORD ok` or `WORD denied` for each attempt, in their order, and exits with
//! 0. An attempt is `ok` if it succeeded, hence if nothing prevents it.
//!
//! | word | target | attempt |
//! |---|---|---|
//! | `read`, `write`, `list`, `execute` | path | open the file for reading or writing, read the directory, execute the file |
//! | `signal` | pid | permission to send a signal |
//! | `environ`, `memory`, `maps` | pid | read of the file in `/proc/PID` |
//! | `trace` | pid | ptrace(2) |
//! | `tcp`, `udp` | port | connection or datagram to this port of 127.0.0.1 |
//! | `unix`, `abstract` | path or name | connection to the Unix socket |
//! | `processes` | | processes of others are in sight |
//! | `capabilities`, `bounding` | | any capability in a set in force; in the bounding set |
//! | `privileges` | | set-uid programs gain privileges |
//! | `unfiltered` | | no system call filter is in force |
//! | `mount`, `user_namespace`, `keyring`, `host_name` | | the system call |

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixStream},
        },
    },
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, getpid, getppid, test_kill_process};

use super::sys;

/// First argument that makes the shim run as the probe.
pub const PROBE_ARG: &str = "probe";

/// Time for a connection on the loopback interface, and for the answer to a datagram that nobody receives.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Makes the attempts; returns the exit code.
pub(crate) fn run(attempts: impl Iterator<Item = OsString>) -> i32 {
    let mut out = io::stdout().lock();
    for attempt in attempts {
        let (word, target) = split(&attempt);
        let Some(result) = word.to_str().and_then(|word| try_to(word, target)) else {
            eprintln!("pilotlight-shim: the probe knows no such attempt");
            return 2;
        };
        let outcome = if result.is_ok() { "ok" } else { "denied" };
        if writeln!(out, "{} {outcome}", word.display()).is_err() {
            return 1;
        }
    }
    0
}

fn split(attempt: &OsStr) -> (&OsStr, &OsStr) {
    let bytes = attempt.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    let target = bytes.get(at + 1..).unwrap_or_default();
    (OsStr::from_bytes(bytes.get(..at).unwrap_or_default()), OsStr::from_bytes(target))
}

/// `None` for a word that is unknown.
fn try_to(word: &str, target: &OsStr) -> Option<io::Result<()>> {
    Some(match word {
        "read" => File::open(target).and_then(read_some),
        "write" => File::options().write(true).open(target).map(drop),
        "list" => fs::read_dir(target).map(drop),
        "execute" => Command::new(target).status().map(drop),
        "signal" => pid(target).and_then(|pid| Ok(test_kill_process(pid)?)),
        "environ" => read_of(target, "environ"),
        "maps" => read_of(target, "maps"),
        // Its first page is never mapped, so a read would fail anyway.
        "memory" => of_process(target, "mem").map(drop),
        "trace" => pid(target).and_then(sys::trace),
        "tcp" => port(target).and_then(|port| TcpStream::connect_timeout(&port, ANSWERS_WITHIN)).map(drop),
        "udp" => port(target).and_then(datagram),
        "unix" => UnixStream::connect(target).map(drop),
        "abstract" => UnixAddress::from_abstract_name(target.as_bytes())
            .and_then(|address| UnixStream::connect_addr(&address))
            .map(drop),
        "processes" => foreign_process(),
        "capabilities" => non_zero(&["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"]),
        "bounding" => non_zero(&["CapBnd:"]),
        "privileges" => is_zero("NoNewPrivs:"),
        "unfiltered" => is_zero("Seccomp:"),
        "mount" => rustix::mount::mount_bind("/", "/").map_err(Into::into),
        "user_namespace" => sys::unshare(rustix::thread::UnshareFlags::NEWUSER),
        "keyring" => sys::session_keyring(),
        "host_name" => {
            let name = rustix::system::uname();
            rustix::system::sethostname(name.nodename().to_bytes()).map_err(Into::into)
        }
        _ => return None,
    })
}

fn number<N: std::str::FromStr>(target: &OsStr) -> io::Result<N> {
    target.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidInput.into())
}

fn pid(target: &OsStr) -> io::Result<Pid> {
    Pid::from_raw(number(target)?).ok_or(io::ErrorKind::InvalidInput.into())
}

fn port(target: &OsStr) -> io::Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, number(target)?).into())
}

fn of_process(target: &OsStr, file: &str) -> io::Result<File> {
    File::open(format!("/proc/{}/{file}", pid(target)?.as_raw_pid()))
}

fn read_of(target: &OsStr, file: &str) -> io::Result<()> {
    of_process(target, file).and_then(read_some)
}

fn read_some(mut file: File) -> io::Result<()> {
    file.read(&mut [0]).map(drop)
}

/// A refused datagram is answered at once on the loopback interface; silence means that it arrived.
/// The refusal may be late on a busy machine, and the socket may have got the very port it sends to: one refusal counts.
fn datagram(to: SocketAddr) -> io::Result<()> {
    const TRIES: usize = 3;
    (0..TRIES).try_for_each(|_| one_datagram(to))
}

fn one_datagram(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
    socket.send(b"probe")?;
    loop {
        match socket.recv(&mut [0]) {
            // A socket with a time limit is not restarted after a signal, which is no answer.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
            _ => return Ok(()),
        }
    }
}

/// In a PID namespace of its own, the parent is outside, and there is an init process only.
fn foreign_process() -> io::Result<()> {
    let me = getpid().as_raw_pid();
    let pids =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let others = pids.filter(|pid| *pid != me && *pid != 1).count();
    if getppid().is_some() || others > 0 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn non_zero(fields: &[&str]) -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = fields.iter().any(|name| {
        let field = status.lines().find_map(|line| line.strip_prefix(name));
        field.is_none_or(|value| value.trim().bytes().any(|digit| digit != b'0'))
    });
    if set { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn is_zero(field: &str) -> io::Result<()> {
    match non_zero(&[field]) {
        Ok(()) => Err(io::ErrorKind::PermissionDenied.into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_is_split_at_the_first_sign() {
        for (attempt, word, target) in
            [("read=/a=b", "read", "/a=b"), ("mount", "mount", ""), ("tcp=", "tcp", ""), ("", "", "")]
        {
            assert_eq!(split(OsStr::new(attempt)), (OsStr::new(word), OsStr::new(target)), "{attempt}");
        }
    }

    #[test]
    fn outcomes_without_isolation() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let attempt = |word: &str, target: &str| try_to(word, OsStr::new(target)).unwrap().is_ok();
        for (word, target, expected) in [
            ("read", "/proc/self/status", true),
            ("read", "/nonexistent", false),
            ("list", "/usr", true),
            ("write", "/dev/null", true),
            ("execute", "/bin/true", true),
            ("maps", &std::process::id().to_string(), true),
            ("tcp", &tcp.local_addr().unwrap().port().to_string(), true),
            ("udp", &udp.local_addr().unwrap().port().to_string(), true),
            ("udp", &closed.to_string(), false),
            ("unix", "/nonexistent", false),
            ("processes", "", true),
        ] {
            assert_eq!(attempt(word, target), expected, "{word}={target}");
        }
        assert!(try_to("fly", OsStr::new("")).is_none());
    }
}
