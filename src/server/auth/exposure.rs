//! Whether tools of several users would run without isolation from each other. Pure.
//!
//! Without isolation, a child's tools can read everything that the server's user can read, including sessions of other
//! users. That is harmless with one user or without tools; both together need rungs that keep users apart, proven on this
//! host, or `isolation.accept_none`. The check belongs to the server, because only the server has callers.

use std::fmt;

use crate::config::{Config, McpCallers, PermissionPolicy};
use crate::server::ServeError;
use crate::server::auth::keys::{Entry, Role};

/// Why there can be more than one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exposure {
    /// Without keys, callers name any user.
    NoKeys,
    /// Service keys name the user of each request.
    Service,
    /// Several users have keys.
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

/// Why there can be several users; `None` with at most one.
fn of<'a>(keys: Option<impl IntoIterator<Item = &'a Role>>) -> Option<Exposure> {
    let Some(keys) = keys else { return Some(Exposure::NoKeys) };
    let mut users = std::collections::HashSet::new();
    for role in keys {
        match role {
            Role::Service => return Some(Exposure::Service),
            Role::User(user) => drop(users.insert(user)),
            // Admin keys have no sessions.
            Role::Admin => {}
        }
    }
    (users.len() > 1).then_some(Exposure::Users(users.len()))
}

/// Whether users are kept apart: by rungs ([`crate::Pilotlight::separates_users`]), and by keys or a restricted network
/// ([`crate::Pilotlight::restricts_network`]). Without both of the latter a tool calls this server and names another user.
#[must_use]
pub fn is_separated(config: &Config, by_rungs: bool, restricts_network: bool) -> bool {
    by_rungs && (config.auth.keys_file.is_some() || restricts_network)
}

/// Whether any number of users may be served. `separated`: see [`is_separated`].
pub(crate) fn is_accepted(config: &Config, separated: bool) -> bool {
    separated || config.permissions.policy == PermissionPolicy::Deny || config.isolation.accept_none
}

/// Refuses several users with tools, or with MCP servers of their own, unless they are `separated`
/// ([`is_separated`]). `keys` are the entries of `auth.keys_file`, if set.
///
/// # Errors
/// [`ServeError::Exposed`], [`ServeError::McpExposed`].
pub fn check(config: &Config, keys: Option<&[Entry]>, separated: bool) -> Result<(), ServeError> {
    check_roles(config, keys.map(|keys| keys.iter().map(Entry::role)), separated)
}

pub(crate) fn check_roles<'a>(
    config: &Config,
    keys: Option<impl IntoIterator<Item = &'a Role>>,
    separated: bool,
) -> Result<(), ServeError> {
    if config.mcp.callers == McpCallers::All && !separated && !config.isolation.accept_none {
        return Err(ServeError::McpExposed);
    }
    match of(keys).filter(|_| !is_accepted(config, separated)) {
        None => Ok(()),
        Some(exposure) => Err(ServeError::Exposed { policy: config.permissions.policy, exposure }),
    }
}

/// Selects the entries of a changed file where one user is allowed: all of them if there is still one user; else only
/// those already in force with the same role (`known`) and admin keys, so that a revoked key is still refused. Also
/// returns the number of omitted keys.
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
        assert!(check(&config, None, false).is_ok());
        for policy in [PermissionPolicy::Allow, PermissionPolicy::Ask] {
            config.permissions.policy = policy;
            config.isolation.accept_none = false;
            let message = check(&config, None, false).unwrap_err().to_string();
            for part in ["isolation.accept_none", "permissions.policy", "auth.keys_file", "pilotlight check"]
            {
                assert!(message.contains(part), "{message}");
            }
            assert!(check(&config, None, true).is_ok());
            config.isolation.accept_none = true;
            assert!(check(&config, None, false).is_ok());
        }
    }

    #[test]
    fn exposure_tools_reach_no_server_without_keys() {
        let mut config = Config::new("/d");
        for (keys, by_rungs, restricts_network, expected) in [
            (false, true, false, false),
            (false, true, true, true),
            (false, false, true, false),
            (true, true, false, true),
            (true, false, true, false),
        ] {
            config.auth.keys_file = keys.then(|| "/keys".into());
            assert_eq!(is_separated(&config, by_rungs, restricts_network), expected);
        }
    }

    #[test]
    fn exposure_mcp_of_every_caller_needs_separation() {
        let mut config = Config::new("/d");
        config.mcp.callers = McpCallers::All;
        let message = check(&config, Some(&[]), false).unwrap_err().to_string();
        assert!(message.contains("mcp.callers") && message.contains("isolation.accept_none"), "{message}");
        assert!(check(&config, Some(&[]), true).is_ok());
        config.isolation.accept_none = true;
        assert!(check(&config, Some(&[]), false).is_ok());
    }
}
