//! The HTTP endpoints other than turns: routes, sessions, permissions, workspaces, models, health, events, OpenAPI.

mod activity;
mod body;
#[cfg(feature = "cluster")]
mod cluster;
mod conversation;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod health;
mod live;
mod mcp;
pub(crate) mod models;
mod openapi;
mod overview;
mod permissions;
pub(crate) mod query;
pub(crate) mod ready;
pub(crate) mod responses;
pub(crate) mod router;
pub(crate) mod sessions;
mod stats;
mod steer;
mod trace;
pub(crate) mod turns;
mod usage;
pub(crate) mod users;
mod workspace;
mod workspace_file;
