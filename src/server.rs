//! The HTTP service over one [`Pilotlight`]: a public listener for turns, an admin listener for the operator.
//!
//! Theory of operation: both listeners are bound before anything is started; one accept loop per listener hands each
//! connection to a task of its own; a request becomes one call on the public handle, and the turn's lines go out as
//! they came. Every task runs under one tracker, so that a stop can wait for all of them. Owned by the program's
//! `serve` and `demo`, or by an embedding program that wants the service and not only the sessions. It must not know
//! how sessions work inside, nor anything of one CLI's protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::{Config, ConfigError, PermissionPolicy};
use crate::error::StartError;
use crate::model::ids::UserId;
use crate::system::Pilotlight;

mod api;
mod app;
mod auth;
mod conversations;
mod dialect;
mod exporter;
mod files;
mod net;
mod page;
mod turns;

pub use crate::support::open_files::raise as raise_open_files;
use api::{events, ready, router};
use app::App;
use auth::{Admits, Gate, Keyring};
pub use auth::{exposure, keys};
use net::capacity;
use net::connection::{Acceptor, Closing, Entrance};
use turns::idempotency::Idempotency;
use turns::replay::Replays;

/// Connections that the operator may hold at once: a scraper, a prober and a few people.
const ADMIN_CONNECTIONS: usize = 64;
/// How long connections may take to send what is left once every turn has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The service could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener would be reachable from elsewhere, by anybody.
    #[error(
        "configuration key `{key}`: {address} is not a loopback address, and without keys whoever reaches it may do \
         everything; set auth.keys_file (`pilotlight keys new` makes keys), or say --allow-unauthenticated \
         (auth.allow_unauthenticated) if something in front of it decides who may call"
    )]
    NotLoopback {
        /// The key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// Several users' tools would run with nothing between them.
    #[error(
        "configuration key `permissions.policy`: with {policy:?} tools run, there is more than one user ({exposure}), \
         and nothing keeps the tools of one user from the data of another; set permissions.policy = \"deny\", give \
         keys to one user only (`pilotlight keys`), or accept it with isolation.accept_none = true"
    )]
    Exposed {
        /// The policy.
        policy: PermissionPolicy,
        /// Why there is more than one user.
        exposure: exposure::Exposure,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address} (`{key}`): {source}")]
    Bind {
        /// The key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The keys cannot be used.
    #[error("configuration key `auth.keys_file`: {0}")]
    Keys(#[from] keys::KeyFileError),
    /// The metrics could not be set up.
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    /// The core did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ServeError {
    /// Whether the operator asked for something that cannot be (as against something that failed).
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NotLoopback { .. }
                | Self::Exposed { .. }
                | Self::Keys(_)
                | Self::Start(StartError::Config(_))
        )
    }
}

impl From<ConfigError> for ServeError {
    fn from(error: ConfigError) -> Self {
        Self::Start(error.into())
    }
}

/// A running service. Dropped, it stops serving at once; [`Server::shutdown`] is the orderly way.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    http: SocketAddr,
    admin: SocketAddr,
    tasks: TaskTracker,
    closing: Closing,
    keys: Option<Arc<Keyring>>,
    /// Ends every task that is left when the server is dropped.
    _end: DropGuard,
}

impl Server {
    /// Binds both listeners, starts the core, serves.
    ///
    /// # Errors
    /// [`ServeError`]; nothing is left running then.
    pub async fn start(config: Config) -> Result<Self, ServeError> {
        config.validate()?;
        let is_open = config.auth.keys_file.is_some() || config.auth.allow_unauthenticated;
        for (key, address) in [("http.listen", config.http.listen), ("admin.listen", config.admin.listen)] {
            if !is_open && !is_local(address) {
                return Err(ServeError::NotLoopback { key, address });
            }
        }
        let keys = keyring(&config).await?;
        let public = listen("http.listen", config.http.listen).await?;
        let operator = listen("admin.listen", config.admin.listen).await?;
        let (pilot, exporter) = exporter::start(config).await?;
        let (http, admin) = (public.1, operator.1);

        let tasks = TaskTracker::new();
        tasks.spawn(warn_of_doubts(pilot.config()));
        let now = CancellationToken::new();
        let closing = Closing { gracefully: now.child_token(), now: now.clone() };
        let limits = pilot.config().http.clone();
        let most = most_connections(pilot.config());
        let replays = Replays::new(limits.replay_bytes, limits.heartbeat, tasks.clone(), closing.clone());
        let feed = events::Feed::new(limits.heartbeat, closing.gracefully.clone());
        let idempotency = Idempotency::new(tasks.clone(), closing.clone());
        let app = Arc::new(App::new(pilot, exporter.clone(), replays, idempotency, feed).await);
        let crowded = router::crowded(exporter.metrics().clone());
        let accept = |listener, router, most| {
            let entrance = Entrance {
                router,
                crowded: crowded.clone(),
                header_timeout: limits.header_timeout,
                write_timeout: limits.write_timeout,
                closing: closing.clone(),
            };
            tasks.spawn(Acceptor { listener, entrance, most, tasks: tasks.clone() }.run());
        };
        let default_user = limits.default_user.as_ref().and_then(|user| UserId::new(user).ok());
        let gate = Gate { keys: keys.clone(), is_local: is_local(http), for_admins: false, default_user };
        accept(public.0, router::public(app.clone(), gate), most);
        // Whoever is on this machine may read the figures, as a scraper does.
        let asked = keys.clone().filter(|_| !is_local(admin));
        let gate = Gate { keys: asked, is_local: is_local(admin), for_admins: true, default_user: None };
        accept(operator.0, router::admin(app.clone(), gate), ADMIN_CONNECTIONS);
        if let Some(keys) = keys.clone() {
            tasks.spawn(closing.clone().or(auth::watch(keys)));
        }
        tasks.spawn(closing.clone().or(exporter::upkeep(exporter)));
        tasks.spawn(closing.clone().or(ready::watch(app.clone())));
        for _ in 0..conversations::PURGES {
            let app = app.clone();
            tasks.spawn(closing.clone().or(async move { app.conversations().purge(app.pilot()).await }));
        }
        Ok(Self { app, http, admin, tasks, closing, keys, _end: now.drop_guard() })
    }

    /// Where callers are served.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where the operator is served.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The core beneath.
    #[must_use]
    pub fn pilot(&self) -> &Pilotlight {
        self.app.pilot()
    }

    /// Reads the key file again, as when it has changed. If it cannot be used, the keys stay as they were and the log
    /// says so.
    pub fn reload(&self) {
        if let Some(keys) = &self.keys {
            keys.reload();
        }
    }

    /// From now on `/readyz` says 503 and new turns are refused; running ones go on.
    pub fn drain(&self) {
        self.app.drain();
    }

    /// Drains, gives running turns `grace`, stops every child, then closes the listeners and the connections.
    pub async fn shutdown(self, grace: Duration) {
        self.drain();
        // Served meanwhile: the operator's probes, the refusals of new turns, the ends of running ones.
        self.pilot().shutdown(grace).await;
        self.closing.gracefully.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(connections = self.tasks.len(), "connections were cut that did not end in time");
        }
    }
}

/// How many callers' connections there may be: as configured, as far as the limit on open files goes.
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

/// Says who else could change the CLI. Not waited for: a slow disk is no reason to start later.
fn warn_of_doubts(config: &Config) -> impl Future<Output = ()> + Send + use<> {
    let config = config.clone();
    async move {
        let doubts = tokio::task::spawn_blocking(move || crate::system::probe::doubts(&config)).await;
        for doubt in doubts.unwrap_or_default() {
            tracing::warn!(doubt, "others can change the CLI, and so read every conversation and key");
        }
    }
}

fn is_local(address: SocketAddr) -> bool {
    // An IPv4 address in IPv6 clothes is what it is inside.
    address.ip().to_canonical().is_loopback()
}

/// The keys, if there are to be any.
async fn keyring(config: &Config) -> Result<Option<Arc<Keyring>>, ServeError> {
    let Some(file) = config.auth.keys_file.clone() else {
        exposure::check(config, None)?;
        return Ok(None);
    };
    let admits = if exposure::is_accepted(config) { Admits::Anyone } else { Admits::OneUser };
    let opened = tokio::task::spawn_blocking(move || Keyring::open(&file, admits)).await;
    let opened = opened.map_err(|_| StartError::Supervisor("reading the keys failed".to_owned()))??;
    let entries = opened.entries();
    exposure::check_roles(config, Some(entries.iter().map(|entry| entry.role())))?;
    Ok(Some(Arc::new(opened)))
}

/// Opens a listener; a port 0 is known afterwards.
async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let opened = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    opened.await.map_err(|source| ServeError::Bind { key, address, source })
}
