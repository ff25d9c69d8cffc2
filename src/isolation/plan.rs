//! What a child gets: the rungs that the host has proven, and what the child sees through them. Pure.

use std::path::{Path, PathBuf};

use pilotlight_shim::isolation::{Isolation, Mount, Network};

use super::proven::Proven;
use crate::config::Rung;
use crate::model::Dirs;

/// Port of the listener inside a private network: each child has one of its own, so that all may have the same.
pub(crate) const PRIVATE_PORT: u16 = 8479;

/// What every child may see of the host, found once at the start of the system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Of the operating system, and as configured.
    pub(crate) mounts: Vec<Mount>,
    /// Files of the server.
    pub(crate) hidden: Vec<PathBuf>,
    /// Secrets of the host, which permissions keep from every child but root's.
    pub(crate) of_root: Vec<PathBuf>,
}

/// What one child needs.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    pub(crate) dirs: &'a Dirs,
    /// Where the CLI keeps its files, if configured to be outside of the session.
    pub(crate) shared_home: Option<&'a Path>,
    /// Of the CLI: its program, the program's interpreter and modules.
    pub(crate) program: Vec<Mount>,
    pub(crate) network: Network,
}

/// How a child's connections are restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkMeans {
    /// They are not.
    Open,
    /// By the port that Landlock permits: the listener is bound on loopback before the start.
    Ports,
    /// By a network of the child's own, whose listener comes from the shim.
    Private,
}

/// The strongest proven means, unless the child may connect to everything.
pub(crate) fn network_means(proven: &Proven, unrestricted: bool) -> NetworkMeans {
    match () {
        () if unrestricted => NetworkMeans::Open,
        () if proven.holds(Rung::Namespaces) => NetworkMeans::Private,
        () if proven.holds(Rung::Landlock) && proven.tcp => NetworkMeans::Ports,
        () => NetworkMeans::Open,
    }
}

/// The isolation of one child.
pub(crate) fn plan(proven: &Proven, host: &Host, needs: Needs<'_>) -> Isolation {
    let (landlock, namespaces) = (proven.holds(Rung::Landlock), proven.holds(Rung::Namespaces));
    let seccomp = proven.holds(Rung::Seccomp);
    if !landlock && !namespaces {
        return Isolation { seccomp, ..Isolation::default() };
    }
    let mut mounts = host.mounts.clone();
    // A second name below a mount, such as `/bin` or a link in it, is there already.
    let is_there = |to: &Path| host.mounts.iter().any(|by| by.to == by.path && to.starts_with(&by.to));
    mounts.extend(needs.program.into_iter().filter(|mount| !is_there(&mount.to)));
    // The session's own come last: they lie on what was mounted above them.
    mounts.extend(needs.shared_home.map(Mount::write));
    let Dirs { work, home, tmp } = needs.dirs;
    mounts.extend([work, home, tmp].map(Mount::write));
    if namespaces {
        mounts.push(Mount { path: tmp.clone(), to: PathBuf::from("/tmp"), write: true });
    } else {
        // Landlock has rules for files, not for names.
        mounts.retain_mut(|mount| {
            mount.to.clone_from(&mount.path);
            true
        });
    }
    let mounts = without_repetitions(mounts);
    let is_below = |path: &PathBuf| mounts.iter().any(|mount| path.starts_with(&mount.path));
    // Each hidden file costs a child some hundred mounts, one for each entry beside it.
    let of_root = host.of_root.iter().filter(|_| !proven.holds(Rung::Uid));
    let hidden = host.hidden.iter().chain(of_root).filter(|path| is_below(path)).cloned().collect();
    Isolation { landlock, seccomp, namespaces, network: needs.network, mounts, hidden }
}

/// Leaves out what an earlier mount shows in the same way.
fn without_repetitions(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut kept: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let is_shown = |by: &Mount| {
            let (from, to) = (mount.path.strip_prefix(&by.path), mount.to.strip_prefix(&by.to));
            by.write == mount.write && from.is_ok() && from == to
        };
        if !kept.iter().any(is_shown) {
            kept.push(mount);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs() -> Dirs {
        let own = |name: &str| PathBuf::from(format!("/data/sessions/x/{name}"));
        Dirs { work: own("work"), home: own("home"), tmp: own("tmp") }
    }

    fn host() -> Host {
        let hidden = ["/data", "/etc/pilotlight/keys.jsonl", "/srv/users.toml"].map(PathBuf::from);
        let of_root = vec![PathBuf::from("/etc/shadow")];
        Host { mounts: ["/usr", "/etc"].map(Mount::read).to_vec(), hidden: hidden.to_vec(), of_root }
    }

    fn planned(rungs: &[Rung], program: Vec<Mount>) -> Isolation {
        let (proven, dirs) = (Proven::of(rungs), dirs());
        let network = Network::Open;
        plan(&proven, &host(), Needs { dirs: &dirs, shared_home: None, program, network })
    }

    #[test]
    fn nothing_is_mounted_without_a_rung_for_files() {
        for rungs in [&[][..], &[Rung::Uid, Rung::Cgroup]] {
            assert_eq!(planned(rungs, vec![Mount::read("/opt/cli")]), Isolation::default());
        }
        assert_eq!(planned(&[Rung::Seccomp], vec![]), Isolation { seccomp: true, ..Isolation::default() });
    }

    #[test]
    fn child_sees_its_own_directories_only() {
        let isolation = planned(&Rung::ALL, vec![Mount::read("/opt/cli"), Mount::read("/usr/bin")]);
        let writable: Vec<_> = isolation.mounts.iter().filter(|mount| mount.write).collect();
        let Dirs { work, home, tmp } = dirs();
        let shown = [&work, &home, &tmp, &PathBuf::from("/tmp")];
        assert_eq!(writable.iter().map(|mount| &mount.to).collect::<Vec<_>>(), shown);
        let read: Vec<_> = isolation.mounts.iter().filter(|mount| !mount.write).map(|m| &m.path).collect();
        assert_eq!(read, [Path::new("/usr"), Path::new("/etc"), Path::new("/opt/cli")]);
        assert_eq!(isolation.hidden, [PathBuf::from("/etc/pilotlight/keys.jsonl")]);
        assert!(isolation.namespaces && isolation.landlock && isolation.seccomp);
    }

    #[test]
    fn secrets_of_root_are_hidden_from_children_of_root() {
        let shadow = PathBuf::from("/etc/shadow");
        for (rungs, expected) in [(&[Rung::Namespaces][..], true), (&[Rung::Namespaces, Rung::Uid], false)] {
            assert_eq!(planned(rungs, vec![]).hidden.contains(&shadow), expected, "{rungs:?}");
        }
    }

    #[test]
    fn second_name_below_a_mount_is_not_mounted() {
        let bin = Mount { path: "/opt/x".into(), to: "/usr/bin".into(), write: false };
        let isolation = planned(&Rung::ALL, vec![bin, Mount::read("/opt/x")]);
        assert!(isolation.mounts.iter().all(|mount| mount.to != Path::new("/usr/bin")));
        assert!(isolation.mounts.contains(&Mount::read("/opt/x")));
    }

    #[test]
    fn landlock_alone_moves_no_mount() {
        let elsewhere = Mount { path: "/opt/a".into(), to: "/opt/b".into(), write: false };
        let isolation = planned(&[Rung::Landlock], vec![elsewhere]);
        assert!(isolation.mounts.iter().all(|mount| mount.path == mount.to));
        assert!(isolation.mounts.iter().any(|mount| mount.path == Path::new("/opt/a")));
        assert!(!isolation.mounts.iter().any(|mount| mount.to == Path::new("/tmp")));
    }

    #[test]
    fn data_directory_is_hidden_below_a_mount() {
        let isolation = planned(&Rung::ALL, vec![Mount::read("/")]);
        assert_eq!(isolation.hidden.len(), 3);
    }

    #[test]
    fn network_uses_the_strongest_proven_means() {
        let tcp = |rungs: &[Rung], tcp| {
            let mut proven = Proven::of(rungs);
            proven.tcp = tcp;
            proven
        };
        let cases = [
            (tcp(&Rung::ALL, true), false, NetworkMeans::Private),
            (tcp(&[Rung::Landlock], true), false, NetworkMeans::Ports),
            (tcp(&[Rung::Landlock], false), false, NetworkMeans::Open),
            (tcp(&[Rung::Uid, Rung::Seccomp], true), false, NetworkMeans::Open),
            (tcp(&Rung::ALL, true), true, NetworkMeans::Open),
        ];
        for (proven, unrestricted, expected) in cases {
            assert_eq!(network_means(&proven, unrestricted), expected, "{proven:?} {unrestricted}");
        }
    }
}
