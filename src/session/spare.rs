//! A child that was started before its session was known, and the way of it to the session.
//!
//! It has directories, isolation and cgroups of its own, and an endpoint at the broker that accepts nothing yet. It has got
//! no handshake: system prompt, schema and MCP servers are bound by the first one.

use std::sync::Arc;

use tokio::time::{Duration, timeout};

use super::access::{self, Access, Endpoint};
use super::env::Env;
use super::launch::{self, Blueprint, Command, Surroundings};
use super::lifecycle::Plan;
use super::opening::Prepared;
use super::shelf::SpareKind;
use crate::adapter::{self, LaunchMode, LaunchRefusal};
use crate::admission::{ChildPermit, SparePermit};
use crate::child::{Contained, Secrets, Unfit, WaitingChild};
use crate::error::StartFailure;
use crate::installation::versions::Chosen;
use crate::session::executable;
use crate::workspace::user_env::Variables;
use crate::workspace::{Owner, Workspace};

/// See the module. Dropping it kills the child's tree.
#[derive(Debug)]
pub(crate) struct Spare {
    child: WaitingChild,
    pid: u32,
    command: Command,
    endpoint: Option<Endpoint>,
    chosen: Chosen,
    owner: Option<Owner>,
    permit: SparePermit,
}

/// A spare that is the child of a session from now on.
pub(super) struct Claimed {
    pub(super) child: Box<Contained>,
    pub(super) pid: u32,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) chosen: Chosen,
    pub(super) permit: Option<ChildPermit>,
}

/// What a spare is started in.
#[derive(Debug, Clone)]
pub(crate) struct SpareGround {
    pub(crate) workspace: Workspace,
    pub(crate) conversation: String,
    pub(crate) owner: Option<Owner>,
}

impl Spare {
    /// Starts a child; returns once its process runs.
    ///
    /// # Errors
    /// [`StartFailure`]; nothing is left then.
    pub(crate) async fn start(
        env: &Arc<Env>,
        ground: SpareGround,
        kind: SpareKind,
        permit: SparePermit,
    ) -> Result<Self, StartFailure> {
        let chosen = executable::choose(env).await?;
        let owner = ground.owner;
        let (own, program) = (env.clone(), chosen.clone());
        let spawned = tokio::task::spawn_blocking(move || spawn(&own, &ground, &kind, &program)).await;
        env.publish_limits();
        let failed = |_| StartFailure::Handshake("the task that starts the child failed".to_owned());
        let (mut child, command, endpoint) = spawned.map_err(failed)??;
        let limit = env.config.session.spawn_timeout;
        let started = timeout(limit, child.shim.started()).await;
        let pid = match started {
            Ok(Ok(pid)) => pid,
            failed => {
                WaitingChild::new(child).end(0, Secrets::default()).await;
                let limit = |_| StartFailure::NeverReady { limit };
                return Err(failed.map_or_else(limit, |error| match error {
                    Err(error) => error.into(),
                    Ok(_) => StartFailure::Handshake("it has no process".to_owned()),
                }));
            }
        };
        Ok(Self { child: WaitingChild::new(child), pid, command, endpoint, chosen, owner, permit })
    }

    /// The root of the process tree.
    pub(crate) fn shim(&self) -> Option<u32> {
        self.child.shim()
    }

    /// Asks whether the child answers.
    ///
    /// # Errors
    /// [`Unfit`].
    pub(crate) async fn ping(&mut self, within: Duration) -> Result<(), Unfit> {
        self.child.ping(within).await
    }

    /// Waits until the child is of no more use. Cancel-safe.
    pub(crate) async fn rest(&mut self) -> Unfit {
        self.child.rest().await
    }

    /// The program that it was started from.
    pub(crate) fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Kills the child. Whether nothing is left of it, and what it has said.
    pub(crate) async fn end(self, env: &Env) -> (bool, String) {
        let secrets = Secrets::of(env.config.cli.env.iter(), &serde_json::Map::new(), &[]);
        let secrets = match self.endpoint.as_ref().and_then(Endpoint::token) {
            Some(token) => secrets.and(token),
            None => secrets,
        };
        let (stderr, is_gone) = self.child.end(env.config.session.stderr_tail, secrets).await;
        if adapter::launch_refusal(None, &stderr) == Some(LaunchRefusal::NoMirror) {
            env.installed.mirrors_not(&self.chosen);
        }
        (is_gone, stderr)
    }

    /// Makes the child that of a session, if it was started with exactly what the session's child would be.
    ///
    /// # Errors
    /// The spare, which is of no use to the session.
    pub(super) fn claim(
        mut self,
        plan: &Plan,
        prepared: &Prepared,
        now: &Chosen,
    ) -> Result<Claimed, Box<Self>> {
        let command = Blueprint::of(plan, prepared).command(now);
        let access = access::of_claim(plan, prepared, command.variables, self.endpoint.take());
        let Ok(Access { variables, endpoint, .. }) = access else { return Err(Box::new(self)) };
        let is_same = *now == self.chosen
            && prepared.owner == self.owner
            && Command { variables, ..command } == self.command;
        if !is_same {
            return Err(Box::new(self));
        }
        let Self { child, pid, command, chosen, owner, permit, .. } = self;
        match child.into_child() {
            Ok(child) => {
                let permit = permit.give(plan.entry.key.user());
                Ok(Claimed { child, pid, endpoint, chosen, permit })
            }
            Err(child) => {
                Err(Box::new(Self { child: *child, pid, command, endpoint, chosen, owner, permit }))
            }
        }
    }
}

fn spawn(
    env: &Env,
    ground: &SpareGround,
    kind: &SpareKind,
    chosen: &Chosen,
) -> Result<(Box<Contained>, Command, Option<Endpoint>), StartFailure> {
    let variables = Variables::default();
    let blueprint = Blueprint {
        env,
        workspace: &ground.workspace,
        conversation: &ground.conversation,
        mode: LaunchMode::New,
        model: kind.model.as_deref(),
        settings: &kind.settings,
        variables: &variables,
        own_credentials: false,
    };
    let command = blueprint.command(chosen);
    let Access { variables, network, endpoint } = access::of_spare(env, command.variables)?;
    let command = Command { variables, ..command };
    let group = format!("spare-{}", ground.workspace.name().as_str());
    let surroundings = Surroundings { network, owner: ground.owner, group };
    let child = launch::spawn(env, &ground.workspace, &command, surroundings)?;
    Ok((child, command, endpoint))
}
