//! The command line, environment and limits of a child, and its start.

use std::ffi::OsString;
use std::path::PathBuf;

use super::access::{self, Access, Endpoint};
use super::lifecycle::Plan;
use super::opening::Prepared;
use crate::adapter::{self, LaunchPlan};
use crate::child::{self, ChildLimits, Contained, Launch};
use crate::config::{CliConfig, JournalMode, Limits, PermissionPolicy};
use crate::error::StartFailure;
use crate::installation::versions::Chosen;
use crate::model::Dirs;
use crate::support::open_files;
use crate::workspace::Owner;

/// A requested child.
pub(super) struct Launched {
    pub(super) child: Box<Contained>,
    /// Its endpoint at the broker, to be served once it has started.
    pub(super) endpoint: Option<Endpoint>,
}

/// Blocking, inside a runtime.
pub(super) fn start(plan: &Plan, prepared: &Prepared, chosen: &Chosen) -> Result<Launched, StartFailure> {
    let Plan { workspace, generation, entry, .. } = plan;
    let env = plan.env();
    let dirs = workspace.dirs();
    let command = adapter::command(&LaunchPlan {
        cli: &env.config.cli,
        dirs,
        session_id: &prepared.cli_session_id,
        mode: prepared.mode,
        model: prepared.model.as_deref(),
        settings: &prepared.settings,
        mcp_timeout: env.config.mcp.connect_timeout,
        mirrors: env.config.session.journal != JournalMode::Off && env.installed.mirrors(chosen),
        asks_permission: env.config.permissions.policy.stricter(prepared.settings.policy)
            != PermissionPolicy::Deny,
    });
    let program = &chosen.found;
    let mut args = program.first_args.clone();
    args.extend(command.args);
    let variables = environment(plan, prepared, command.env, command.enforced_env);
    let Access { variables, network, endpoint } = access::of_start(plan, prepared, variables)?;
    let path = variables.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let shared_home = shared_home(&env.config.cli, dirs);
    let isolation = env.isolation.of_child(dirs, shared_home.as_deref(), &program.path, path, network);
    let again = if chosen.is_fallback { "-again" } else { "" };
    let name = format!("{}-{}{again}", entry.key.hash(), generation.0);
    let groups = env.cgroups.of_start(&format!("{name}-{}", prepared.attempt))?;
    let launch = Launch {
        program: &program.path,
        args: &args,
        env: &variables,
        cwd: &dirs.work,
        limits: &limits_of(&env.config.limits, prepared.owner, groups.limits),
        isolation: &isolation,
        cgroup: groups.kill,
    };
    let child = child::spawn(&env.shim, &launch).inspect_err(|_| {
        // No shim has them, so nobody else would remove them.
        let groups = launch.limits.groups.iter().chain(&launch.cgroup);
        groups.for_each(|group| drop(std::fs::remove_dir(group)));
    })?;
    Ok(Launched { child, endpoint })
}

/// The directory with the CLI's files, if the configuration moves it out of the sessions.
fn shared_home(cli: &CliConfig, dirs: &Dirs) -> Option<PathBuf> {
    let directory = adapter::config_dir(dirs, cli);
    (!directory.starts_with(&dirs.home)).then_some(directory)
}

/// Whether all sessions have the CLI's files in one directory.
pub(crate) fn shares_home(cli: &CliConfig) -> bool {
    let own = |name: &str| PathBuf::from("/session").join(name);
    shared_home(cli, &Dirs { work: own("work"), home: own("home"), tmp: own("tmp") }).is_some()
}

fn limits_of(config: &Limits, owner: Option<Owner>, groups: Vec<PathBuf>) -> ChildLimits {
    let most_files = open_files::most_of_children();
    ChildLimits {
        groups,
        owner: owner.map(|owner| (owner.uid, owner.gid)),
        nofile: Some(config.child_open_files.map_or(most_files, |configured| configured.min(most_files))),
        nofile_soft: open_files::of_children().filter(|_| config.child_open_files.is_none()),
        nproc: config.child_processes,
        fsize: config.child_file_size,
        oom_score_adj: Some(config.child_oom_score),
        ..ChildLimits::default()
    }
}

/// The child's whole environment. Later entries win.
fn environment(
    plan: &Plan,
    prepared: &Prepared,
    of_adapter: Vec<(OsString, OsString)>,
    decided: Vec<(OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let (env, dirs) = (plan.env(), plan.workspace.dirs());
    let cli = &env.config.cli;
    let passed = cli.env_pass.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    let configured = cli.env.iter().map(|(name, value)| (name.into(), value.into()));
    let own = [
        ("HOME".into(), dirs.home.clone().into_os_string()),
        ("TMPDIR".into(), dirs.tmp.clone().into_os_string()),
        (env.marker.name.into(), env.marker.value.clone().into()),
        ("PILOTLIGHT_SESSION".into(), plan.entry.key.hash().as_str().into()),
    ];
    let given = passed.chain(of_adapter).chain(configured).chain(prepared.variables.iter());
    let given = given.filter_map(|(name, value)| {
        let value = match prepared.own_credentials {
            true => adapter::variable_beside_oauth(&name, value)?,
            false => value,
        };
        Some((name, value))
    });
    given.chain(decided).chain(own).collect()
}
