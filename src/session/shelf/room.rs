//! Whether the memory budget has room for another spare. Pure.

use tokio::time::{Duration, Instant};

use crate::admission::Pressure;

/// Nothing is started for this long after spares were ended for memory: what fills it again has some time to show.
const PAUSE: Duration = Duration::from_secs(60);

/// What a spare came to counts for at least this long, and for at most twice as long: one that used far more than others
/// keeps the next ones away for a while only.
const REMEMBERED: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryRoom {
    /// The level of all children together, spares included.
    pressure: Pressure,
    /// Bytes that may be used before memory is scarce; `None` before the first measurement.
    headroom: Option<u64>,
    /// The most that any spare was measured to use lately: all kinds run the same program.
    greatest: Peak,
    not_before: Option<Instant>,
}

/// The greatest value of the last one or two times [`REMEMBERED`].
#[derive(Debug, Default)]
struct Peak {
    /// When the present time began.
    since: Option<Instant>,
    present: u64,
    /// That of the time before.
    before: u64,
}

impl Peak {
    fn measured(&mut self, value: u64, now: Instant) {
        let age = self.age(now);
        if age >= REMEMBERED {
            self.before = if age < 2 * REMEMBERED { self.present } else { 0 };
            (self.since, self.present) = (Some(now), 0);
        }
        self.since.get_or_insert(now);
        self.present = self.present.max(value);
    }

    fn at(&self, now: Instant) -> u64 {
        match self.age(now) {
            age if age < REMEMBERED => self.present.max(self.before),
            age if age < 2 * REMEMBERED => self.present,
            _ => 0,
        }
    }

    fn age(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Default for MemoryRoom {
    fn default() -> Self {
        Self { pressure: Pressure::Open, headroom: None, greatest: Peak::default(), not_before: None }
    }
}

impl MemoryRoom {
    /// All children together use this many of the budget's bytes.
    pub(super) fn measured(&mut self, used: u64, budget: u64) {
        self.pressure = Pressure::of(used, budget, self.pressure);
        self.headroom = Some((budget / 100 * Pressure::RELAXED_PERCENT).saturating_sub(used));
    }

    pub(super) fn measured_spare(&mut self, bytes: u64, now: Instant) {
        self.greatest.measured(bytes, now);
    }

    /// Spares were ended to free what they used.
    pub(super) fn ended(&mut self, now: Instant) {
        self.not_before = Some(now + PAUSE);
    }

    /// Whether spares have to go.
    pub(super) fn is_pressed(&self) -> bool {
        self.pressure >= Pressure::Evicting
    }

    /// Whether another one may start beside `spares`, which used this much when they were last measured: after it the next
    /// session still has to have room.
    pub(super) fn is_enough(&self, spares: impl Iterator<Item = u64>, now: Instant) -> bool {
        if self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        let Some(headroom) = self.headroom else { return true };
        // Each of them grows to what others came to.
        let greatest = self.greatest.at(now);
        let growth = spares.fold(0_u64, |sum, used| sum.saturating_add(greatest.saturating_sub(used)));
        headroom.saturating_sub(growth) >= greatest.saturating_mul(2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_left_for_a_session_beside_the_spare() {
        let (mut room, now) = (MemoryRoom::default(), Instant::now());
        let is_enough = |room: &MemoryRoom, spares: &[u64]| room.is_enough(spares.iter().copied(), now);
        assert!(is_enough(&room, &[]), "nothing is known yet");
        room.measured(700, 1000);
        assert!(is_enough(&room, &[]), "no spare was measured yet");
        room.measured_spare(40, now);
        room.measured_spare(30, now);
        assert!(!is_enough(&room, &[]), "77 % less 70 % is less than two of 4 %");
        room.measured(690, 1000);
        assert!(is_enough(&room, &[]) && is_enough(&room, &[40]));
        assert!(!is_enough(&room, &[0]), "one that was not measured yet takes the room");
        assert!(!is_enough(&room, &[39]));
        room.measured(2000, 1000);
        assert!(room.is_pressed() && !is_enough(&room, &[]));
    }

    #[test]
    fn spare_that_used_much_is_forgotten() {
        let (mut room, begin) = (MemoryRoom::default(), Instant::now());
        room.measured(100, 1000);
        let at = |seconds| begin + Duration::from_secs(seconds);
        let is_enough = |room: &MemoryRoom, seconds| room.is_enough(std::iter::empty(), at(seconds));
        room.measured_spare(900, at(0));
        assert!(!is_enough(&room, 0) && !is_enough(&room, 1199));
        assert!(is_enough(&room, 1200), "no other one was measured, because none started");
        // Ordinary ones beside it forget it no sooner.
        room.measured_spare(900, at(2000));
        (2001..2600).for_each(|second| room.measured_spare(100, at(second)));
        assert!(!is_enough(&room, 2600));
        (2600..3200).for_each(|second| room.measured_spare(100, at(second)));
        assert!(!is_enough(&room, 3199));
        room.measured_spare(100, at(3200));
        assert!(is_enough(&room, 3200));
    }

    #[test]
    fn spares_that_went_for_memory_stay_away() {
        let (mut room, now) = (MemoryRoom::default(), Instant::now());
        room.measured(100, 1000);
        room.ended(now);
        let at = |seconds| room.is_enough(std::iter::empty(), now + Duration::from_secs(seconds));
        assert!(!at(0) && !at(59) && at(60));
    }

    #[test]
    fn pressure_ends_well_below_its_mark() {
        let mut room = MemoryRoom::default();
        let mut is_pressed = |used| {
            room.measured(used, 100);
            room.is_pressed()
        };
        assert_eq!([79, 80, 77, 76].map(&mut is_pressed), [false, true, true, false]);
    }
}
