//! A child that was started before its session was known, and the way of it to the session.
//!
//! It has directories, isolation and cgroups of its own, and an endpoint at the broker that accepts nothing yet. It has got
//! no handshake: system prompt, schema and MCP servers are bound by the first one.

use std::sync::Arc;

use tokio::time::Duration;

use super::access::{self, Access, Endpoint};
use super::env::Env;
use super::launch::{self, Blueprint, Command, Surroundings};
use super::lifecycle::Plan;
use super::opening::Prepared;
use super::shelf::SpareKind;
use crate::adapter::{self, LaunchMode, LaunchRefusal};
use crate::admission::{ChildPermit, SparePermit, SparePromise};
use crate::child::{Contained, Remains, Secrets, Unfit, WaitingChild};
use crate::error::StartFailure;
use crate::installation::versions::Chosen;
use crate::workspace::user_env::Variables;
use crate::workspace::{Owner, Workspace};

/// See the module. Dropping it kills the child's tree.
#[derive(Debug)]
pub(crate) struct Spare {
    child: WaitingChild,
    command: Command,
    endpoint: Option<Endpoint>,
    chosen: Chosen,
    owner: Option<Owner>,
    permit: SparePermit,
    kind: SpareKind,
}

/// A spare that is the child of a session from now on.
pub(super) struct Claimed {
    pub(super) child: Box<Contained>,
    pub(super) pid: u32,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) chosen: Chosen,
    pub(super) permit: Option<ChildPermit>,
    pub(super) kind: SpareKind,
}

/// What a spare is started in.
#[derive(Debug, Clone)]
pub(crate) struct SpareGround {
    pub(crate) workspace: Workspace,
    pub(crate) conversation: String,
    pub(crate) owner: Option<Owner>,
}

impl Spare {
    /// Starts a child.
    ///
    /// # Errors
    /// [`StartFailure`], and what is left.
    pub(crate) async fn start(
        env: &Arc<Env>,
        ground: SpareGround,
        kind: SpareKind,
        chosen: Chosen,
        permit: SparePermit,
    ) -> Result<Self, (StartFailure, Remains)> {
        let owner = ground.owner;
        let (own, program, wanted) = (env.clone(), chosen.clone(), kind.clone());
        let spawned = tokio::task::spawn_blocking(move || spawn(&own, &ground, &wanted, &program)).await;
        env.publish_limits();
        match spawned {
            Ok(Ok((child, command, endpoint))) => {
                Ok(Self { child: WaitingChild::new(child), command, endpoint, chosen, owner, permit, kind })
            }
            Ok(Err(failure)) => Err((failure, Remains::Nothing)),
            Err(_) => {
                let failure = StartFailure::Handshake("the task that starts the child failed".to_owned());
                Err((failure, Remains::Possible { shim: None }))
            }
        }
    }

    /// Waits until its process runs.
    ///
    /// # Errors
    /// [`StartFailure`].
    pub(crate) async fn started(&mut self, within: Duration) -> Result<(), StartFailure> {
        self.child.started(within).await
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

    /// A session is about to get it.
    pub(crate) fn promised(&mut self, promise: SparePromise) {
        self.permit.promised(promise);
    }

    /// The program that it was started from.
    pub(crate) fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// Kills the child. What is left of it, and what it has said.
    pub(crate) async fn end(self, env: &Env) -> (Remains, String) {
        let secrets = Secrets::of(env.config.cli.env.iter(), &serde_json::Map::new(), &[]);
        let secrets = match self.endpoint.as_ref().and_then(Endpoint::token) {
            Some(token) => secrets.and(token),
            None => secrets,
        };
        let (stderr, remains) = self.child.end(env.config.session.stderr_tail, secrets).await;
        if adapter::launch_refusal(None, &stderr) == Some(LaunchRefusal::NoMirror) {
            env.installed.mirrors_not(&self.chosen);
        }
        (remains, stderr)
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
        let Self { child, command, chosen, owner, permit, kind, .. } = self;
        let pid = child.pid();
        match (child.into_child(), pid) {
            (Ok(child), Some(pid)) => {
                let permit = permit.give(plan.entry.key.user());
                Ok(Claimed { child, pid, endpoint, chosen, permit, kind })
            }
            (Ok(child), None) => {
                let child = WaitingChild::new(child);
                Err(Box::new(Self { child, command, endpoint, chosen, owner, permit, kind }))
            }
            (Err(child), _) => {
                Err(Box::new(Self { child: *child, command, endpoint, chosen, owner, permit, kind }))
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
