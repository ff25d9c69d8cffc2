//! Damage to one of the two files of a conversation, while no child has either of them open.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::{Broken, ORDERS_ARRIVE_WITHIN, Run};
use crate::damage::{Damage, conversation, has_message, transcript};
use crate::disk::Transcripts;
use crate::link::SOON;
use crate::plan::{Kind, Reader};
use crate::wire::Order;

impl Run {
    /// Evicts the child, damages the file and asks for the conversation. Whether that was possible: never while the other
    /// file is damaged, or lacks an answer.
    pub(super) fn damage(&mut self, user: usize, damage: Damage, seed: u64) -> Result<bool, Broken> {
        let begun = Instant::now();
        let warmed = self.warmed.get(&user).is_some_and(|at| begun - *at < ORDERS_ARRIVE_WITHIN);
        if warmed || !self.model.is_quiet(user) || self.is_shaky(user) {
            return Ok(false);
        }
        self.disturb_by_order(user);
        self.model.asked.evictions += 1;
        self.link.order(&Order::Evict { user });
        while self.report()?.unsettled.iter().any(|it| it.starts_with(&*self.sessions[user].hash())) {
            if begun.elapsed() >= SOON {
                return Err(format!("the child of user {user} is not evicted within {SOON:?}"));
            }
            self.listen(std::time::Duration::from_millis(10))?;
            self.check()?;
        }
        self.see_journal(user);
        let journal = self.sessions[user].record.join("journal");
        let home = self.sessions[user].home(&self.place.data_dir());
        let found = conversation(&journal)
            .and_then(|(id, owed)| Some((transcript(&home, &id)?, owed)))
            .filter(|_| self.model.has_journal(user));
        let Some((transcript, owed)) = found else { return Ok(false) };
        let written: BTreeSet<u64> = Transcripts::default().new_in(&home).into_iter().collect();
        // A child that died in time has written the message and not the answer, and no other has followed it.
        let is_whole = owed.is_none_or(|owed| has_message(&transcript, &owed));
        if damage.is_to_journal() && !(is_whole && self.model.has_all_of(user, &written)) {
            return Ok(false);
        }
        let file = if damage.is_to_journal() { &journal } else { &transcript };
        if !damage.inflict(file, seed).map_err(|error| format!("{damage:?}: {error}"))? {
            return Ok(false);
        }
        let damaged = &mut self.summary.damaged;
        *if damage.is_to_journal() { &mut damaged.1 } else { &mut damaged.0 } += 1;
        self.model.damaged(user, damage.is_to_journal());
        self.transcripts.forget(&home);
        self.send(user, &Kind::Recall, Reader::Eager);
        Ok(true)
    }

    /// A damaged journal that is whole again has been begun again from the transcript.
    pub(super) fn see_journal(&mut self, user: usize) {
        if !self.model.has_journal(user)
            && conversation(&self.sessions[user].record.join("journal")).is_some()
        {
            self.model.journal_is_whole(user);
        }
    }
}
