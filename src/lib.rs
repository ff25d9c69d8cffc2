//! One warm CLI process per user.

pub mod cli;
pub mod config;
pub mod error;
#[cfg(feature = "server")]
pub mod http;
pub mod ids;
mod metrics;
mod pilotlight;
pub mod probe;
mod session;
pub mod shim;
pub mod sim;
pub mod turn;

pub use config::Config;
pub use error::{StartError, TurnError};
pub use pilotlight::{Pilotlight, Readiness};
pub use session::{
    OauthCredentials, PendingPermission, PermissionError, Session, SessionState, SessionStatus,
};
pub use turn::{Event, Outcome, Prompt, Turn, TurnOptions};
