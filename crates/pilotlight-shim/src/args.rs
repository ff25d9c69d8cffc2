//! The shim's command line: the server encodes it, the shim parses it.
//!
//! Parsed by hand to keep the shim small. There is no limit on address space, because JavaScript runtimes reserve far
//! more than they use.

use std::{
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::isolation::Isolation;

/// Resource limits and owner of a CLI process. `None` keeps the server's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildLimits {
    /// Open files (`RLIMIT_NOFILE`).
    pub nofile: Option<u64>,
    /// Soft limit on open files, for a server that has raised its own. `nofile` takes precedence.
    pub nofile_soft: Option<u64>,
    /// Processes of the user (`RLIMIT_NPROC`); useful only together with `owner`.
    pub nproc: Option<u64>,
    /// Size of a core file (`RLIMIT_CORE`). The default is 0: a core file would hold conversations and keys.
    pub core: Option<u64>,
    /// Size of each written file (`RLIMIT_FSIZE`).
    pub fsize: Option<u64>,
    /// OOM score adjustment, which makes the kernel kill the CLI before the server.
    pub oom_score_adj: Option<i32>,
    /// User and group of the CLI; needs privilege.
    pub owner: Option<(u32, u32)>,
    /// Cgroups of version 1 that limit the CLI. The shim removes them at its end.
    pub groups: Vec<PathBuf>,
    /// Time between SIGTERM and SIGKILL after the lifeline broke.
    pub term_grace: Duration,
}

/// The CLI writes its transcript about 100 ms after an answer; twice that is enough to flush.
const TERM_GRACE: Duration = Duration::from_millis(200);

impl Default for ChildLimits {
    fn default() -> Self {
        Self {
            nofile: None,
            nofile_soft: None,
            nproc: None,
            core: Some(0),
            fsize: None,
            oom_score_adj: None,
            owner: None,
            groups: Vec::new(),
            term_grace: TERM_GRACE,
        }
    }
}

/// The parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) cgroup: Option<PathBuf>,
    /// The page of a deadline waits on the control socket.
    pub(crate) fenced: bool,
    pub(crate) limits: ChildLimits,
    pub(crate) isolation: Isolation,
    /// Program (an absolute path) and arguments. Never empty.
    pub(crate) argv: Vec<CString>,
}

/// Value of `--fence`: how the deadline comes.
const BY_PAGE: &str = "page";

/// Encodes the arguments that make the shim start `program`. `fenced`: the page of a deadline waits on the control socket.
pub fn encode(
    cgroup: Option<&Path>,
    fenced: bool,
    limits: &ChildLimits,
    isolation: &Isolation,
    program: &Path,
    args: &[OsString],
) -> Vec<OsString> {
    let mut line = Vec::with_capacity(args.len() + 16);
    let mut option = |name: &str, value: Option<OsString>| {
        if let Some(value) = value {
            line.push(OsString::from(name));
            line.push(value);
        }
    };
    let number = |value: u64| OsString::from(value.to_string());
    option("--cgroup", cgroup.map(|dir| dir.as_os_str().to_owned()));
    option("--fence", fenced.then(|| OsString::from(BY_PAGE)));
    option("--nofile", limits.nofile.map(number));
    option("--nofile-soft", limits.nofile_soft.map(number));
    option("--nproc", limits.nproc.map(number));
    option("--core", limits.core.map(number));
    option("--fsize", limits.fsize.map(number));
    option("--oom-score-adj", limits.oom_score_adj.map(|adj| OsString::from(adj.to_string())));
    option("--uid", limits.owner.map(|(uid, _)| number(uid.into())));
    option("--gid", limits.owner.map(|(_, gid)| number(gid.into())));
    for group in &limits.groups {
        option("--limited-by", Some(group.as_os_str().to_owned()));
    }
    let grace = u64::try_from(limits.term_grace.as_millis()).unwrap_or(u64::MAX);
    option("--term-grace-ms", Some(number(grace)));
    isolation.encode(|name, value| option(name, Some(value)));
    line.push(OsString::from("--"));
    line.push(program.as_os_str().to_owned());
    line.extend(args.iter().cloned());
    line
}

/// Parses arguments from [`encode`]; `Err` names the first mistake.
pub(crate) fn parse(mut line: impl Iterator<Item = OsString>) -> Result<Args, &'static str> {
    let mut limits = ChildLimits { core: None, ..ChildLimits::default() };
    let mut isolation = Isolation::default();
    let (mut cgroup, mut fenced, mut uid, mut gid) = (None, false, None, None);
    loop {
        let name = line.next().ok_or("`-- PROGRAM` is missing")?;
        if name == "--" {
            break;
        }
        let value = line.next().ok_or("an option has no value")?;
        match name.to_str().unwrap_or_default() {
            "--cgroup" => cgroup = Some(PathBuf::from(value)),
            "--fence" if value == BY_PAGE => fenced = true,
            "--fence" => return Err("the deadline comes in no known way"),
            "--nofile" => limits.nofile = Some(number(&value)?),
            "--nofile-soft" => limits.nofile_soft = Some(number(&value)?),
            "--nproc" => limits.nproc = Some(number(&value)?),
            "--core" => limits.core = Some(number(&value)?),
            "--fsize" => limits.fsize = Some(number(&value)?),
            "--oom-score-adj" => limits.oom_score_adj = Some(number(&value)?),
            "--uid" => uid = Some(number(&value)?),
            "--gid" => gid = Some(number(&value)?),
            "--limited-by" => limits.groups.push(PathBuf::from(value)),
            "--term-grace-ms" => limits.term_grace = Duration::from_millis(number(&value)?),
            _ => isolation.decode(&name, &value).ok_or("an option is unknown")??,
        }
    }
    limits.owner = match (uid, gid) {
        (Some(uid), Some(gid)) => Some((uid, gid)),
        (None, None) => None,
        _ => return Err("--uid and --gid go together"),
    };
    isolation.check()?;
    let argv = line.map(|arg| CString::new(arg.into_vec())).collect::<Result<Vec<_>, _>>();
    let argv = argv.map_err(|_| "an argument contains a NUL byte")?;
    if !argv.first().is_some_and(|program| program.as_bytes().starts_with(b"/")) {
        return Err("the program must be an absolute path");
    }
    Ok(Args { cgroup, fenced, limits, isolation, argv })
}

fn number<N: std::str::FromStr>(value: &OsStr) -> Result<N, &'static str> {
    value.to_str().and_then(|text| text.parse().ok()).ok_or("a value is not a number in range")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Args, &'static str> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn encoded_line_parses_to_the_same_limits() {
        let limits = ChildLimits {
            nofile: Some(512),
            nofile_soft: Some(256),
            nproc: Some(60),
            core: Some(0),
            fsize: Some(1 << 30),
            oom_score_adj: Some(-5),
            owner: Some((1000, 1001)),
            groups: vec!["/cg/memory/x".into(), "/cg/pids/x".into()],
            term_grace: Duration::from_millis(50),
        };
        let isolation = Isolation { seccomp: true, ..Isolation::default() };
        let line = encode(
            Some(Path::new("/cg/x")),
            true,
            &limits,
            &isolation,
            Path::new("/bin/echo"),
            &["--cgroup".into(), "--".into()],
        );
        let args = parse(line.into_iter()).unwrap();
        assert_eq!(args.limits, limits);
        assert_eq!(args.isolation, isolation);
        assert_eq!((args.cgroup.as_deref(), args.fenced), (Some(Path::new("/cg/x")), true));
        assert_eq!(args.argv, [c"/bin/echo", c"--cgroup", c"--"].map(CString::from));

        let (limits, isolation) = (ChildLimits::default(), Isolation::default());
        let plain =
            parse(encode(None, false, &limits, &isolation, Path::new("/bin/true"), &[]).into_iter()).unwrap();
        assert_eq!(plain.limits, limits);
        assert_eq!(plain.isolation, isolation);
        assert_eq!((plain.cgroup, plain.fenced), (None, false));
    }

    #[test]
    fn malformed_lines_are_refused() {
        for words in [
            &[][..],
            &["--"],
            &["--", "relative"],
            &["--nofile"],
            &["--nofile", "--", "/bin/true"],
            &["--nofile", "-1", "--", "/bin/true"],
            &["--address-space", "1", "--", "/bin/true"],
            &["--uid", "1", "--", "/bin/true"],
            &["--fence", "moat", "--", "/bin/true"],
            &["--fence", "--", "/bin/true"],
            &["/bin/true"],
        ] {
            assert!(parse_words(words).is_err(), "accepted {words:?}");
        }
    }
}
