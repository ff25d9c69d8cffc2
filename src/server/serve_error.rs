//! Failures to start the service.

use std::net::SocketAddr;

use super::auth::{exposure, keys};
use crate::config::{ConfigError, PermissionPolicy};
use crate::error::StartError;

/// Failure to start the service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener without keys would be reachable from other machines.
    #[error(
        "configuration key `{key}`: {address} is not a loopback address, and without keys every caller may do \
         everything; set auth.keys_file (`pilotlight keys new` creates keys), or --allow-unauthenticated \
         (auth.allow_unauthenticated) if a proxy in front decides who may call"
    )]
    NotLoopback {
        /// The key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
    },
    /// Tools of several users would run without isolation.
    #[error(
        "configuration key `permissions.policy`: with {policy:?} tools run, there is more than one user ({exposure}), \
         and nothing keeps the tools of one user from the data of another; `pilotlight check` names the missing rungs of \
         isolation and how to get them; else set permissions.policy = \"deny\", give keys to one user only (`pilotlight \
         keys`), or accept it with isolation.accept_none = true"
    )]
    Exposed {
        /// The policy.
        policy: PermissionPolicy,
        /// Why there can be more than one user.
        exposure: exposure::Exposure,
    },
    /// MCP servers of every caller would run without isolation.
    #[error(
        "configuration key `mcp.callers`: \"all\" lets every caller start programs with the rights of this server; it \
         needs rungs of isolation that keep users apart (`pilotlight check` names them), or isolation.accept_none = true"
    )]
    McpExposed,
    /// Failure to bind a listener.
    #[error("cannot listen on {address} (`{key}`): {source}")]
    Bind {
        /// The key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// Invalid keys.
    #[error("configuration key `auth.keys_file`: {0}")]
    Keys(#[from] keys::KeyFileError),
    /// Failure to set up the metrics.
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
    /// Failure to start the core.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl ServeError {
    /// Whether the configuration is invalid, as opposed to a failure at run time.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NotLoopback { .. }
                | Self::Exposed { .. }
                | Self::McpExposed
                | Self::Keys(_)
                | Self::Start(StartError::Config(_) | StartError::Isolation { .. })
        )
    }
}

impl From<ConfigError> for ServeError {
    fn from(error: ConfigError) -> Self {
        Self::Start(error.into())
    }
}
