//! The embedded system on the simulated CLI, from outside: real processes, real kills, the public API. What the CLI's
//! protocol does to a supervisor is in `crate::traps`, what is done to both of them in `crate::faults`.

use std::time::{Duration, Instant, SystemTime};

use pilotlight::config::{JournalMode, McpServerConfig, PermissionPolicy};
use pilotlight::model::ids::{SessionKey, UserId};
use pilotlight::model::{Decision, OauthCredentials, SessionState};
use pilotlight::turn::{McpServers, Status};
use pilotlight::{Config, Pilotlight, Session, TurnError, TurnOptions};

mod crashes;
mod damaged;
mod deletions;
mod edges;
mod evictions;
mod formats;
mod hibernation;
mod limits;
mod permissions;
mod readers;
mod records;
mod spare_faults;
mod spares;
mod stops;
mod tools;
mod turns;
mod versions;

use crate::common::bench::{
    Bench, ask, eventually, is_alive, pid, processes_in, say, start, state, written_down,
};
