//! What the probes have shown: each rung with its state. Plain data.

use std::fmt;

use crate::config::Rung;

/// State of a rung on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RungState {
    /// A probe tried what the rung forbids, and failed each time. Children get it.
    Held,
    /// The host does not offer it, or it did not hold.
    Unavailable {
        /// What is missing or failed.
        reason: String,
        /// How to get it.
        remedy: &'static str,
    },
    /// Left out by `isolation.rungs`.
    Off,
}

impl fmt::Display for RungState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("held"),
            Self::Unavailable { reason, remedy } => write!(f, "unavailable: {reason}; {remedy}"),
            Self::Off => f.write_str("off (isolation.rungs)"),
        }
    }
}

/// All rungs with their states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    states: Vec<(Rung, RungState)>,
    /// Landlock restricts TCP connections.
    pub(crate) tcp: bool,
    /// Landlock restricts signals and abstract sockets.
    pub(crate) scopes: bool,
}

impl Proven {
    /// No rung is used.
    pub(crate) fn none() -> Self {
        Self { states: Rung::ALL.map(|rung| (rung, RungState::Off)).to_vec(), tcp: false, scopes: false }
    }

    /// Nothing but this rung holds, for its probe.
    pub(crate) fn only(rung: Rung) -> Self {
        let mut proven = Self::none();
        proven.set(rung, RungState::Held);
        proven
    }

    /// Exactly these rungs hold.
    #[cfg(test)]
    pub(crate) fn of(rungs: &[Rung]) -> Self {
        let mut proven = Self::none();
        rungs.iter().for_each(|rung| proven.set(*rung, RungState::Held));
        proven
    }

    pub(crate) fn set(&mut self, rung: Rung, state: RungState) {
        if let Some(entry) = self.states.iter_mut().find(|(of, _)| *of == rung) {
            entry.1 = state;
        }
    }

    pub(crate) fn holds(&self, rung: Rung) -> bool {
        self.states.contains(&(rung, RungState::Held))
    }

    pub(crate) fn states(&self) -> &[(Rung, RungState)] {
        &self.states
    }

    /// Rungs that may be used and do not hold.
    #[cfg(any(feature = "server", test))]
    pub(crate) fn missing(&self) -> impl Iterator<Item = (Rung, &RungState)> {
        let is_missing = |state: &RungState| matches!(state, RungState::Unavailable { .. });
        self.states.iter().filter(move |(_, state)| is_missing(state)).map(|(rung, state)| (*rung, state))
    }

    /// The first required rung that does not hold.
    pub(crate) fn lacks(&self, required: &[Rung]) -> Option<(Rung, &RungState)> {
        let of = |rung: &Rung| self.states.iter().find(|(of, state)| of == rung && *state != RungState::Held);
        required.iter().find_map(of).map(|(rung, state)| (*rung, state))
    }

    /// Whether tools of one user reach neither the processes nor the files of another.
    pub(crate) fn separates_users(&self) -> bool {
        self.holds(Rung::Namespaces) || self.holds(Rung::Uid) || (self.holds(Rung::Landlock) && self.scopes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_separated_by_any_of_three_means() {
        for rungs in [&[Rung::Namespaces][..], &[Rung::Uid], &Rung::ALL] {
            assert!(Proven::of(rungs).separates_users(), "{rungs:?}");
        }
        for rungs in [&[][..], &[Rung::Seccomp, Rung::Cgroup], &[Rung::Landlock]] {
            assert!(!Proven::of(rungs).separates_users(), "{rungs:?}");
        }
        assert!(Proven { scopes: true, ..Proven::of(&[Rung::Landlock]) }.separates_users());
        assert!(!Proven { scopes: true, ..Proven::none() }.separates_users());
    }

    #[test]
    fn required_rung_that_does_not_hold_is_named() {
        let mut proven = Proven::of(&[Rung::Seccomp]);
        assert_eq!(proven.lacks(&[Rung::Seccomp]), None);
        assert_eq!(proven.lacks(&[Rung::Seccomp, Rung::Uid]), Some((Rung::Uid, &RungState::Off)));
        let state = RungState::Unavailable { reason: "no".to_owned(), remedy: "do" };
        proven.set(Rung::Uid, state.clone());
        assert_eq!(proven.lacks(&[Rung::Uid]), Some((Rung::Uid, &state)));
        assert_eq!(proven.missing().collect::<Vec<_>>(), [(Rung::Uid, &state)]);
        assert_eq!(state.to_string(), "unavailable: no; do");
    }
}
