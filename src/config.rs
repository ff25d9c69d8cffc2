//! Configuration: one tree with a default for every key, read from TOML and the environment.
//!
//! Unknown keys and invalid values are errors that name the key and the allowed values. Each section has a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Defines a section with the default of each key beside it.
macro_rules! section {
    ($(#[$of_struct:meta])* pub struct $name:ident {
        $($(#[$of_key:meta])* pub $key:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$of_struct])*
        #[derive(Clone, PartialEq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$of_key])* pub $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

#[cfg(feature = "server")]
mod attach;
#[cfg(feature = "server")]
mod audit;
mod broker;
mod cli;
#[cfg(feature = "cluster")]
mod cluster;
mod egress;
mod isolation;
mod limits;
mod load;
mod mcp;
mod metrics;
mod permissions;
mod reload;
mod restart;
mod retention;
#[cfg(feature = "server")]
mod server;
mod session;
mod spares;
mod validate;
mod value;
#[cfg(feature = "server")]
mod webhooks;
mod workspace;

#[cfg(feature = "server")]
pub use attach::Attach;
#[cfg(feature = "server")]
pub use audit::Audit;
pub use broker::{Broker, Credentials};
pub use cli::{CliConfig, SlashCommands, UnknownVersion};
#[cfg(feature = "cluster")]
pub(crate) use cluster::MAX_SESSIONS;
#[cfg(feature = "cluster")]
pub use cluster::{Cluster, Replication};
pub use egress::{Egress, EgressHost};
pub use isolation::{Isolation, IsolationMount, Rung, UidRange};
pub use limits::Limits;
pub use load::ConfigError;
#[cfg(feature = "server")]
pub(crate) use mcp::is_server_name;
pub(crate) use mcp::{EXPANSION, has_expansion};
pub use mcp::{Mcp, McpCallers, McpHost, McpServerConfig, McpTransport};
pub use metrics::MetricsConfig;
pub use permissions::{PermissionPolicy, Permissions};
pub(crate) use reload::merged;
pub use reload::{Reloaded, reloadable};
pub use restart::RestartConfig;
pub use retention::Retention;
#[cfg(feature = "server")]
pub use server::{Admin, Auth, Http, OnDisconnect, listen_address};
pub use session::{JournalMode, SessionConfig};
pub use spares::Spares;
pub(crate) use validate::OWN_VARIABLES;
pub use value::MemoryBudget;
#[cfg(feature = "server")]
pub use webhooks::{WebhookEndpoint, WebhookEvent, Webhooks};
pub use workspace::WorkspaceConfig;

/// Configuration of a system. Durations are written as seconds or as text (`"5m"`, `"300s"`, `"250ms"`).
///
/// The sections `http`, `auth`, `admin`, `attach`, `audit` and `webhooks` belong to the server. Without the feature `server` they are accepted in a
/// file and ignored, so that a service and an embedding program can share it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Directory of sessions and workspaces. One running instance per directory.
    pub data_dir: PathBuf,
    /// Maximum time running turns may continue after a stop is requested. Default 8 s, within the 10 s that most
    /// platforms grant.
    #[serde(with = "value::duration")]
    pub drain_timeout: Duration,
    /// Public listener.
    #[cfg(feature = "server")]
    pub http: Http,
    /// Authentication of callers.
    #[cfg(feature = "server")]
    pub auth: Auth,
    /// Listener of the operator.
    #[cfg(feature = "server")]
    pub admin: Admin,
    /// Clients of `pilotlight attach`.
    #[cfg(feature = "server")]
    pub attach: Attach,
    /// Log of who used which verb.
    #[cfg(feature = "server")]
    pub audit: Audit,
    /// Endpoints that are sent events.
    #[cfg(feature = "server")]
    pub webhooks: Webhooks,
    /// Several nodes that share users.
    #[cfg(feature = "cluster")]
    pub cluster: Cluster,
    /// The CLI to run.
    pub cli: CliConfig,
    /// Limits of one session.
    pub session: SessionConfig,
    /// Behaviour after a failure of a child.
    pub restart: RestartConfig,
    /// Permission of tools.
    pub permissions: Permissions,
    /// Isolation between the children of different users.
    pub isolation: Isolation,
    /// The way of children to the model's API.
    pub broker: Broker,
    /// MCP servers of sessions.
    pub mcp: Mcp,
    /// Working directories of sessions.
    pub workspace: WorkspaceConfig,
    /// Limits of the whole instance.
    pub limits: Limits,
    /// Children started ahead for new users.
    pub spares: Spares,
    /// When sessions are deleted.
    pub retention: Retention,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// The file that was read.
    #[serde(skip)]
    pub(crate) source: SourceFile,
}

/// File of a configuration, which children must not read: it may hold secrets. Two configurations are the same wherever
/// they come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceFile(pub(crate) Option<PathBuf>);

impl PartialEq for SourceFile {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Config {
    /// Returns the defaults, with `data_dir` as the directory of sessions.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// Reads a TOML file. The environment is ignored.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is unreadable, has unknown keys or invalid values.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        load::load(Some(path.as_ref()), std::iter::empty())
    }

    /// Reads a TOML file, if given, and overrides it with `PILOTLIGHT_…` variables: `PILOTLIGHT_DATA_DIR`,
    /// `PILOTLIGHT_SESSION__IDLE_TIMEOUT=1s`, `PILOTLIGHT_CLI__ENV__NAME=value`.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        load::load(path, environment)
    }

    /// What is valid and yet without effect, in a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        validate::warnings(self)
    }

    /// Validates all values. [`crate::Pilotlight::start`] calls this first.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first invalid key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        validate::validate(self)
    }

    /// Conversations without a name that do not count for `limits.sessions_per_user`.
    pub(crate) fn unnamed_room(&self) -> usize {
        #[cfg(feature = "server")]
        let limit = self.http.conversations_per_user;
        // The data directory may come from a server with the default.
        #[cfg(not(feature = "server"))]
        let limit = 16;
        limit * UNNAMED_ROOM
    }
}

/// Unnamed conversations have a limit of their own (`http.conversations_per_user`): as many are free, and again as many
/// while old ones are deleted. A caller that chooses such names gets no more by it.
const UNNAMED_ROOM: usize = 2;

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: value::default_data_dir(),
            drain_timeout: Duration::from_secs(8),
            #[cfg(feature = "server")]
            http: Http::default(),
            #[cfg(feature = "server")]
            auth: Auth::default(),
            #[cfg(feature = "server")]
            admin: Admin::default(),
            #[cfg(feature = "server")]
            attach: Attach::default(),
            #[cfg(feature = "server")]
            audit: Audit::default(),
            #[cfg(feature = "server")]
            webhooks: Webhooks::default(),
            #[cfg(feature = "cluster")]
            cluster: Cluster::default(),
            cli: CliConfig::default(),
            session: SessionConfig::default(),
            restart: RestartConfig::default(),
            permissions: Permissions::default(),
            isolation: Isolation::default(),
            broker: Broker::default(),
            mcp: Mcp::default(),
            workspace: WorkspaceConfig::default(),
            limits: Limits::default(),
            spares: Spares::default(),
            retention: Retention::default(),
            metrics: MetricsConfig::default(),
            source: SourceFile::default(),
        }
    }
}
