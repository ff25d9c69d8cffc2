//! The isolation of children: which rungs the host gives, and what each child gets of them.
//!
//! [`probe`] proves each rung by a child that tries what the rung forbids. [`plan`] is pure: from the proven rungs, the
//! configuration and the session to what the shim applies.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilotlight_shim::isolation::{Isolation, Network};
use tokio::sync::{Notify, futures::Notified};

mod host;
mod plan;
mod privilege;
mod probe;
mod program;
mod proven;
mod remedy;
mod uids;
mod vacancy;

pub(crate) use plan::NetworkMeans;
#[cfg(feature = "broker")]
pub(crate) use plan::PRIVATE_PORT;
pub(crate) use proven::Proven;
pub use proven::RungState;

use crate::child::{LimitBase, Remains, ShimProgram};
use crate::config::{Config, Rung, UidRange};
use crate::error::StartError;
use crate::model::Dirs;
use crate::model::ids::UserId;
use crate::workspace::{Owner, let_users_pass, uids_file, user_digest};
use plan::{Host, Needs};
pub(crate) use uids::UidError;
use uids::Uids;
use vacancy::Doubts;

/// The isolation of one system's children.
#[derive(Debug)]
pub(crate) struct Isolator {
    proven: Arc<Proven>,
    host: Host,
    /// With the rung `uid`.
    owners: Option<Owners>,
    /// Ids of spares of which a process may be left.
    doubts: Doubts,
    /// Called when an id of a spare may have become free.
    freed: Notify,
    range: UidRange,
    /// The CLI's files of all sessions lie in one directory, by configuration.
    shares_home: bool,
}

/// The surroundings of the CLI that decide which rungs are of use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cli<'a> {
    /// Where it is, if it is found at the start.
    pub(crate) program: Option<&'a Path>,
    /// The data directory that it will run with.
    pub(crate) data_dir: &'a Path,
    /// The configuration moves its files to one directory of all sessions.
    pub(crate) shares_home: bool,
}

/// Which user id a child gets.
#[derive(Debug)]
enum Owners {
    /// One per user.
    Users(Uids),
    /// That of probes: a trial start is of no user.
    Trial(Owner),
}

/// As [`Isolator::retire`], while no system runs.
pub(crate) fn retire_user_id(data_dir: &Path, user: &str) -> io::Result<()> {
    Ok(uids::retire(&uids_file(data_dir), user)?)
}

impl Isolator {
    /// Proves the rungs, unless that was done by the system of this trial start, and prepares what they need.
    ///
    /// # Errors
    /// [`StartError::Isolation`] if a required rung does not hold, [`StartError::Config`] if a mount cannot be shown.
    pub(crate) async fn start(
        config: &Config,
        data_dir: &Path,
        shim: &ShimProgram,
        cli: Cli<'_>,
        limits: Result<&LimitBase, &String>,
        known: Option<Arc<Proven>>,
    ) -> Result<Self, StartError> {
        let as_root = rustix::process::geteuid().is_root();
        let is_trial = known.is_some();
        let (look, dir) = (config.clone(), data_dir.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            host::check_mounts(&look, &dir)?;
            Ok::<_, StartError>(host::look(&look, &dir, as_root))
        });
        let host = looked.await.map_err(|error| failed("the look at the host failed", error))??;
        let proven = match known {
            Some(proven) => proven,
            None => Arc::new(probe::prove(config, data_dir, shim, cli, limits, &host).await?),
        };
        if let Some((rung, state)) = proven.lacks(&config.isolation.require) {
            return Err(StartError::Isolation { rung: rung.as_str(), state: state.to_string() });
        }
        let range = config.isolation.uids;
        let owners = if proven.holds(Rung::Uid) {
            let dir = data_dir.to_owned();
            let opened = tokio::task::spawn_blocking(move || Owners::open(&dir, range, is_trial));
            Some(opened.await.map_err(|error| failed("the list of user ids was not read", error))??)
        } else {
            None
        };
        Ok(Self {
            proven,
            host,
            owners,
            doubts: Doubts::default(),
            freed: Notify::new(),
            range,
            shares_home: cli.shares_home,
        })
    }

    pub(crate) fn proven(&self) -> &Arc<Proven> {
        &self.proven
    }

    /// Whether tools of one user reach neither the processes nor the files of another.
    pub(crate) fn separates_users(&self) -> bool {
        self.proven.separates_users() && !self.shares_home
    }

    /// Ids that files of a session may belong to.
    pub(crate) fn range(&self) -> UidRange {
        self.range
    }

    /// Whether users have ids of their own, which have to be found on the disk.
    pub(crate) fn has_owners(&self) -> bool {
        self.owners.is_some()
    }

    /// Whose the files and the children of a user are; `None`: this process's. Blocking.
    ///
    /// # Errors
    /// If the user's id cannot be stored, or none is left.
    pub(crate) fn owner(&self, user: &UserId) -> Result<Option<Owner>, UidError> {
        match &self.owners {
            None => Ok(None),
            Some(Owners::Trial(owner)) => Ok(Some(*owner)),
            Some(Owners::Users(uids)) => {
                let owner = uids.of(&user_digest(user)).map_err(|error| match error {
                    UidError::Held(range) if uids.reserved() <= self.doubts.count() => {
                        UidError::Doubted(range)
                    }
                    error => error,
                });
                Ok(Some(owner?))
            }
        }
    }

    /// Whose a child is that has no user yet; `None`: this process's.
    ///
    /// # Errors
    /// If no id is left.
    pub(crate) fn owner_of_spare(&self) -> io::Result<Option<Owner>> {
        match &self.owners {
            Some(Owners::Users(uids)) => Ok(Some(uids.reserve()?)),
            Some(Owners::Trial(owner)) => Ok(Some(*owner)),
            None => Ok(None),
        }
    }

    /// Waits for an id that a spare gives back, or that a user gets with it.
    pub(crate) fn freed(&self) -> Notified<'_> {
        self.freed.notified()
    }

    /// Whether the user may get a child of [`Isolator::owner_of_spare`]: one with a user id keeps that.
    pub(crate) fn may_adopt(&self, user: &UserId) -> bool {
        !matches!(&self.owners, Some(Owners::Users(uids)) if uids.knows(&user_digest(user)))
    }

    /// Gives the user the id of such a child; false if the user has got another meanwhile. Blocking.
    ///
    /// # Errors
    /// If the id cannot be stored.
    pub(crate) fn adopt(&self, user: &UserId, owner: Option<Owner>) -> io::Result<bool> {
        match (&self.owners, owner) {
            (Some(Owners::Users(uids)), Some(owner)) => {
                let adopted = uids.adopt(&user_digest(user), owner);
                self.freed.notify_waiters();
                Ok(adopted?)
            }
            _ => Ok(true),
        }
    }

    /// Takes back the id of such a child that no user got, as soon as nothing of the child is left. Blocking.
    pub(crate) fn release(&self, owner: Option<Owner>, remains: Remains) {
        let (Some(Owners::Users(uids)), Some(user)) = (&self.owners, owner) else { return };
        match remains {
            Remains::Nothing => {
                uids.release(user);
                self.freed.notify_waiters();
            }
            Remains::Possible { shim } => {
                self.doubt(owner, shim);
                self.review();
            }
        }
    }

    /// Gives up the id of such a child until no process has it, which [`Isolator::review`] finds out.
    pub(crate) fn doubt(&self, owner: Option<Owner>, shim: Option<u32>) {
        let (Some(Owners::Users(uids)), Some(owner)) = (&self.owners, owner) else { return };
        if !shim.is_some_and(|shim| vacancy::shows_all() && self.doubts.add(owner, shim)) {
            // No process of it could be ruled out; the next start may use it again.
            tracing::warn!(uid = owner.uid, "a user id is not used again: a process may have it");
            uids.give_up(owner);
        }
        // Who waits for it looks for another one.
        self.freed.notify_waiters();
    }

    /// Whether there are ids to be looked at by [`Isolator::review`].
    pub(crate) fn has_doubts(&self) -> bool {
        self.doubts.count() > 0
    }

    /// Takes back the ids of ended children that no process has any more. Blocking.
    pub(crate) fn review(&self) {
        let Some(Owners::Users(uids)) = &self.owners else { return };
        match self.doubts.resolved() {
            Ok(resolved) => {
                resolved.into_iter().for_each(|owner| uids.release(owner));
                self.freed.notify_waiters();
            }
            Err(error) => tracing::warn!(%error, "cannot see whether a process has the user id of a spare"),
        }
    }

    /// Forgets the user with this digest; its user id is given to no other. Blocking.
    pub(crate) fn retire(&self, data_dir: &Path, user: &str) -> io::Result<()> {
        match &self.owners {
            Some(Owners::Users(uids)) => Ok(uids.retire(user)?),
            // An earlier start may have had the rung.
            _ => retire_user_id(data_dir, user),
        }
    }

    /// How a child's connections are restricted.
    pub(crate) fn network_means(&self, unrestricted: bool) -> NetworkMeans {
        plan::network_means(&self.proven, unrestricted)
    }

    /// What a child of a session gets. `path` is the child's `PATH`.
    pub(crate) fn of_child(
        &self,
        dirs: &Dirs,
        shared_home: Option<&Path>,
        program: &Path,
        path: Option<&OsStr>,
        network: Network,
    ) -> Isolation {
        let needs_files = [Rung::Landlock, Rung::Namespaces].into_iter().any(|rung| self.proven.holds(rung));
        let program = if needs_files { program::mounts(program, path, &self.guarded()) } else { Vec::new() };
        plan::plan(&self.proven, &self.host, Needs { dirs, shared_home, program, network })
    }

    /// What no directory of the CLI may contain to be shown as a whole.
    fn guarded(&self) -> Vec<PathBuf> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        self.host.hidden.iter().chain(&self.host.of_root).cloned().chain(home).collect()
    }
}

impl Owners {
    fn open(data_dir: &Path, range: UidRange, is_trial: bool) -> Result<Self, StartError> {
        let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
        let_users_pass(data_dir).map_err(failed)?;
        if is_trial {
            return Ok(Self::Trial(uids::of_probe(range)));
        }
        let path = uids_file(data_dir);
        let uids =
            Uids::open(&path, range).map_err(|error| StartError::DataDir { path, source: error.into() })?;
        Ok(Self::Users(uids))
    }
}

fn failed(message: &str, error: tokio::task::JoinError) -> StartError {
    StartError::Supervisor { message: message.to_owned(), source: Some(error.into()) }
}
