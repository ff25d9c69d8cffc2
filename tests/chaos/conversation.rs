//! What one user can count on: which turns its conversation has to remember, and which losses it was told of. Pure.

use std::collections::BTreeSet;

/// What one user can count on.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Turns that were answered and are to be remembered.
    pub answered: BTreeSet<u64>,
    /// Turns that were sent, in this order, under these numbers.
    pub sent: BTreeSet<u64>,
    /// Turns that were told of a loss, or may have been: their ends were not seen.
    pub told: BTreeSet<u64>,
    /// Seen in the transcript on disk.
    pub durable: BTreeSet<u64>,
    /// The last turn that something was done to; a turn after it that is answered ends the disturbance.
    pub disturbed_at: Option<u64>,
    pub under_way: usize,
}

impl Conversation {
    /// Checks what turn `asking` was told of the conversation before it.
    pub fn remembers(&self, asking: u64, recalled: &[u64], durable: &BTreeSet<u64>) -> Result<(), String> {
        if let Some(unsaid) = recalled.iter().find(|number| !self.sent.contains(number)) {
            return Err(format!("it remembers {unsaid}, which was never said"));
        }
        if let Some(pair) = recalled.windows(2).find(|pair| pair[0] > pair[1]) {
            return Err(format!("out of order: {} before {}", pair[0], pair[1]));
        }
        let recalled: BTreeSet<u64> = recalled.iter().copied().collect();
        if let Some(lost) = durable.iter().find(|number| **number < asking && !recalled.contains(number)) {
            return Err(format!("{lost} was written down and is forgotten"));
        }
        let forgotten = self.answered.range(..asking).filter(|number| !recalled.contains(number));
        let silent = |lost: &&u64| self.told.range(*lost + 1..=asking).next().is_none();
        match forgotten.clone().find(silent) {
            Some(lost) => Err(format!("{lost} was answered and is forgotten, and nobody was told")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_loss_is_seen_and_one_that_was_told_is_none() {
        let mut talk =
            Conversation { sent: (1..10).collect(), answered: [1, 2, 4].into(), ..Conversation::default() };
        assert!(talk.remembers(5, &[1, 2, 4], &BTreeSet::new()).is_ok());
        assert!(talk.remembers(5, &[1, 2], &BTreeSet::new()).unwrap_err().contains("nobody was told"));
        assert!(talk.remembers(5, &[2, 1, 4], &BTreeSet::new()).unwrap_err().contains("order"));
        assert!(talk.remembers(5, &[1, 2, 4, 77], &BTreeSet::new()).unwrap_err().contains("never said"));
        talk.told.insert(5);
        assert!(talk.remembers(5, &[1, 2], &BTreeSet::new()).is_ok());
        assert!(talk.remembers(5, &[1, 2], &[4].into()).unwrap_err().contains("written down"));
        talk.told = [3].into();
        assert!(talk.remembers(5, &[1, 2], &BTreeSet::new()).is_err());
    }
}
