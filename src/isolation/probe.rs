//! The proof of each rung: a child that has it tries what it forbids, before any session starts.
//!
//! Probes start through the ordinary path, with the shim's own executable in the place of the CLI. What they report is
//! judged by a pure function; nothing is assumed from versions or settings.

use std::io;
use std::path::Path;

use pilotlight_shim::isolation::{Isolation, Mount, Network};

use super::plan::{self, Host, Needs, PRIVATE_PORT};
use super::proven::{Proven, RungState};
use super::{Cli, host, privilege, program, remedy, uids};
use crate::child::{GroupLimits, LimitBase, ShimProgram};
use crate::config::{Config, ConfigError, Rung};
use crate::model::Dirs;
use crate::workspace::Owner;
use targets::Targets;

mod attempt;
mod judge;
mod mounts;
mod targets;

const PRIVATE: Network = Network::Private { port: PRIVATE_PORT };

/// Proves the rungs that may be used. A rung that cannot be proven is not used, and its state has the reason.
///
/// # Errors
/// A rung works, but not with a configured mount.
pub(crate) async fn prove(
    config: &Config,
    data_dir: &Path,
    shim: &ShimProgram,
    cli: Cli<'_>,
    limits: Result<&LimitBase, &String>,
    host: &Host,
) -> Result<Proven, ConfigError> {
    let mut proven = Proven::none();
    let wanted = |rung: Rung| config.isolation.rungs.contains(&rung);
    if Rung::ALL.into_iter().all(|rung| !wanted(rung)) {
        return Ok(proven);
    }
    let dir = data_dir.to_owned();
    let targets = match blocking(move || Targets::make(&dir)).await {
        Ok(targets) => targets,
        Err(error) => {
            for rung in Rung::ALL.into_iter().filter(|rung| wanted(*rung)) {
                proven.set(rung, unavailable(rung, format!("no probe could be made: {error}")));
            }
            return Ok(proven);
        }
    };
    let prober = Prober { config, data_dir, shim, cli, limits, host, targets };
    let result = prober.all(&mut proven).await;
    let targets = prober.targets;
    // The next start removes what stays.
    blocking(move || targets.remove()).await.ok();
    result.map(|()| proven)
}

/// Landlock with what its version restricts.
struct Landlock {
    state: RungState,
    tcp: bool,
    scopes: bool,
}

struct Prober<'a> {
    config: &'a Config,
    data_dir: &'a Path,
    shim: &'a ShimProgram,
    cli: Cli<'a>,
    limits: Result<&'a LimitBase, &'a String>,
    host: &'a Host,
    targets: Targets,
}

impl Prober<'_> {
    /// Sets the states of the rungs that may be used.
    async fn all(&self, proven: &mut Proven) -> Result<(), ConfigError> {
        let wanted = |rung: Rung| self.config.isolation.rungs.contains(&rung);
        let (landlock, seccomp, namespaces) =
            tokio::join!(self.landlock(), self.alone(Rung::Seccomp), self.alone(Rung::Namespaces));
        if wanted(Rung::Landlock) {
            (proven.tcp, proven.scopes) = (landlock.tcp, landlock.scopes);
            proven.set(Rung::Landlock, landlock.state);
        }
        for (rung, state) in [(Rung::Seccomp, seccomp), (Rung::Namespaces, namespaces)] {
            if wanted(rung) {
                proven.set(rung, state);
            }
        }
        for (rung, network) in [(Rung::Landlock, Network::Open), (Rung::Namespaces, PRIVATE)] {
            if wanted(rung) && !proven.holds(rung) && self.exposed(rung).is_none() {
                self.blame_mounts(&Proven::only(rung), &network, false).await?;
            }
        }
        if wanted(Rung::Uid) {
            proven.set(Rung::Uid, self.uid(proven.holds(Rung::Namespaces)).await);
        }
        if wanted(Rung::Cgroup) {
            proven.set(Rung::Cgroup, self.cgroup().await);
        }
        self.together(proven).await
    }

    async fn landlock(&self) -> Landlock {
        let without = |state| Landlock { state, tcp: false, scopes: false };
        if let Some(state) = self.exposed(Rung::Landlock) {
            return without(state);
        }
        let words = self.attempts(&judge::LANDLOCK);
        let with = |network| self.isolation(&Proven::only(Rung::Landlock), network);
        let mut reported = self.report(with(Network::Ports(Vec::new())), false, &words).await;
        if reported.is_err() {
            // Kernels before 6.7 restrict files and not the network.
            reported = self.report(with(Network::Open), false, &words).await;
        }
        match reported {
            Err(reason) => without(unavailable(Rung::Landlock, reason)),
            Ok(seen) => Landlock {
                state: state(Rung::Landlock, judge::failed(&judge::LANDLOCK_FILES, &seen)),
                tcp: seen.is_denied("tcp"),
                scopes: seen.is_denied("signal") && seen.is_denied("abstract"),
            },
        }
    }

    async fn alone(&self, rung: Rung) -> RungState {
        if let Some(state) = self.exposed(rung) {
            return state;
        }
        let (words, network): (&[&str], _) = match rung {
            Rung::Namespaces => (&judge::NAMESPACES, PRIVATE),
            _ => (&judge::SECCOMP, Network::Open),
        };
        let isolation = self.isolation(&Proven::only(rung), network);
        match self.report(isolation, false, &self.attempts(words)).await {
            Err(reason) => unavailable(rung, reason),
            Ok(seen) => state(rung, judge::failed(words, &seen)),
        }
    }

    /// With namespaces the probe sees the target, so that nothing but its user id keeps it away.
    async fn uid(&self, in_namespaces: bool) -> RungState {
        let unavailable = |reason| unavailable(Rung::Uid, reason);
        if let Some(reason) = privilege::lacking(self.config.isolation.uids) {
            return unavailable(reason);
        }
        if let Some(reason) = self.impassable(in_namespaces) {
            return unavailable(reason);
        }
        let rungs = if in_namespaces { Proven::only(Rung::Namespaces) } else { Proven::none() };
        let network = if in_namespaces { PRIVATE } else { Network::Open };
        let mut isolation = self.isolation(&rungs, network);
        if in_namespaces {
            isolation.mounts.push(Mount::read(&self.targets.outside));
        }
        let words = self.attempts(&judge::UID);
        match self.report(isolation, true, &words).await {
            Err(reason) => unavailable(reason),
            Ok(seen) => state(Rung::Uid, judge::failed(&judge::UID, &seen)),
        }
    }

    /// A group that has room for the probe alone: it cannot start another process.
    async fn cgroup(&self) -> RungState {
        const ALONE: GroupLimits = GroupLimits { memory: 256 << 20, tasks: 1, cores: Some(1.0) };
        let limits = match self.limits {
            Ok(limits) => limits,
            Err(reason) => return unavailable(Rung::Cgroup, reason.clone()),
        };
        let groups = match limits.create("probe", ALONE) {
            Ok(groups) => groups,
            Err(error) => return unavailable(Rung::Cgroup, format!("limits cannot be set ({error})")),
        };
        let group = limits.v2_dir("probe");
        let attempts = [&judge::BASE[..], &["execute"]].concat();
        let probe = attempt::Probe { groups, group, ..self.probe(Isolation::default(), None) };
        match probe.run(&self.attempts(&attempts)).await {
            Err(failure) => unavailable(Rung::Cgroup, failure.reason),
            Ok(seen) => state(Rung::Cgroup, judge::failed(&attempts, &seen)),
        }
    }

    /// All proven rungs at once, as children get them. A rung that does not work beside the others is left out.
    async fn together(&self, proven: &mut Proven) -> Result<(), ConfigError> {
        for _ in Rung::ALL {
            let held: Vec<_> = Rung::ALL.into_iter().filter(|rung| proven.holds(*rung)).collect();
            let Some(last) = held.last().copied() else { return Ok(()) };
            let network = match plan::network_means(proven, false) {
                plan::NetworkMeans::Private => PRIVATE,
                plan::NetworkMeans::Ports => Network::Ports(Vec::new()),
                plan::NetworkMeans::Open => Network::Open,
            };
            let isolation = self.isolation(proven, network.clone());
            let words = self.attempts(&judge::BASE);
            let as_user = proven.holds(Rung::Uid);
            let failed = match self.report_of(isolation, as_user, &words).await {
                Ok(seen) => match judge::failed(&judge::BASE, &seen) {
                    None => return Ok(()),
                    Some(failed) => (last, failed),
                },
                Err(failure) => {
                    self.blame_mounts(proven, &network, as_user).await?;
                    (failure.rung.filter(|rung| held.contains(rung)).unwrap_or(last), failure.reason)
                }
            };
            let (rung, reason) = failed;
            proven.set(rung, unavailable(rung, format!("it does not work beside the other rungs: {reason}")));
        }
        Ok(())
    }

    /// What keeps other users from the data directory or from the CLI.
    fn impassable(&self, in_namespaces: bool) -> Option<String> {
        let closed = |path: &Path| privilege::closed(path).map(|path| path.display().to_string());
        if self.cli.shares_home {
            return Some("cli.env moves the files of the CLI to one directory of all sessions".to_owned());
        }
        let cli = self.cli.program.and_then(|cli| cli.canonicalize().ok());
        if in_namespaces {
            // The mounts lead there, whatever lies above them.
            let is_open = |path: &Path| privilege::is_open(path);
            let inner = cli.as_deref().into_iter().flat_map(|cli| [Some(cli), cli.parent()]).flatten();
            let blocked = inner.into_iter().find(|path| !is_open(path));
            return blocked.map(|path| format!("other users may not execute or pass `{}`", path.display()));
        }
        // The data directory itself is opened by this process.
        let parent = existing(self.cli.data_dir.parent().unwrap_or(Path::new("/")));
        let blocked = closed(parent).or_else(|| cli.as_deref().and_then(closed));
        blocked.map(|path| format!("other users may not execute or pass `{path}`"))
    }

    /// A rung for files is of no use if every child sees the data directory.
    fn exposed(&self, rung: Rung) -> Option<RungState> {
        let shows_files = matches!(rung, Rung::Landlock | Rung::Namespaces);
        let by = host::exposes(self.host, self.cli.data_dir).filter(|_| shows_files)?;
        Some(RungState::Unavailable {
            reason: format!("data_dir lies in `{}`, which every child sees", by.display()),
            remedy: "move data_dir elsewhere, for example to /var/lib",
        })
    }

    /// The attempts with these words, each with its target.
    fn attempts(&self, words: &[&str]) -> Vec<String> {
        words.iter().filter_map(|word| self.targets.attempt(word, self.shim.path())).collect()
    }

    fn isolation(&self, rungs: &Proven, network: Network) -> Isolation {
        self.isolation_on(self.host, rungs, network)
    }

    fn isolation_on(&self, host: &Host, rungs: &Proven, network: Network) -> Isolation {
        let own = &self.targets.own;
        let dirs = Dirs { work: own.join("work"), home: own.join("home"), tmp: own.join("tmp") };
        let program = program::mounts(self.shim.path(), None, &[self.data_dir.to_owned()]);
        plan::plan(rungs, host, Needs { dirs: &dirs, shared_home: None, program, network })
    }

    async fn report(
        &self,
        isolation: Isolation,
        as_user: bool,
        attempts: &[String],
    ) -> Result<judge::Seen, String> {
        self.report_of(isolation, as_user, attempts).await.map_err(|failure| failure.reason)
    }

    async fn report_of(
        &self,
        isolation: Isolation,
        as_user: bool,
        attempts: &[String],
    ) -> Result<judge::Seen, attempt::Failure> {
        let owner = as_user.then(|| uids::of_probe(self.config.isolation.uids));
        let own = self.targets.own.clone();
        let given = blocking(move || targets::give(&own, owner)).await;
        given.map_err(|error| attempt::Failure { rung: None, reason: error.to_string() })?;
        self.probe(isolation, owner).run(attempts).await
    }

    fn probe(&self, isolation: Isolation, owner: Option<Owner>) -> attempt::Probe<'_> {
        let cwd = self.targets.own.join("work");
        attempt::Probe { shim: self.shim, isolation, owner, cwd, group: None, groups: Vec::new() }
    }
}

/// The nearest directory above that exists already.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn state(rung: Rung, failed: Option<String>) -> RungState {
    failed.map_or(RungState::Held, |reason| unavailable(rung, reason))
}

fn unavailable(rung: Rung, reason: String) -> RungState {
    RungState::Unavailable { reason, remedy: remedy::of(rung) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
