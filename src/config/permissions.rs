//! Section `permissions`.

use serde::Deserialize;

/// Permission of tools.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Permissions {
    /// Policy for tools that need a permission. Default `deny`.
    pub policy: PermissionPolicy,
}

/// Policy for tools that need a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PermissionPolicy {
    /// Every tool is denied.
    #[default]
    Deny,
    /// Every tool is allowed.
    Allow,
    /// The caller decides; see [`crate::Session::answer_permission`].
    Ask,
}
