//! The vocabulary that all layers share. Values without behaviour.

mod credentials;
mod dirs;
mod history;
pub mod ids;
mod model_name;
mod outcome;
mod permission;
mod prompt;
mod session_state;

pub use credentials::OauthCredentials;
pub use dirs::Dirs;
pub use history::{Block, History, Message, Role};
pub(crate) use model_name::is_model_name;
pub use outcome::{Failure, Usage};
pub use permission::{Decision, PendingPermission, PermissionError, PermissionRequest};
pub use prompt::{Prompt, PromptRefused};
pub use session_state::SessionState;
