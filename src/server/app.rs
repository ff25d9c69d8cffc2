//! Application state shared by all handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::api::error::ApiError;
use super::api::events::EventStreams;
use super::api::ready::StartedOnce;
use super::audit::Audit;
use super::auth::caller::Caller;
use super::auth::identity::{Identities, Owner, Renewed};
use super::auth::limits::{RateLimits, TurnPermit, Turns};
#[cfg(feature = "cluster")]
use super::cluster::ClusterSide;
use super::conversations::Conversations;
use super::exporter::Exporter;
use super::history::History;
use super::net::body::BodyBudget;
use super::reload::LastReload;
use super::responses::Responses;
use super::turns::asynchronous::AsyncTurns;
use super::turns::idempotency::Idempotency;
use super::turns::replay::Replays;
use crate::error::TurnError;
use crate::model::OauthCredentials;
use crate::model::ids::UserId;
use crate::support::blocking::blocking;
use crate::support::keyed_gates::Inside;
use crate::system::Pilotlight;
use crate::workspace::{conversations_dir, user_dir};

/// Maximum concurrent collections of workspace files: each may hold some 50 MB.
const GATHERING: usize = 4;

pub(super) struct App {
    pub(super) pilot: Pilotlight,
    /// `None` where this node is alone.
    #[cfg(feature = "cluster")]
    pub(super) cluster: Option<ClusterSide>,
    pub(super) exporter: Exporter,
    pub(super) identities: Identities,
    pub(super) conversations: Conversations,
    pub(super) responses: Responses,
    renewed: Renewed,
    pub(super) bodies: BodyBudget,
    pub(super) rate_limits: RateLimits,
    turns: Arc<Turns>,
    pub(super) gathering: Semaphore,
    pub(super) started_once: Arc<StartedOnce>,
    pub(super) replays: Replays,
    pub(super) async_turns: AsyncTurns,
    pub(super) idempotency: Idempotency,
    pub(super) event_streams: EventStreams,
    pub(super) audit: Audit,
    pub(super) history: History,
    /// Set once the accounts of today are in memory.
    pub(super) spend_read: OnceCell<()>,
    draining: AtomicBool,
    #[cfg(feature = "cluster")]
    leaving: AtomicBool,
    pub(super) reloads: LastReload,
    pub(super) since: Instant,
}

impl App {
    pub(super) fn new(
        pilot: Pilotlight,
        exporter: Exporter,
        replays: Replays,
        async_turns: AsyncTurns,
        idempotency: Idempotency,
        event_streams: EventStreams,
        audit: Audit,
    ) -> Self {
        let data_dir = &pilot.config().data_dir;
        let identities = Identities::new(data_dir);
        let http = &pilot.config().http;
        let conversations = Conversations::new(conversations_dir(data_dir), http.conversations_per_user);
        let responses = Responses::new(data_dir, pilot.config().retention.idle());
        let bodies = BodyBudget::new(http.body_limit, http.body_timeout);
        let rate_limits = RateLimits::new(http.requests_per_minute, http.new_users_per_minute);
        Self {
            pilot,
            #[cfg(feature = "cluster")]
            cluster: None,
            exporter,
            identities,
            conversations,
            responses,
            renewed: Renewed::default(),
            bodies,
            rate_limits,
            turns: Arc::default(),
            gathering: Semaphore::new(GATHERING),
            started_once: Arc::default(),
            replays,
            async_turns,
            idempotency,
            event_streams,
            audit,
            history: History::default(),
            spend_read: OnceCell::new(),
            draining: AtomicBool::new(false),
            #[cfg(feature = "cluster")]
            leaving: AtomicBool::new(false),
            reloads: LastReload::default(),
            since: Instant::now(),
        }
    }

    /// As one node of a cluster.
    #[cfg(feature = "cluster")]
    pub(super) fn in_cluster(self, cluster: Option<ClusterSide>) -> Self {
        Self { cluster, ..self }
    }

    /// A permit for one more turn of `user`, held while it runs or waits.
    pub(super) fn turn_permit(&self, user: &UserId, caller: &Caller) -> Result<TurnPermit, ApiError> {
        let own = caller.limits().concurrent_turns.map(std::num::NonZeroU32::get);
        self.turns.permit(user, own.unwrap_or(self.pilot.current().http.turns_per_user))
    }

    /// Counts a user who has no session, if the caller's key has a limit of them. Other keys pay nothing for it.
    pub(super) async fn count_new_user(&self, caller: &Caller, user: &UserId) -> Result<(), ApiError> {
        let Some(limit) = caller.limits().new_users_per_minute else { return Ok(()) };
        let sessions = user_dir(&self.pilot.config().data_dir, user);
        let is_known = blocking(move || Ok(sessions.symlink_metadata().is_ok())).await;
        if is_known.map_err(|error| TurnError::Storage(error.into()))? {
            return Ok(());
        }
        self.rate_limits.count_new_user(caller, limit)
    }

    /// The user whose session runs a turn, kept from being deleted until the second value is dropped. `named` is the user
    /// in the body. Without a named user and without keys, the credentials identify the user.
    pub(super) async fn owner(
        &self,
        caller: &Caller,
        named: Option<UserId>,
        credentials: Option<&OauthCredentials>,
    ) -> Result<(UserId, Inside<UserId>), ApiError> {
        let Some(credentials) = credentials.filter(|_| caller.key_id().is_none()) else {
            let user = caller.owner(named)?;
            self.route(caller, &user).await?;
            let inside = self.pilot.enter(&user)?;
            return Ok((user, inside));
        };
        if named.is_none() && caller.is_known_by_credentials() {
            let owner = self.identified(caller, credentials).await?;
            let user = owner.user().clone();
            let routed = self.route(caller, &user).await;
            #[cfg(feature = "cluster")]
            if routed.is_err() {
                self.identities.learn_elsewhere(&owner, credentials).await;
            }
            routed?;
            let inside = self.pilot.enter(&user)?;
            match owner {
                Owner::Known(_) => self.identities.learn(&user, credentials).await,
                Owner::New(_) => self.identities.learn_new(&user, credentials).await,
            }
            return Ok((user, inside));
        }
        let user = caller.owner(named)?;
        self.route(caller, &user).await?;
        let inside = self.pilot.enter(&user)?;
        self.identities.learn(&user, credentials).await;
        Ok((user, inside))
    }

    /// Whose credentials they are. Found out and counted once for a request, on the node of a cluster that the caller reached.
    async fn identified(&self, caller: &Caller, credentials: &OauthCredentials) -> Result<Owner, ApiError> {
        #[cfg(feature = "cluster")]
        if let Some(owner) = caller.identified() {
            return Ok(owner.clone());
        }
        let elsewhere = async |presented| {
            let found = self.renewed.owner(&self.pilot, &self.identities, presented).await;
            // Any text is a token. Those of a known user are not charged: strangers would use up what all need.
            if found.is_none() {
                self.rate_limits.count_unknown_tokens()?;
            }
            Ok::<_, ApiError>(found)
        };
        let owner = self.identities.owner(credentials, elsewhere).await?;
        self.rate_limits.count_user(owner.user())?;
        // Another node may answer, which does not write the audit log.
        caller.is_about(owner.user());
        #[cfg(feature = "cluster")]
        caller.identify(&owner);
        Ok(owner)
    }

    /// Without the feature `cluster` each user is here.
    #[cfg(not(feature = "cluster"))]
    #[allow(clippy::unused_async, reason = "as in a cluster")]
    pub(super) async fn route(&self, _caller: &Caller, _user: &UserId) -> Result<(), ApiError> {
        Ok(())
    }

    /// Deletes a user with all data, also that in memory. Returns the number of sessions.
    pub(super) async fn delete_user(self: &Arc<Self>, user: &UserId) -> Result<usize, TurnError> {
        let (app, owner) = (self.clone(), user.clone());
        self.pilot.delete_user_and(user, async move { app.forget(&owner).await }).await
    }

    /// Deletes a user who is new and rests, unless a turn was answered; then the user is no longer new. Returns whether the
    /// user is gone.
    pub(super) async fn delete_unanswered(self: &Arc<Self>, user: &UserId) -> Result<bool, TurnError> {
        let (app, owner) = (self.clone(), user.clone());
        self.pilot.delete_unanswered(user, async move { app.forget(&owner).await }).await
    }

    /// Forgets what the memory has of a user.
    async fn forget(&self, user: &UserId) {
        self.conversations.forget(user).await;
        self.forget_others(user).await;
    }

    /// As [`App::forget`], for a user who goes to another node of a cluster: what waits to be written is written.
    #[cfg(feature = "cluster")]
    pub(super) async fn put_away(&self, user: &UserId) {
        self.conversations.put_away(user).await;
        // While the files are here that have the tokens.
        self.identities.settle_user(&self.pilot, user).await;
        self.forget_others(user).await;
    }

    async fn forget_others(&self, user: &UserId) {
        self.responses.forget(user).await;
        self.identities.forget(user);
        self.history.forget(user);
        self.idempotency.forget(user);
        self.replays.forget_user(user);
        self.async_turns.forget_user(user);
    }

    /// Turns `/readyz` to 503, while requests are still answered: users leave this node of a cluster.
    #[cfg(feature = "cluster")]
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.pilot.end_idle_clients();
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.pilot.drain();
    }

    /// Refuses before the body is read.
    pub(super) fn refuse_when_draining(&self) -> Result<(), ApiError> {
        // Its users are on other nodes, where the request goes.
        #[cfg(feature = "cluster")]
        if self.leaving.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.draining.load(Ordering::Acquire) { Err(TurnError::Draining.into()) } else { Ok(()) }
    }

    /// Warnings for the operator while turns are accepted.
    pub(super) fn warnings(&self) -> Vec<String> {
        let of_core = self.pilot.cli_warning().into_iter().chain(self.pilot.isolation_warnings());
        of_core.chain(self.reloads.warnings()).collect()
    }

    /// Reasons for not being ready; empty when ready.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.pilot.readiness().reasons;
        reasons.extend(self.started_once.missing());
        #[cfg(feature = "cluster")]
        if self.leaving.load(Ordering::Acquire) {
            reasons.push("leaving the cluster".to_owned());
        }
        #[cfg(feature = "cluster")]
        reasons.extend(self.cluster.iter().filter_map(|side| side.problem()));
        reasons
    }
}
