//! The command line, environment and limits of a child, and its start.

use std::ffi::OsString;
use std::path::PathBuf;

use pilotlight_shim::isolation::Network;

use super::access::{self, Access, Endpoint};
use super::env::Env;
use super::lifecycle::Plan;
use super::opening::Prepared;
use crate::adapter::{self, LaunchMode, LaunchPlan, LaunchSettings};
use crate::child::{self, ChildLimits, Contained, Launch};
use crate::config::{CliConfig, JournalMode, Limits, PermissionPolicy};
use crate::error::StartFailure;
use crate::installation::versions::Chosen;
use crate::model::Dirs;
use crate::support::open_files;
use crate::workspace::user_env::Variables;
use crate::workspace::{Owner, Workspace};

/// A requested child.
pub(super) struct Launched {
    pub(super) child: Box<Contained>,
    /// Its endpoint at the broker, to be served once it has started.
    pub(super) endpoint: Option<Endpoint>,
}

/// What decides about the command line and the environment of a child.
pub(super) struct Blueprint<'a> {
    pub(super) env: &'a Env,
    pub(super) workspace: &'a Workspace,
    /// The CLI's id of the conversation.
    pub(super) conversation: &'a str,
    pub(super) mode: LaunchMode,
    pub(super) model: Option<&'a str>,
    pub(super) settings: &'a LaunchSettings,
    /// Those that only this user's children get.
    pub(super) variables: &'a Variables,
    pub(super) own_credentials: bool,
}

/// A command line with the whole environment. `Debug` is redacted.
#[derive(PartialEq, Eq)]
pub(super) struct Command {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) variables: Vec<(OsString, OsString)>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("program", &self.program).finish_non_exhaustive()
    }
}

/// What a child gets besides its command.
pub(super) struct Surroundings {
    pub(super) network: Network,
    pub(super) owner: Option<Owner>,
    /// Name of its cgroups, new for each start.
    pub(super) group: String,
}

/// Blocking, inside a runtime.
pub(super) fn start(plan: &Plan, prepared: &Prepared, chosen: &Chosen) -> Result<Launched, StartFailure> {
    let Plan { workspace, generation, entry, .. } = plan;
    let command = Blueprint::of(plan, prepared).command(chosen);
    let Access { variables, network, endpoint } = access::of_start(plan, prepared, command.variables)?;
    let again = if chosen.is_fallback { "-again" } else { "" };
    let group = format!("{}-{}{again}-{}", entry.key.hash(), generation.0, prepared.attempt);
    let surroundings = Surroundings { network, owner: prepared.owner, group };
    let child = spawn(plan.env(), workspace, &Command { variables, ..command }, surroundings)?;
    Ok(Launched { child, endpoint })
}

impl<'a> Blueprint<'a> {
    pub(super) fn of(plan: &'a Plan, prepared: &'a Prepared) -> Self {
        Self {
            env: plan.env(),
            workspace: &plan.workspace,
            conversation: &prepared.cli_session_id,
            mode: prepared.mode,
            model: prepared.model.as_deref(),
            settings: &prepared.settings,
            variables: &prepared.variables,
            own_credentials: prepared.own_credentials,
        }
    }

    /// The command, before the broker has changed its environment.
    pub(super) fn command(&self, chosen: &Chosen) -> Command {
        let config = &self.env.config;
        let command = adapter::command(&LaunchPlan {
            cli: &config.cli,
            dirs: self.workspace.dirs(),
            session_id: self.conversation,
            mode: self.mode,
            model: self.model,
            settings: self.settings,
            mcp_timeout: config.mcp.connect_timeout,
            // The server ends the wait first.
            tool_timeout: config.session.tool_timeout * 2,
            mirrors: config.session.journal != JournalMode::Off && self.env.installed.mirrors(chosen),
            asks_permission: config.permissions.policy.stricter(self.settings.policy)
                != PermissionPolicy::Deny,
        });
        let program = &chosen.found;
        let mut args = program.first_args.clone();
        args.extend(command.args);
        let variables = self.environment(command.env, command.enforced_env);
        Command { program: program.path.clone(), args, variables }
    }

    /// The child's whole environment. Later entries win.
    fn environment(
        &self,
        of_adapter: Vec<(OsString, OsString)>,
        decided: Vec<(OsString, OsString)>,
    ) -> Vec<(OsString, OsString)> {
        let (env, dirs) = (self.env, self.workspace.dirs());
        let cli = &env.config.cli;
        let passed = cli.env_pass.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
        let configured = cli.env.iter().map(|(name, value)| (name.into(), value.into()));
        let own = [
            ("HOME".into(), dirs.home.clone().into_os_string()),
            ("TMPDIR".into(), dirs.tmp.clone().into_os_string()),
            (env.marker.name.into(), env.marker.value.clone().into()),
            // Not the session's key: a child may be started before its session is known.
            ("PILOTLIGHT_SESSION".into(), self.workspace.name().as_str().into()),
        ];
        let given = passed.chain(of_adapter).chain(configured).chain(self.variables.iter());
        let given = given.filter_map(|(name, value)| {
            let value = match self.own_credentials {
                true => adapter::variable_beside_oauth(&name, value)?,
                false => value,
            };
            Some((name, value))
        });
        given.chain(decided).chain(own).collect()
    }
}

/// Starts a child in the directories of `workspace`. Blocking, inside a runtime.
pub(super) fn spawn(
    env: &Env,
    workspace: &Workspace,
    command: &Command,
    surroundings: Surroundings,
) -> Result<Box<Contained>, StartFailure> {
    let (dirs, Surroundings { network, owner, group }) = (workspace.dirs(), surroundings);
    let variables = &command.variables;
    let path = variables.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let shared_home = shared_home(&env.config.cli, dirs);
    let isolation = env.isolation.of_child(dirs, shared_home.as_deref(), &command.program, path, network);
    let groups = env.cgroups.of_start(&group)?;
    let launch = Launch {
        program: &command.program,
        args: &command.args,
        env: variables,
        cwd: &dirs.work,
        limits: &limits_of(&env.config.limits, owner, groups.limits),
        isolation: &isolation,
        cgroup: groups.kill,
        fence: env.fence_page(),
    };
    let child = child::spawn(&env.shim, &launch).inspect_err(|_| {
        // No shim has them, so nobody else would remove them.
        let groups = launch.limits.groups.iter().chain(&launch.cgroup);
        groups.for_each(|group| drop(std::fs::remove_dir(group)));
    })?;
    Ok(child)
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
