//! What probes try to reach: files, sockets and this process. Blocking.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use crate::workspace::{Owner, let_users_pass, make_passable, remove_any};

/// Directory of the probes below the data directory. Always the same, so that leftovers are found by the next start.
const DIRECTORY: &str = "isolation";

pub(super) struct Targets {
    directory: PathBuf,
    /// The directories of the probe.
    pub(super) own: PathBuf,
    /// What it must not reach.
    pub(super) outside: PathBuf,
    tcp: TcpListener,
    udp: UdpSocket,
    name: String,
    _sockets: [UnixListener; 2],
}

impl Targets {
    pub(super) fn make(data_dir: &Path) -> io::Result<Self> {
        let directory = data_dir.join(DIRECTORY);
        remove_any(&directory)?;
        let (own, outside) = (directory.join("own"), directory.join("outside"));
        for path in [directory.clone(), own.clone(), outside.clone()] {
            private_directory(&path)?;
        }
        for name in ["work", "home", "tmp"] {
            private_directory(&own.join(name))?;
        }
        fs::write(outside.join("secret"), "secret")?;
        fs::set_permissions(outside.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let path = UnixListener::bind(outside.join("socket"))?;
        let name = format!("pilotlight-{}", uuid::Uuid::new_v4().simple());
        let abstract_ = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes())?)?;
        Ok(Self {
            tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
            name,
            _sockets: [path, abstract_],
            directory,
            own,
            outside,
        })
    }

    /// The attempt with this word and its target. `program` can be executed.
    pub(super) fn attempt(&self, word: &str, program: &Path) -> Option<String> {
        let path = |path: &Path| Some(format!("{word}={}", path.display()));
        let number = |number: u32| Some(format!("{word}={number}"));
        match word {
            "read" | "write" => path(&self.outside.join("secret")),
            "execute" => path(program),
            "list" => path(&self.outside),
            "unix" => path(&self.outside.join("socket")),
            "abstract" => Some(format!("{word}={}", self.name)),
            "signal" | "environ" | "memory" | "trace" => number(std::process::id()),
            "tcp" => number(self.tcp.local_addr().ok()?.port().into()),
            "udp" => number(self.udp.local_addr().ok()?.port().into()),
            _ => Some(word.to_owned()),
        }
    }

    pub(super) fn remove(self) -> io::Result<()> {
        remove_any(&self.directory)
    }
}

/// Gives the probe's directories to its user.
pub(super) fn give(own: &Path, owner: Option<Owner>) -> io::Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let data_dir = own.parent().and_then(Path::parent).ok_or(io::ErrorKind::InvalidInput)?;
    let_users_pass(data_dir)?;
    for passed in own.ancestors().take(2) {
        make_passable(passed)?;
    }
    for name in ["work", "home", "tmp"] {
        std::os::unix::fs::chown(own.join(name), Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}
