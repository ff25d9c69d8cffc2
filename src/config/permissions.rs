//! Sections `permissions` and `isolation`.

use serde::Deserialize;

use super::Egress;

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

/// Isolation between the children of different users.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Isolation {
    /// Accepts that tools of one user can read the files of another (`permissions.policy` other than `deny` with several
    /// users). Default false: the server then serves one user, or no tools. No effect in an embedding program, which
    /// decides itself whom it serves.
    pub accept_none: bool,
    /// Hosts that children reach. Default: `api` where the host can restrict the network of a child, else `open`.
    pub egress: Option<Egress>,
}
