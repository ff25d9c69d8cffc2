//! The cgroups of children: by which their trees are killed, and which limit them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use pilotlight_shim::report::KillMethod;

use crate::child::{CgroupBase, GroupLimits, LimitBase};
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
    pub(crate) fn new(
        base: Option<CgroupBase>,
        limits: Option<LimitBase>,
        proven: &Proven,
        config: &Config,
        memory: u64,
    ) -> Self {
        let (limits, unproven) = match limits {
            Some(limits) if proven.holds(Rung::Cgroup) => (Some(limits), None),
            other => (None, other),
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
        }
    }

    /// The groups for a start; `name` must be new for each. Those that limit the child exist afterwards.
    ///
    /// # Errors
    /// If a required limit cannot be set.
    pub(crate) fn of_start(&self, name: &str) -> Result<ChildGroups, StartFailure> {
        let kill = self.base.as_ref().map(|base| base.child_dir(name));
        let limits = match self.limits.as_ref().map(|base| base.create(name, self.of_child)) {
            None => Vec::new(),
            Some(Ok(limits)) => {
                self.unlimited.store(false, Ordering::Relaxed);
                limits
            }
            Some(Err(error)) if self.is_required => {
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
        let of = |proven: &Proven| Cgroups::new(None, None, proven, &config, 1).containment();
        assert_eq!(of(&Proven::of(&[Rung::Namespaces])), KillMethod::Namespace);
        assert_eq!(of(&Proven::of(&[Rung::Cgroup])), KillMethod::Walk);
    }
}
