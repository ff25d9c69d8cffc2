//! The HTTP service over one [`Pilotlight`]: a public listener for turns, an admin listener for the operator.
//!
//! Both listeners are bound before anything starts. One accept loop per listener spawns a task per connection; a request
//! becomes one call of the public handle, and the turn's lines are forwarded as they arrive. All tasks run under one
//! tracker, so that a shutdown waits for them.
//!
//! `net` accepts connections and reads bodies, `auth` decides who may call, `audit` records who used what, `api` routes, `turns` runs turns in one of
//! the `dialect`s, `conversations` matches histories, `responses` stores them for the Responses API, `exporter` renders metrics, `reload` takes over a changed configuration, `webhooks` reports events to the operator's
//! endpoints, `page` is the live page.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
#[cfg(feature = "cluster")]
use crate::config::ConfigError;
use crate::error::StartError;
use crate::model::ids::UserId;
use crate::system::Pilotlight;

mod api;
mod app;
pub mod attach;
mod audit;
mod auth;
#[cfg(feature = "cluster")]
mod cluster;
mod conversations;
mod dialect;
mod exporter;
mod files;
mod history;
mod net;
mod page;
mod percent;
mod reload;
mod responses;
mod serve_error;
mod turns;
pub mod webhooks;

pub use crate::support::open_files::raise as raise_open_files;
use api::{events, ready, router};
use app::App;
use attach::{Attaching, Socket};
use audit::Audit;
use auth::{Admits, AuthPolicy, Keyring, identity};
pub use auth::{exposure, keys};
#[cfg(feature = "cluster")]
use cluster::{ClusterSide, Peers};
use exporter::Exporter;
use net::capacity;
use net::connection::{Acceptor, Closing, ConnectionHandler, CurrentRouter, HeadLimits};
use reload::Reloading;
pub use serve_error::ServeError;
use turns::asynchronous::AsyncTurns;
use turns::idempotency::Idempotency;
use turns::replay::Replays;
use webhooks::Webhooks;

/// Maximum connections of the admin listener: a scraper, a prober and a few people.
const ADMIN_CONNECTIONS: usize = 64;
/// Maximum time to flush connections after all turns have ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for answers of other nodes to the requests that came last: each may fetch a user and start a child there.
#[cfg(feature = "cluster")]
const LAST_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A running service. Dropping stops it at once; [`Server::shutdown`] stops it in order.
pub struct Server {
    app: Arc<App>,
    http: SocketAddr,
    admin: SocketAddr,
    tasks: TaskTracker,
    closing: Closing,
    keys: Option<Arc<Keyring>>,
    webhooks: Webhooks,
    reloading: Reloading,
    /// Cancels the remaining tasks on drop.
    _end: DropGuard,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("http", &self.http).field("admin", &self.admin).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds both listeners, starts the core and serves.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        config.validate()?;
        let is_open = config.auth.keys_file.is_some() || config.auth.allow_unauthenticated;
        for (key, address) in [("http.listen", config.http.listen), ("admin.listen", config.admin.listen)] {
            if !is_open && !is_local(address) {
                return Err(ServeError::NotLoopback { key, address });
            }
        }
        #[cfg(feature = "cluster")]
        let peers = match config.cluster.listen.filter(|_| config.cluster.is_on()) {
            Some(address) => Some((listen("cluster.listen", address).await?, peers(&config).await?)),
            None => None,
        };
        let public = listen("http.listen", config.http.listen).await?;
        let operator = listen("admin.listen", config.admin.listen).await?;
        let keys = opened_keys(&config).await?;
        let (pilot, exporter) = exporter::start(config).await?;
        // Only the started core has proven what keeps users apart.
        let separated =
            exposure::is_separated(pilot.config(), pilot.separates_users(), pilot.restricts_network());
        let keys = match keyring(pilot.config(), keys, separated) {
            Ok(keys) => keys,
            Err(error) => {
                pilot.shutdown(Duration::ZERO).await;
                return Err(error);
            }
        };
        let webhooks = match Webhooks::start(pilot.config(), exporter.metrics.clone()).await {
            Ok(webhooks) => webhooks,
            Err(error) => {
                pilot.shutdown(Duration::ZERO).await;
                return Err(error);
            }
        };
        let audit = match audit(pilot.config(), &exporter).await {
            Ok(audit) => audit,
            Err(error) => {
                pilot.shutdown(Duration::ZERO).await;
                return Err(error);
            }
        };
        let (http, admin) = (public.1, operator.1);

        let tasks = TaskTracker::new();
        tasks.spawn(warn_of_writable_cli(pilot.config()));
        let now = CancellationToken::new();
        let closing = Closing { gracefully: now.child_token(), now: now.clone() };
        let limits = pilot.config().http.clone();
        let most = most_connections(pilot.config());
        let replays = Replays::new(
            limits.replay_bytes,
            limits.heartbeat,
            tasks.clone(),
            closing.clone(),
            webhooks.clone(),
        );
        let event_streams = events::EventStreams::new(limits.heartbeat, closing.gracefully.clone());
        let idempotency = Idempotency::new(tasks.clone(), closing.clone());
        let async_turns = AsyncTurns::new(limits.heartbeat, webhooks.clone(), closing.clone());
        tasks.spawn(closing.clone().or(async_turns.clone().sweep()));
        #[cfg(feature = "cluster")]
        let cluster = pilot
            .cluster()
            .cloned()
            .zip(peers.as_ref())
            .map(|(cluster, (_, peers))| ClusterSide::new(cluster, peers.clone()));
        let app = App::new(pilot, exporter.clone(), replays, async_turns, idempotency, event_streams, audit);
        #[cfg(feature = "cluster")]
        let app = app.in_cluster(cluster);
        let app = Arc::new(app);
        let overloaded = router::overloaded(exporter.metrics.clone());
        let handler = |router: &CurrentRouter| ConnectionHandler {
            router: router.clone(),
            overloaded: overloaded.clone(),
            header_timeout: limits.header_timeout,
            head: HeadLimits::OF_CLIENT,
            write_timeout: limits.write_timeout,
            closing: closing.clone(),
            #[cfg(feature = "cluster")]
            tls: None,
        };
        let accept = |listener, handler, most| {
            tasks.spawn(Acceptor { listener, handler, most, tasks: tasks.clone() }.run());
        };
        let default_user = limits.default_user.as_ref().and_then(|user| UserId::new(user).ok());
        let policy = AuthPolicy {
            keys: keys.clone(),
            is_local: is_local(http),
            for_admins: false,
            default_user,
            #[cfg(feature = "cluster")]
            peers: None,
        };
        #[cfg(feature = "cluster")]
        if let Some((listener, peers)) = peers {
            let tls = peers.tls.acceptor();
            let policy = AuthPolicy { keys: None, peers: Some(peers), ..policy.clone() };
            let router = CurrentRouter::new(router::peers(app.clone(), policy));
            let handler = ConnectionHandler { tls, head: HeadLimits::OF_NODE, ..handler(&router) };
            accept(listener.0, handler, most);
            app.put_away_users_who_leave();
        }
        let attaching = Attaching {
            app: app.clone(),
            policy: AuthPolicy { is_local: true, ..policy.clone() },
            closing: closing.clone(),
            tasks: tasks.clone(),
        };
        let public_router = CurrentRouter::new(router::public(app.clone(), policy.clone()));
        accept(public.0, handler(&public_router), most);
        let reloading =
            Reloading { policy, router: public_router, one_at_a_time: tokio::sync::Mutex::default() };
        if let Some(socket) = socket_of(app.pilot.config()) {
            tasks.spawn(closing.clone().or(socket.serve(attaching)));
        }
        let policy = AuthPolicy {
            keys: keys.clone(),
            is_local: is_local(admin),
            for_admins: true,
            default_user: None,
            #[cfg(feature = "cluster")]
            peers: None,
        };
        let router = CurrentRouter::new(router::admin(app.clone(), policy));
        accept(operator.0, handler(&router), ADMIN_CONNECTIONS);
        if let Some(keys) = keys.clone() {
            app.reloads.follow(keys.clone());
            tasks.spawn(closing.clone().or(auth::watch(keys)));
        }
        tasks.spawn(closing.clone().or(webhooks.clone().follow(app.pilot.clone())));
        tasks.spawn(closing.clone().or(exporter::upkeep(exporter)));
        tasks.spawn(closing.clone().or(ready::watch(app.clone())));
        tasks.spawn(closing.clone().or(identity::settle(app.clone())));
        tasks.spawn(closing.clone().or(identity::reclaim(app.clone())));
        tasks.spawn(closing.clone().or(api::sessions::forget_expired(app.clone())));
        tasks.spawn(closing.clone().or(history::keep(app.clone())));
        for _ in 0..conversations::PURGES {
            let app = app.clone();
            tasks.spawn(closing.clone().or(async move { app.conversations.purge(&app.pilot).await }));
        }
        Ok(Self { app, http, admin, tasks, closing, keys, webhooks, reloading, _end: now.drop_guard() })
    }

    /// Address of the public listener.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Address of the admin listener.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The core.
    #[must_use]
    pub fn pilot(&self) -> &Pilotlight {
        &self.app.pilot
    }

    /// Reads the key file again, and opens the audit log again, which another program may have renamed. An invalid key file is
    /// logged and the keys stay in force.
    pub fn reload_files(&self) {
        self.app.audit.reopen();
        if let Some(keys) = &self.keys {
            keys.reload();
        }
    }

    /// Refuses new turns and turns `/readyz` to 503. Running turns continue.
    pub fn drain(&self) {
        self.app.drain();
    }

    /// Gives connections the time to end. Whether all have.
    async fn connections_end(&self) -> bool {
        tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_ok()
    }

    /// As [`Self::connections_end`], as long as something passes to and from other nodes.
    #[cfg(feature = "cluster")]
    async fn passing_ends(&self) -> bool {
        while self.app.passed_on().await {
            if self.connections_end().await {
                return true;
            }
        }
        false
    }

    /// Drains, gives running turns `grace`, stops every child, then closes listeners and connections.
    pub async fn shutdown(self, grace: Duration) {
        #[cfg(feature = "cluster")]
        let until = tokio::time::Instant::now() + grace;
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.pilot().cluster().cloned() {
            // Requests of users who have left go to the other nodes meanwhile.
            self.app.leave();
            let left = cluster.leave(grace).await;
            if left > 0 {
                tracing::warn!(
                    users = left,
                    "users have not left in order: other nodes have them once the lease ends"
                );
            }
        }
        self.drain();
        // Probes, refusals of new turns and ends of running turns are still served meanwhile.
        self.pilot().shutdown(grace).await;
        // All turns have ended: their ends are reported.
        tokio::join!(self.app.async_turns.settle(), self.app.replays.settle());
        self.webhooks.finish().await;
        // Turns of other nodes get the same time as those here, and those that came last a time of their own.
        #[cfg(feature = "cluster")]
        self.app.closes_by(until.max(tokio::time::Instant::now() + grace.min(LAST_ANSWERS_WITHIN)));
        self.closing.gracefully.cancel();
        self.tasks.close();
        let have_ended = self.connections_end().await;
        #[cfg(feature = "cluster")]
        let have_ended = have_ended || self.passing_ends().await;
        self.app.audit.finish().await;
        if !have_ended {
            tracing::warn!(connections = self.tasks.len(), "connections were cut that did not end in time");
        }
        // A disk that does not answer holds up no shutdown.
        tokio::time::timeout(CLOSE_TIMEOUT, self.app.conversations.flush()).await.ok();
    }
}

/// Maximum connections of the public listener: as configured, within the limit on open files.
fn most_connections(config: &Config) -> usize {
    let (wanted, children) = (config.http.max_connections, config.limits.max_children);
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = capacity::connections(files, wanted, children);
    if most < wanted {
        tracing::warn!(
            connections = most,
            open_files = files,
            "the limit on open files (RLIMIT_NOFILE) leaves room for fewer connections than http.max_connections"
        );
    }
    most
}

/// The socket of attached clients. A server without it serves all others.
fn socket_of(config: &Config) -> Option<Socket> {
    if config.attach.connections == 0 {
        return None;
    }
    let path = config.attach_socket();
    let bound = Socket::bind(&path);
    bound.inspect_err(|error| {
        tracing::warn!(%error, path = %path.display(), "no client can attach: the socket (attach.socket) cannot be made");
    }).ok()
}

/// Logs who else can change the CLI. Runs in the background: a slow disk does not delay the start.
fn warn_of_writable_cli(config: &Config) -> impl Future<Output = ()> + Send + use<> {
    let config = config.clone();
    async move {
        let doubts = tokio::task::spawn_blocking(move || crate::system::probe::doubts(&config)).await;
        for doubt in doubts.unwrap_or_default() {
            tracing::warn!(doubt, "other users can change the CLI, and so read every conversation and key");
        }
    }
}

/// What this node trusts others by.
#[cfg(feature = "cluster")]
async fn peers(config: &Config) -> Result<Arc<Peers>, ServeError> {
    let cluster = config.cluster.clone();
    let read = tokio::task::spawn_blocking(move || Peers::open(&cluster)).await;
    let (key, problem) = match read {
        Ok(Ok(peers)) => return Ok(Arc::new(peers)),
        Ok(Err(error)) => (error.key(), error.to_string()),
        Err(error) => ("cluster", error.to_string()),
    };
    Err(ConfigError::Key { key: key.to_owned(), problem }.into())
}

fn is_local(address: SocketAddr) -> bool {
    // Unwraps IPv4-mapped IPv6 addresses.
    address.ip().to_canonical().is_loopback()
}

/// Opens the audit log, if configured.
async fn audit(config: &Config, exporter: &Exporter) -> Result<Audit, ServeError> {
    let (config, metrics) = (config.clone(), exporter.metrics.clone());
    let opened = tokio::task::spawn_blocking(move || Audit::start(&config, metrics)).await;
    let opened = opened.map_err(|error| StartError::Supervisor {
        message: "opening the audit log failed".to_owned(),
        source: Some(error.into()),
    })?;
    Ok(opened?)
}

/// Loads the keys, if configured.
async fn opened_keys(config: &Config) -> Result<Option<Keyring>, ServeError> {
    let Some(file) = config.auth.keys_file.clone() else { return Ok(None) };
    let opened = tokio::task::spawn_blocking(move || Keyring::open(&file)).await;
    let opened = opened.map_err(|error| StartError::Supervisor {
        message: "reading the keys failed".to_owned(),
        source: Some(error.into()),
    })??;
    Ok(Some(opened))
}

/// The keys, if they may be in force together.
fn keyring(
    config: &Config,
    opened: Option<Keyring>,
    separated: bool,
) -> Result<Option<Arc<Keyring>>, ServeError> {
    let entries = opened.as_ref().map(Keyring::entries);
    let roles = entries.as_ref().map(|entries| entries.iter().map(|entry| entry.role()));
    exposure::check_roles(config, roles, separated)?;
    let admits = if exposure::is_accepted(config, separated) { Admits::Anyone } else { Admits::OneUser };
    Ok(opened.map(|keys| Arc::new(keys.admitting(admits))))
}

/// Binds a listener and returns its address, which resolves port 0.
async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let opened = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    opened.await.map_err(|source| ServeError::Bind { key, address, source })
}
