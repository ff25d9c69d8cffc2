//! One warm CLI process per user.

mod child;
pub mod cli;
pub mod config;
pub mod error;
#[cfg(feature = "server")]
pub mod http;
pub mod ids;
mod instance;
pub mod metrics;
mod pilotlight;
pub mod probe;
mod program;
mod registry;
mod restart;
mod session;
pub mod shim;
pub mod sim;
mod supervisor;
pub mod turn;
mod workspace;

pub use config::Config;
pub use error::{StartError, TurnError};
pub use pilotlight::{Pilotlight, Readiness};
pub use session::{
    OauthCredentials, PendingPermission, PermissionError, Session, SessionState, SessionStatus,
};
pub use turn::{Event, Outcome, Prompt, Turn, TurnOptions};
