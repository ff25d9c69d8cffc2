//! Section `permissions`.

use serde::{Deserialize, Serialize};

/// Permission of tools.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Permissions {
    /// Policy for tools that need a permission. Default `deny`.
    pub policy: PermissionPolicy,
}

/// Policy for tools that need a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

impl PermissionPolicy {
    /// The one of both that permits less.
    pub(crate) fn stricter(self, other: Option<Self>) -> Self {
        match (self, other.unwrap_or(self)) {
            (Self::Deny, _) | (_, Self::Deny) => Self::Deny,
            (Self::Ask, _) | (_, Self::Ask) => Self::Ask,
            (Self::Allow, Self::Allow) => Self::Allow,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stricter_policy_never_permits_more() {
        use PermissionPolicy::{Allow, Ask, Deny};
        for (configured, restricted, expected) in [
            (Allow, None, Allow),
            (Allow, Some(Ask), Ask),
            (Allow, Some(Deny), Deny),
            (Ask, Some(Allow), Ask),
            (Ask, Some(Deny), Deny),
            (Deny, Some(Allow), Deny),
            (Deny, Some(Ask), Deny),
        ] {
            assert_eq!(configured.stricter(restricted), expected, "{configured:?} {restricted:?}");
        }
    }
}
