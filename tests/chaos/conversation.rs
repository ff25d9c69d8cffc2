//! What one user can count on: which turns its conversation has to remember, and which losses were reported to it. Pure.

use std::collections::BTreeSet;

/// What one user can count on.
#[derive(Debug, Default)]
pub struct Conversation {
    /// Turns that were answered and are to be remembered.
    pub answered: BTreeSet<u64>,
    /// Turns that were sent, in this order, under these numbers.
    pub sent: BTreeSet<u64>,
    /// Turns to which a loss was reported, or may have been: their ends were not seen.
    pub reported: BTreeSet<u64>,
    /// Seen in the transcript on disk. Of those up to the last damage to it only answered ones: the journal owes no others.
    pub durable: BTreeSet<u64>,
    /// The last turn that something was done to; a turn after it that is answered ends the disturbance.
    pub disturbed_at: Option<u64>,
    pub under_way: usize,
    /// The last turn before the transcript was damaged; 0: it never was.
    pub transcript_damaged_at: u64,
    /// The last turn before the journal was damaged, until there is a whole one.
    pub journal_damaged_at: Option<u64>,
    /// Answered turns that a later one, the second of the pair, did not remember, while turns between them had not ended:
    /// one of those may have had the report.
    open: Vec<(u64, u64)>,
}

impl Conversation {
    /// Whether a kill may have cost this turn earlier ones: only the transcript holds what was said since the journal was
    /// damaged. The first turn after the damage finds all of it there.
    pub fn may_lose(&self, number: u64) -> bool {
        self.journal_damaged_at.is_some_and(|at| number > at + 1)
    }

    /// Checks what turn `asking` learnt of the conversation before it.
    pub fn remembers(
        &mut self,
        asking: u64,
        recalled: &[u64],
        durable: &BTreeSet<u64>,
    ) -> Result<(), String> {
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
        // What the journal had cannot be lost any more, unless that was reported before.
        let kept = self.journal_damaged_at.map_or(asking, |at| at.min(asking));
        let was_reported = |lost: u64| self.reported.iter().any(|at| lost < *at && *at <= kept);
        let is_silent = |lost: &&u64| **lost <= kept && !was_reported(**lost);
        if let Some(lost) = forgotten.clone().find(is_silent) {
            return Err(format!("{lost} was answered and {asking} did not remember it, without a report"));
        }
        self.open.extend(forgotten.map(|lost| (*lost, asking)));
        Ok(())
    }

    /// Checks that every loss which was noticed had been reported. `awaited`: the turns whose ends have not been heard.
    pub fn losses_were_reported(&mut self, awaited: impl Iterator<Item = u64> + Clone) -> Result<(), String> {
        self.open.retain(|(lost, asking)| self.reported.range(*lost + 1..=*asking).next().is_none());
        let decided =
            |(lost, asking): &&(u64, u64)| !awaited.clone().any(|turn| (lost + 1..=*asking).contains(&turn));
        match self.open.iter().find(decided) {
            Some((lost, asking)) => {
                Err(format!("{lost} was answered and {asking} did not remember it, without a report"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        talk: &mut Conversation,
        recalled: &[u64],
        durable: &[u64],
        awaited: &[u64],
    ) -> Result<(), String> {
        talk.remembers(5, recalled, &durable.iter().copied().collect())?;
        talk.losses_were_reported(awaited.iter().copied())
    }

    fn talk(reported: &[u64]) -> Conversation {
        Conversation {
            sent: (1..10).collect(),
            answered: [1, 2, 4].into(),
            reported: reported.iter().copied().collect(),
            ..Conversation::default()
        }
    }

    /// A loss without a report is a fault. Which reports are allowed is the model's to say.
    #[test]
    fn silent_loss_is_detected_a_reported_one_is_none() {
        assert!(check(&mut talk(&[]), &[1, 2, 4], &[], &[]).is_ok());
        assert!(check(&mut talk(&[]), &[1, 2], &[], &[]).unwrap_err().contains("without a report"));
        assert!(check(&mut talk(&[]), &[2, 1, 4], &[], &[]).unwrap_err().contains("order"));
        assert!(check(&mut talk(&[]), &[1, 2, 4, 77], &[], &[]).unwrap_err().contains("never said"));
        assert!(check(&mut talk(&[5]), &[1, 2], &[], &[]).is_ok());
        assert!(check(&mut talk(&[5]), &[1, 2], &[4], &[]).unwrap_err().contains("written down"));
        assert!(check(&mut talk(&[3]), &[1, 2], &[], &[]).is_err());
    }

    #[test]
    fn only_what_came_after_a_journal_can_be_lost() {
        let damaged = |reported, at| Conversation { journal_damaged_at: Some(at), ..talk(reported) };
        assert!(check(&mut damaged(&[5], 2), &[1, 2], &[], &[]).is_ok());
        assert!(check(&mut damaged(&[], 2), &[1, 2], &[], &[]).unwrap_err().contains("without a report"));
        assert!(check(&mut damaged(&[5], 4), &[1, 2], &[], &[]).unwrap_err().contains("without a report"));
        assert!(check(&mut damaged(&[3], 4), &[2, 4], &[], &[]).is_ok());
        assert!(!talk(&[]).may_lose(9));
        assert!(!damaged(&[], 4).may_lose(5));
        assert!(damaged(&[], 4).may_lose(6));
    }

    #[test]
    fn a_turn_that_has_not_ended_may_have_had_the_report() {
        let mut lost_one = talk(&[]);
        (lost_one.answered, lost_one.journal_damaged_at) = ([1, 2, 3].into(), Some(2));
        assert!(check(&mut lost_one, &[1, 2], &[], &[4]).is_ok());
        assert!(lost_one.losses_were_reported([].into_iter()).is_err());
        lost_one.reported.insert(4);
        assert!(lost_one.losses_were_reported([].into_iter()).is_ok());
    }
}
