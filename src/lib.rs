//! One warm CLI process per user.

mod child;
pub mod cli;
pub mod config;
pub mod error;
pub mod ids;
pub mod metrics;
mod pilotlight;
mod session;
pub mod turn;

pub use config::Config;
pub use error::{StartError, TurnError};
pub use pilotlight::{Pilotlight, Readiness};
pub use session::{
    OauthCredentials, PendingPermission, PermissionError, Session, SessionState, SessionStatus,
};
pub use turn::{Event, Outcome, Prompt, Turn, TurnOptions};
