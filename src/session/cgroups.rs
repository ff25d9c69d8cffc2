//! The cgroups of children: by which their trees are killed, and which limit them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pilotlight_shim::report::KillMethod;

use crate::child::{CgroupBase, GroupLimits, Groups, Held, LimitBase};
use crate::config::{Config, Limits, Rung};
use crate::error::StartFailure;
use crate::isolation::Proven;

/// Tasks of one session unless `limits.child_processes` is set: a CLI has about twenty threads, a build tool one for each
/// core; a fork bomb stops here.
const TASKS: u64 = 2048;

/// What the host allows.
#[derive(Debug)]
pub(crate) struct Cgroups {
    base: Option<CgroupBase>,
    /// Of the rung `cgroup`, if it was proven.
    limits: Option<LimitBase>,
    /// Limits of each child.
    of_child: GroupLimits,
    /// Without limits no child starts.
    is_required: bool,
    /// Children have a PID namespace of their own.
    namespaces: bool,
    /// The groups that were found at the start do not work.
    lost: AtomicBool,
    /// The last limits could not be set.
    unlimited: AtomicBool,
    /// The directories of the groups, so that no other server removes them.
    _held: Vec<Held>,
}

/// The groups of one child.
#[derive(Debug, Default)]
pub(crate) struct ChildGroups {
    /// The group by which it is killed.
    pub(crate) kill: Option<PathBuf>,
    /// Groups of version 1 that limit it.
    pub(crate) limits: Vec<PathBuf>,
}

impl Cgroups {
    /// `memory`: the limit of one session, in bytes.
    pub(crate) fn new(groups: Groups, proven: &Proven, config: &Config, memory: u64) -> Self {
        let Groups { base, limits, held } = groups;
        let (limits, unproven) = match limits {
            Ok(limits) if proven.holds(Rung::Cgroup) => (Some(limits), None),
            other => (None, other.ok()),
        };
        if let Some(unproven) = unproven {
            unproven.remove();
        }
        Self {
            base,
            limits,
            of_child: limits_of(&config.limits, memory),
            is_required: config.isolation.require.contains(&Rung::Cgroup),
            namespaces: proven.holds(Rung::Namespaces),
            lost: AtomicBool::new(false),
            unlimited: AtomicBool::new(false),
            _held: held,
        }
    }

    /// Whether children have lost the limits that they had: groups may be taken away while the system runs.
    pub(crate) fn are_limits_lost(&self) -> bool {
        self.unlimited.load(Ordering::Relaxed)
    }

    /// The groups for a start; `name` must be new for each. Those that limit the child exist afterwards. Blocking.
    ///
    /// # Errors
    /// If a required limit cannot be set.
    pub(crate) fn of_start(&self, name: &str) -> Result<ChildGroups, StartFailure> {
        let kill = self.base.as_ref().map(|base| base.child_dir(name));
        let limits = match self.limits.as_ref().map(|base| base.create(name, self.of_child)) {
            None => Vec::new(),
            Some(Ok(limits)) => {
                if self.unlimited.swap(false, Ordering::Relaxed) {
                    tracing::info!("children have the limits of their cgroups again");
                }
                limits
            }
            Some(Err(error)) if self.is_required => {
                self.unlimited.store(true, Ordering::Relaxed);
                return Err(StartFailure::Spawn {
                    reason: "isolation",
                    message: format!(
                        "the limits of its cgroup cannot be set ({error}), and isolation.require has cgroup"
                    ),
                    source: None,
                });
            }
            Some(Err(error)) => {
                if !self.unlimited.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the limits of a cgroup cannot be set any more: children start without them");
                }
                Vec::new()
            }
        };
        Ok(ChildGroups { kill, limits })
    }

    /// Removes the groups of all children at the end. Blocking.
    pub(crate) fn remove(&self) {
        if let Some(base) = &self.base {
            base.remove();
        }
        if let Some(limits) = &self.limits {
            limits.remove();
        }
    }

    /// The strongest available method of killing a tree: groups may be taken away while the system runs.
    pub(crate) fn containment(&self) -> KillMethod {
        if self.base.as_ref().is_some_and(|base| !base.is_there()) {
            self.set_usable(false);
        }
        let usable = self.base.is_some() && !self.lost.load(Ordering::Relaxed);
        match (self.namespaces, usable) {
            (true, _) => KillMethod::Namespace,
            (false, true) => KillMethod::Cgroup,
            (false, false) => KillMethod::Walk,
        }
    }

    /// Records whether children can be put into groups, as the last start or check has shown. Logs each change once.
    pub(crate) fn set_usable(&self, usable: bool) {
        if self.base.is_none() || self.lost.swap(!usable, Ordering::Relaxed) != usable {
            return;
        }
        if usable {
            tracing::info!("children are in cgroups again: their trees end by cgroup.kill");
        } else {
            tracing::warn!(
                "children cannot be put into cgroups any more: see that the group of this service is writable and still \
                 delegated to it. Without namespaces, trees are ended by walking the process table, which a hostile one \
                 can escape"
            );
        }
    }
}

/// The sampler ends a tree whose memory passes the limit and says so to its turn. The kernel counts file pages too, and
/// kills only what passes the limit by an eighth, faster than a sample.
fn limits_of(limits: &Limits, memory: u64) -> GroupLimits {
    GroupLimits {
        memory: memory.saturating_add(memory / 8),
        tasks: limits.child_processes.unwrap_or(TASKS),
        cores: limits.cpu_per_session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_group_follow_the_configuration() {
        let mut limits = Limits::default();
        let of = |limits: &Limits| limits_of(limits, 800);
        assert_eq!(of(&limits), GroupLimits { memory: 900, tasks: TASKS, cores: None });
        limits.child_processes = Some(50);
        limits.cpu_per_session = Some(1.5);
        assert_eq!(of(&limits), GroupLimits { memory: 900, tasks: 50, cores: Some(1.5) });
    }

    #[test]
    fn containment_prefers_the_namespace() {
        let config = Config::new("/d");
        let of = |proven: &Proven| Cgroups::new(groups(Err(String::new())), proven, &config, 1).containment();
        assert_eq!(of(&Proven::of(&[Rung::Namespaces])), KillMethod::Namespace);
        assert_eq!(of(&Proven::of(&[Rung::Cgroup])), KillMethod::Walk);
    }

    fn groups(limits: Result<LimitBase, String>) -> Groups {
        Groups { base: None, limits, held: Vec::new() }
    }

    #[test]
    fn lost_limits_are_known_until_they_are_back() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("base");
        let limits = || Ok(LimitBase::V2(base.clone()));
        let proven = Proven::of(&[Rung::Cgroup]);
        let mut config = Config::new("/d");
        let cgroups = Cgroups::new(groups(limits()), &proven, &config, 1);
        assert!(!cgroups.are_limits_lost());
        cgroups.of_start("one").unwrap();
        assert!(cgroups.are_limits_lost(), "the directory is missing");
        std::fs::create_dir(&base).unwrap();
        cgroups.of_start("two").unwrap();
        assert!(!cgroups.are_limits_lost() && base.join("two/pids.max").exists());
        config.isolation.require = vec![Rung::Cgroup];
        let required = Cgroups::new(groups(limits()), &proven, &config, 1);
        std::fs::remove_dir_all(&base).unwrap();
        assert!(required.of_start("three").is_err());
        assert!(required.are_limits_lost(), "no child starts, which is known too");
    }
}
