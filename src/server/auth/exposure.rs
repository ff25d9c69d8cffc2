//! Whether several users' children run side by side with tools and nothing between them. Pure.
//!
//! A child's tools can read what the server's user can read, other users' sessions included. That is harmless while
//! there is one user, or while no tool runs; both together need the operator's word (`isolation.accept_none`). Here
//! because only the service knows who its callers are: the crate's own handle takes any user its program names.

use std::fmt;

use crate::config::{Config, PermissionPolicy};
use crate::server::ServeError;
use crate::server::auth::keys::{Entry, Role};

/// Why there is more than one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exposure {
    /// Without keys a caller names any user.
    NoKeys,
    /// A service key names the user of each request.
    Service,
    /// So many users have keys.
    Users(usize),
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKeys => f.write_str("without auth.keys_file any caller names any user"),
            Self::Service => f.write_str("a service key in auth.keys_file names any user"),
            Self::Users(count) => write!(f, "auth.keys_file has keys of {count} users"),
        }
    }
}

/// Who may call; `None` if there is one user at most.
fn of<'a>(keys: Option<impl IntoIterator<Item = &'a Role>>) -> Option<Exposure> {
    let Some(keys) = keys else { return Some(Exposure::NoKeys) };
    let mut users = std::collections::HashSet::new();
    for role in keys {
        match role {
            Role::Service => return Some(Exposure::Service),
            Role::User(user) => drop(users.insert(user)),
            // It has no sessions.
            Role::Admin => {}
        }
    }
    (users.len() > 1).then_some(Exposure::Users(users.len()))
}

/// Whether the configuration allows any number of users.
pub(crate) fn is_accepted(config: &Config) -> bool {
    config.permissions.policy == PermissionPolicy::Deny || config.isolation.accept_none
}

/// Refuses several users whose tools may run. `keys` is what `auth.keys_file` holds, if it is set.
///
/// # Errors
/// [`ServeError::Exposed`].
pub fn check(config: &Config, keys: Option<&[Entry]>) -> Result<(), ServeError> {
    check_roles(config, keys.map(|keys| keys.iter().map(Entry::role)))
}

pub(crate) fn check_roles<'a>(
    config: &Config,
    keys: Option<impl IntoIterator<Item = &'a Role>>,
) -> Result<(), ServeError> {
    match of(keys).filter(|_| !is_accepted(config)) {
        None => Ok(()),
        Some(exposure) => Err(ServeError::Exposed { policy: config.permissions.policy, exposure }),
    }
}

/// What may be in force of a changed file where one user is allowed: all of it if that is still one user. Otherwise
/// nothing that was not in force already with the same role (`known`), admin keys aside, so that a revoked key is
/// refused all the same. The number of keys left out is returned too.
pub(crate) fn narrow(entries: Vec<Entry>, known: impl Fn(&Entry) -> bool) -> (Vec<Entry>, usize) {
    if of(Some(entries.iter().map(Entry::role))).is_none() {
        return (entries, 0);
    }
    let count = entries.len();
    let kept: Vec<_> =
        entries.into_iter().filter(|entry| *entry.role() == Role::Admin || known(entry)).collect();
    let left_out = count - kept.len();
    (kept, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    fn user(name: &str) -> Role {
        Role::User(UserId::new(name).unwrap())
    }

    #[test]
    fn exposure_roles_counts_users_not_keys() {
        let cases = [
            (vec![], None),
            (vec![Role::Admin, Role::Admin], None),
            (vec![user("a"), user("a"), Role::Admin], None),
            (vec![user("a"), user("b")], Some(Exposure::Users(2))),
            (vec![Role::Service], Some(Exposure::Service)),
            (vec![user("a"), Role::Service], Some(Exposure::Service)),
        ];
        for (roles, expected) in cases {
            assert_eq!(of(Some(&roles)), expected, "{roles:?}");
        }
        assert_eq!(of(None::<&Vec<Role>>), Some(Exposure::NoKeys));
    }

    #[test]
    fn exposure_policy_deny_or_word_accepts() {
        let mut config = Config::new("/d");
        assert!(check(&config, None).is_ok());
        for policy in [PermissionPolicy::Allow, PermissionPolicy::Ask] {
            config.permissions.policy = policy;
            config.isolation.accept_none = false;
            let message = check(&config, None).unwrap_err().to_string();
            for part in ["isolation.accept_none", "permissions.policy", "auth.keys_file"] {
                assert!(message.contains(part), "{message}");
            }
            config.isolation.accept_none = true;
            assert!(check(&config, None).is_ok());
        }
    }
}
