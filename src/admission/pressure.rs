//! Memory pressure: how much of the memory budget is used, in levels. Pure.

/// Margin below its mark at which a level is left, in percent of the budget: a level does not flap.
const HYSTERESIS: u64 = 3;

/// How scarce memory is. Each level includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// No pressure.
    Open = 0,
    /// Idle sessions are evicted.
    Evicting = 1,
    /// No new children.
    NoNewChildren = 2,
    /// No new turns for sessions without a warm child.
    NoNewTurns = 3,
}

impl Pressure {
    /// Below this share of the budget there is no pressure any more, whatever was before.
    pub(crate) const RELAXED_PERCENT: u64 = 80 - HYSTERESIS;

    /// The level at `used` of `budget` bytes. A level is left only well below its mark.
    pub(crate) fn of(used: u64, budget: u64, before: Self) -> Self {
        let percent = used.saturating_mul(100) / budget.max(1);
        let mark =
            |level: Self, mark: u64| if before >= level { mark.saturating_sub(HYSTERESIS) } else { mark };
        if percent >= mark(Self::NoNewTurns, 95) {
            Self::NoNewTurns
        } else if percent >= mark(Self::NoNewChildren, 90) {
            Self::NoNewChildren
        } else if percent >= mark(Self::Evicting, 80) {
            Self::Evicting
        } else {
            Self::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_and_falls_without_flapping() {
        use Pressure::{Evicting, NoNewChildren, NoNewTurns, Open};
        let level = |used, before| Pressure::of(used, 100, before);
        assert_eq!(
            [79, 80, 90, 95, 200].map(|used| level(used, Open)),
            [Open, Evicting, NoNewChildren, NoNewTurns, NoNewTurns]
        );
        assert_eq!(level(88, NoNewChildren), NoNewChildren);
        assert_eq!(level(86, NoNewChildren), Evicting);
        assert_eq!(level(76, Evicting), Open);
        assert_eq!(Pressure::of(1, 0, Open), NoNewTurns);
    }
}
