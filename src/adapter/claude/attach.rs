//! An attached client: its command line (`flags`) and the lines of both sides (`gate`). Pure.
//!
//! The client is not trusted: what it sends is compared with the policies that also hold for turns over HTTP.

mod flags;
mod gate;

pub(crate) use flags::parse;
pub(crate) use gate::Gate;

use crate::config::PermissionPolicy;

/// The mode without permission checks.
const BYPASS: &str = "bypassPermissions";
/// Modes that permit nothing by themselves.
const STRICT_MODES: [&str; 4] = ["default", "manual", "plan", "dontAsk"];
/// Modes that permit some tools.
const LENIENT_MODES: [&str; 2] = ["acceptEdits", "auto"];

/// Why a permission mode is not allowed; `None`: it is.
fn mode_problem(mode: &str, policy: PermissionPolicy) -> Option<&'static str> {
    if STRICT_MODES.contains(&mode) {
        None
    } else if LENIENT_MODES.contains(&mode) {
        (policy == PermissionPolicy::Deny)
            .then_some("this permission mode permits tools, which permissions.policy denies")
    } else if mode == BYPASS {
        (policy != PermissionPolicy::Allow)
            .then_some("bypassPermissions needs permissions.policy = \"allow\"")
    } else {
        Some("this permission mode is not known to the server")
    }
}
