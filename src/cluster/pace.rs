//! How fast a node lets users go to others: each is fetched from the store by the node that gets it.

use std::time::Duration;

use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// A maximum number in any minute.
#[derive(Debug)]
pub(super) struct Pace {
    per_minute: usize,
    /// What was taken within the last minute: at most `per_minute` entries.
    taken: Vec<(Instant, usize)>,
}

impl Pace {
    pub(super) fn new(per_minute: usize) -> Self {
        Self { per_minute, taken: Vec::new() }
    }

    /// Takes as many of `wanted` as are left at this moment. Returns their number.
    pub(super) fn take(&mut self, now: Instant, wanted: usize) -> usize {
        self.taken.retain(|(at, _)| now.duration_since(*at) < MINUTE);
        let of_minute: usize = self.taken.iter().map(|(_, count)| count).sum();
        let count = wanted.min(self.per_minute.saturating_sub(of_minute));
        if count > 0 {
            self.taken.push((now, count));
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_minute_has_more_than_its_number() {
        let begun = Instant::now();
        let mut pace = Pace::new(10);
        let mut take = |seconds, wanted| pace.take(begun + Duration::from_secs(seconds), wanted);
        assert_eq!(take(0, 0), 0);
        assert_eq!([take(0, 4), take(30, 4), take(59, 4), take(59, 1)], [4, 4, 2, 0]);
        // At 60 s, what was taken at 0 s is available again.
        assert_eq!([take(60, 100), take(89, 1), take(90, 100)], [4, 0, 4]);
        assert_eq!(take(1000, 100), 10);
    }
}
