//! The isolation of a CLI process beyond the capabilities and descriptors that every CLI loses: plain data that crosses
//! the shim's command line.
//!
//! Every rung is off by default. A rung that is requested and cannot be applied prevents the start.

use std::{
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
};

/// A means of isolation. Rungs add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// Landlock: files, TCP ports, signals and abstract Unix sockets.
    Landlock,
    /// A seccomp filter: system calls that no CLI needs.
    Seccomp,
    /// Namespaces: processes, mounts, network, IPC and host name.
    Namespaces,
    /// A user id of its own.
    Uid,
    /// A cgroup with limits.
    Cgroup,
}

impl Rung {
    /// All rungs.
    pub const ALL: [Self; 5] = [Self::Landlock, Self::Seccomp, Self::Namespaces, Self::Uid, Self::Cgroup];

    /// Name in configuration, reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Namespaces => "namespaces",
            Self::Uid => "uid",
            Self::Cgroup => "cgroup",
        }
    }

    /// The rung with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.as_str() == name)
    }
}

/// What a CLI process may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolation {
    /// Restrict files to `mounts` and TCP to `network` by Landlock.
    pub landlock: bool,
    /// Refuse system calls that no CLI needs.
    pub seccomp: bool,
    /// Use separate PID, mount, IPC and UTS namespaces, a network namespace for [`Network::Private`], and a user namespace
    /// if the shim lacks CAP_SYS_ADMIN.
    pub namespaces: bool,
    /// What the CLI may connect to.
    pub network: Network,
    /// What of the file system is in reach, with `landlock` or `namespaces`. A later entry covers an earlier one.
    pub mounts: Vec<Mount>,
    /// Paths below a mount that stay out of reach. Namespaces cover them; Landlock grants no access to directories above
    /// them.
    pub hidden: Vec<PathBuf>,
}

/// What a CLI process may connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Network {
    /// Everything that the host reaches.
    #[default]
    Open,
    /// TCP to these ports only, by Landlock, which restricts neither addresses nor UDP.
    Ports(Vec<u16>),
    /// An own network namespace with nothing but a socket that listens on this port of 127.0.0.1. The server gets the
    /// socket with the line `listening`.
    Private {
        /// The port.
        port: u16,
    },
}

/// A file or directory in reach of the CLI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The path on the host. It must exist.
    pub path: PathBuf,
    /// The path at which the CLI sees it. Differs from `path` only with namespaces.
    pub to: PathBuf,
    /// Whether the CLI may write to it.
    pub write: bool,
}

impl Mount {
    /// A path that the CLI may read and execute.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { to: path.clone(), path, write: false }
    }

    /// A path that the CLI may also write.
    pub fn write(path: impl Into<PathBuf>) -> Self {
        Self { write: true, ..Self::read(path) }
    }
}

impl Isolation {
    /// Appends the options of the shim's command line.
    pub(crate) fn encode(&self, mut option: impl FnMut(&str, OsString)) {
        for (on, rung) in [
            (self.landlock, Rung::Landlock),
            (self.seccomp, Rung::Seccomp),
            (self.namespaces, Rung::Namespaces),
        ] {
            if on {
                option("--rung", rung.as_str().into());
            }
        }
        match &self.network {
            Network::Open => {}
            Network::Ports(ports) => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                option("--tcp-ports", ports.join(",").into());
            }
            Network::Private { port } => option("--private-network", port.to_string().into()),
        }
        for mount in &self.mounts {
            let name = if mount.write { "--read-write" } else { "--read-only" };
            option(name, mount.path.clone().into());
            if mount.to != mount.path {
                option("--mount-to", mount.to.clone().into());
            }
        }
        for path in &self.hidden {
            option("--hidden", path.clone().into());
        }
    }

    /// Takes in one option; `None` for a name that is not of the isolation.
    pub(crate) fn decode(&mut self, name: &OsStr, value: &OsStr) -> Option<Result<(), &'static str>> {
        Some(match name.to_str()? {
            "--rung" => self.turn_on(value),
            "--tcp-ports" => ports(value).map(|ports| self.network = Network::Ports(ports)),
            "--private-network" => port(value).map(|port| self.network = Network::Private { port }),
            "--read-only" => plain(value).map(|path| self.mounts.push(Mount::read(path))),
            "--read-write" => plain(value).map(|path| self.mounts.push(Mount::write(path))),
            "--mount-to" => plain(value).and_then(|to| {
                self.mounts.last_mut().ok_or("--mount-to follows a mount")?.to = to;
                Ok(())
            }),
            "--hidden" => plain(value).map(|path| self.hidden.push(path)),
            _ => return None,
        })
    }

    /// Whether what is requested fits together.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match &self.network {
            Network::Private { .. } if !self.namespaces => Err("a private network needs namespaces"),
            Network::Ports(_) if !self.landlock => Err("TCP ports need Landlock"),
            _ if !self.namespaces && self.mounts.iter().any(|mount| mount.to != mount.path) => {
                Err("a mount at another path needs namespaces")
            }
            _ => Ok(()),
        }
    }

    fn turn_on(&mut self, name: &OsStr) -> Result<(), &'static str> {
        match name.to_str().and_then(Rung::parse) {
            Some(Rung::Landlock) => self.landlock = true,
            Some(Rung::Seccomp) => self.seccomp = true,
            Some(Rung::Namespaces) => self.namespaces = true,
            // These have options of their own.
            Some(Rung::Uid | Rung::Cgroup) | None => return Err("a rung is unknown"),
        }
        Ok(())
    }
}

fn ports(list: &OsStr) -> Result<Vec<u16>, &'static str> {
    match list.to_str().ok_or("a port is not a number in range")? {
        "" => Ok(Vec::new()),
        list => list.split(',').map(|one| port(OsStr::new(one))).collect(),
    }
}

fn port(value: &OsStr) -> Result<u16, &'static str> {
    let port = value.to_str().and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    port.ok_or("a port is not a number in range")
}

/// An absolute path without `..`, which would lead out of the new root while it is built.
fn plain(value: &OsStr) -> Result<PathBuf, &'static str> {
    let path = Path::new(value);
    let is_plain = path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if is_plain { Ok(path.to_owned()) } else { Err("a path of the isolation is not absolute and plain") }
}

#[cfg(test)]
mod tests;
