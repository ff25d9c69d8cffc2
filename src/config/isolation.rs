//! Section `isolation`: what separates the children of different users from each other and from the server.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{Config, ConfigError, Egress, validate::invalid, value};
pub use pilotlight_shim::isolation::Rung;

/// Isolation between the children of different users. The default uses every rung that the host offers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Isolation {
    /// Rungs that may be used. Those that the host offers are used, added up. Default: all.
    #[serde(deserialize_with = "rungs")]
    pub rungs: Vec<Rung>,
    /// Rungs without which the system does not start. Default: none.
    #[serde(deserialize_with = "rungs")]
    pub require: Vec<Rung>,
    /// User ids for [`Rung::Uid`], one per user. Nothing else on the host may use them. Default
    /// `1900000000-1900065535`.
    pub uids: UidRange,
    /// More of the host's files for tools, beside what every child sees. Without effect unless [`Rung::Landlock`] or
    /// [`Rung::Namespaces`] restricts what a child sees.
    pub mounts: Vec<IsolationMount>,
    /// Hosts that children reach. Default: `api` where the host can restrict the network of a child, else `open`.
    pub egress: Option<Egress>,
    /// Accepts that tools of one user can read the files of another (`permissions.policy` other than `deny` with several
    /// users and too few rungs). Default false: the server then serves one user, or no tools. No effect in an embedding
    /// program, which decides itself whom it serves.
    pub accept_none: bool,
}

impl Isolation {
    /// Whether an operator should hear that this rung is missing: it is written in the configuration, or needs no
    /// privilege on a usual host.
    pub(crate) fn expects(&self, rung: Rung) -> bool {
        let is_default = self.rungs == Rung::ALL;
        let is_usual = matches!(rung, Rung::Landlock | Rung::Seccomp | Rung::Namespaces);
        self.rungs.contains(&rung) && (!is_default || is_usual || self.require.contains(&rung))
    }
}

impl Default for Isolation {
    fn default() -> Self {
        Self {
            rungs: Rung::ALL.to_vec(),
            require: Vec::new(),
            uids: UidRange::default(),
            mounts: Vec::new(),
            egress: None,
            accept_none: false,
        }
    }
}

/// Files of the host that tools may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct IsolationMount {
    /// Absolute path of a directory or file. It must exist at the start of the system.
    pub path: PathBuf,
    /// Path at which children see it. Another one than `path` needs [`Rung::Namespaces`]. Default: `path`.
    #[serde(default)]
    pub to: Option<PathBuf>,
    /// Whether tools may write to it. Default false. Children of all users share it.
    #[serde(default)]
    pub write: bool,
}

impl IsolationMount {
    /// A path that tools may read and execute.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), to: None, write: false }
    }
}

/// Inclusive range of user ids, written as `"1900000000-1900065535"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// Largest number of ids: their allocations stay in memory.
    const LARGEST: u32 = 1 << 20;

    /// The ids from `first` to `last`; `None` if the range is empty, larger than a million ids, or contains root or the
    /// ids that the kernel reserves.
    #[must_use]
    pub fn new(first: u32, last: u32) -> Option<Self> {
        // The last ids stand for "unchanged" and, in 16 bits, for "overflow".
        const RESERVED: u32 = 65_534;
        let contains = |id| (first..=last).contains(&id);
        let fits = 0 < first && first <= last && last - first < Self::LARGEST && last < u32::MAX - 1;
        (fits && !contains(RESERVED) && !contains(RESERVED + 1)).then_some(Self { first, last })
    }

    /// Lowest id.
    #[must_use]
    pub fn first(self) -> u32 {
        self.first
    }

    /// Highest id.
    #[must_use]
    pub fn last(self) -> u32 {
        self.last
    }

    /// Whether the range has this id.
    #[must_use]
    pub fn contains(self, id: u32) -> bool {
        (self.first..=self.last).contains(&id)
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
    }
}

impl Default for UidRange {
    /// As many as there are 16-bit ids. They lie above what useradd gives to the containers of users (`SUB_UID_MAX`,
    /// 600100000) and systemd to those of systemd-nspawn (up to 1879048191), and below what systemd reserves further up.
    fn default() -> Self {
        Self { first: 1_900_000_000, last: 1_900_065_535 }
    }
}

impl fmt::Display for UidRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl<'de> Deserialize<'de> for UidRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a range of user ids such as \"1900000000-1900065535\", at most a million, without 0, 65534 and 65535";
        value::read(deserializer, expected, |value| Self::parse(value.as_str()?))
    }
}

fn rungs<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Rung>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    let mut rungs = Vec::new();
    for name in names {
        let rung = Rung::parse(&name).ok_or_else(|| {
            let known = Rung::ALL.map(Rung::as_str).join("\", \"");
            serde::de::Error::custom(format!("`{name}` is no rung; the rungs are \"{known}\""))
        })?;
        if !rungs.contains(&rung) {
            rungs.push(rung);
        }
    }
    Ok(rungs)
}

/// Directories that every child has of its own: nothing of the host is shown there.
const TAKEN: [&str; 4] = ["/proc", "/dev", "/sys", "/tmp"];

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let isolation = &config.isolation;
    if let Some(rung) = isolation.require.iter().find(|rung| !isolation.rungs.contains(rung)) {
        let problem = format!("requires \"{}\", which isolation.rungs leaves out", rung.as_str());
        return Err(invalid("isolation.require", problem));
    }
    for (number, mount) in isolation.mounts.iter().enumerate() {
        let key = |name: &str| format!("isolation.mounts[{number}].{name}");
        if !is_plain(&mount.path) {
            return Err(invalid(key("path"), "must be an absolute path without `..`, and not `/`"));
        }
        if std::path::absolute(&config.data_dir).is_ok_and(|data_dir| data_dir.starts_with(&mount.path)) {
            let problem = "must not contain data_dir, which has the files of all users";
            return Err(invalid(key("path"), problem));
        }
        if let Some(to) = &mount.to
            && (!is_plain(to) || TAKEN.iter().any(|taken| to.starts_with(taken)))
        {
            let problem =
                format!("must be an absolute path without `..`, and not `/` or in {}", TAKEN.join(", "));
            return Err(invalid(key("to"), problem));
        }
    }
    Ok(())
}

fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && path.components().count() > 1
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_ranges_leave_out_root_and_reserved_ids() {
        assert_eq!(UidRange::parse("1900000000-1900065535"), Some(UidRange::default()));
        assert_eq!(UidRange::parse(" 7 - 7 ").map(|range| range.to_string()).as_deref(), Some("7-7"));
        for unfit in
            ["", "7", "-7", "8-7", "0-7", "60000-70000", "1-4294967294", "4294967295-4294967295", "1-9999999"]
        {
            assert_eq!(UidRange::parse(unfit), None, "{unfit}");
        }
    }

    #[test]
    fn rungs_that_are_written_are_expected() {
        let mut isolation = Isolation::default();
        let expected = |isolation: &Isolation| Rung::ALL.map(|rung| isolation.expects(rung));
        assert_eq!(expected(&isolation), [true, true, true, false, false]);
        isolation.require = vec![Rung::Cgroup];
        assert_eq!(expected(&isolation), [true, true, true, false, true]);
        isolation.rungs = vec![Rung::Landlock, Rung::Uid];
        assert_eq!(expected(&isolation), [true, false, false, true, false]);
    }

    #[test]
    fn default_uses_all_rungs_and_requires_none() {
        let isolation = Isolation::default();
        assert_eq!(isolation.rungs, Rung::ALL);
        assert!(isolation.require.is_empty() && !isolation.accept_none);
    }
}
