//! Where the groups of children are made in version 2, decided from what was read of two groups. Pure.
//!
//! The kernel hands controllers down only from a group without processes of its own, apart from the root of the hierarchy.
//! So the groups of children lie beside the server's group, or the server moves into a group of its own first.

/// The controllers of the rung, by their names in version 1 and 2.
pub(super) const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// A group, as far as it decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// The root of the kernel's hierarchy, not that of a container.
    pub(super) is_root: bool,
    /// It belongs to this service: nobody else arranges what lies in it.
    pub(super) is_delegated: bool,
    /// Why this process cannot make groups in it, hand controllers down or move processes.
    pub(super) closed: Option<String>,
    /// Controllers that it does not get from above.
    pub(super) lacks: Vec<&'static str>,
    /// This process and its descendants, as far as they are members.
    pub(super) own: Vec<i32>,
    /// Other processes that are members.
    pub(super) others: usize,
}

impl Level {
    /// Why no group with limits can be made in it.
    fn hindrance(&self) -> Option<String> {
        let missing =
            || format!("the cgroup of this service does not get the controllers {}", self.lacks.join(", "));
        self.closed.clone().or_else(|| (!self.lacks.is_empty()).then(missing))
    }
}

/// Where the group of all children lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the root of the hierarchy, which the server is in.
    Root,
    /// Beside the server's group.
    Beside,
    /// Below the server's group, once the server has moved into another one below it.
    Below,
}

/// Decides it. `above`: the group that contains the server's, if it is visible.
///
/// # Errors
/// Why children can have no limits.
pub(super) fn choose(own: &Level, above: Option<&Level>) -> Result<Place, String> {
    let usable = |level: &Level, place| level.hindrance().map_or(Ok(place), Err);
    if own.is_root {
        return usable(own, Place::Root);
    }
    if let Some(above) = above.filter(|above| above.is_delegated && !above.is_root) {
        return match above.own.len() + above.others {
            0 => usable(above, Place::Beside),
            count => Err(format!("{count} processes are in the cgroup above that of the server")),
        };
    }
    if !own.is_delegated {
        return Err("the cgroup of the server is not delegated to it".to_owned());
    }
    match own.others {
        0 => usable(own, Place::Below),
        others => Err(format!("{others} processes of others are in the cgroup of the server")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delegated() -> Level {
        Level { is_delegated: true, ..Level::default() }
    }

    fn server() -> Level {
        Level { own: vec![7], ..Level::default() }
    }

    fn refused(own: &Level, above: Option<&Level>, words: &str) {
        let reason = choose(own, above).unwrap_err();
        assert!(reason.contains(words), "{reason}");
    }

    #[test]
    fn leaf_of_a_delegated_group_gets_children_beside() {
        assert_eq!(choose(&server(), Some(&delegated())), Ok(Place::Beside));
        // As after a server that has moved itself, also with a helper beside it.
        assert_eq!(choose(&Level { others: 1, ..server() }, Some(&delegated())), Ok(Place::Beside));
        refused(&server(), Some(&Level { others: 2, ..delegated() }), "2 processes");
        let lacks = vec!["cpu"];
        refused(&server(), Some(&Level { lacks, ..delegated() }), "controllers cpu");
    }

    #[test]
    fn server_alone_in_a_delegated_group_moves() {
        let own = Level { own: vec![7, 8], ..delegated() };
        assert_eq!(choose(&own, Some(&Level::default())), Ok(Place::Below));
        assert_eq!(choose(&own, None), Ok(Place::Below));
        refused(&Level { others: 1, ..own.clone() }, None, "1 processes of others");
        refused(&Level { closed: Some("read-only".to_owned()), ..own.clone() }, None, "read-only");
        refused(&Level { lacks: CONTROLLERS.to_vec(), ..own }, None, "memory, pids, cpu");
    }

    #[test]
    fn groups_of_others_are_left_alone() {
        refused(&server(), Some(&Level::default()), "not delegated");
        refused(&server(), None, "not delegated");
        refused(&server(), Some(&Level { is_root: true, ..delegated() }), "not delegated");
    }

    #[test]
    fn root_of_the_hierarchy_may_hold_processes() {
        let root = Level { is_root: true, others: 90, ..server() };
        assert_eq!(choose(&root, None), Ok(Place::Root));
        refused(&Level { lacks: vec!["memory"], ..root }, None, "controllers memory");
    }
}
