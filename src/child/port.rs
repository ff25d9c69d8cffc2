//! How a child's dialogue is reached: by its driver, its session and the reader of the running turn.
//!
//! Every call does its work at once, under a lock that is never held while anybody waits.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use super::dialogue::Dialogue;
use super::exit::KillReason;
use super::permissions::Answer;
use super::running::Job;
use crate::model::ids::TurnId;
use crate::support::lock::MutexExt;
use crate::turn::{Pulled, Source};

/// See the module. Refuses everything once the child is gone.
pub(crate) struct Port(Mutex<Option<Dialogue>>);

impl Port {
    pub(super) fn new(dialogue: Dialogue) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(dialogue))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Dialogue>> {
        // A panic in there is one of the driver, the session or a reader; whoever is left ends the child.
        self.0.lock_unpoisoned()
    }

    /// For the driver, which looks after what follows itself. `None` once it is closed.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Dialogue) -> T) -> Option<T> {
        let (result, wakes) = {
            let mut dialogue = self.lock();
            let dialogue = dialogue.as_mut()?;
            (act(dialogue), dialogue.take_wakes())
        };
        for waker in wakes {
            waker.wake();
        }
        Some(result)
    }

    /// Takes the dialogue out. To be dropped without the lock: that ends its turn.
    pub(super) fn close(&self) -> Option<Dialogue> {
        self.lock().take()
    }

    /// For all others: the driver is called if it has something to do.
    fn tell<T>(&self, act: impl FnOnce(&mut Dialogue) -> T) -> Option<T> {
        self.with(|dialogue| {
            let result = act(dialogue);
            dialogue.settle();
            result
        })
    }

    /// Gives the child a turn; gives it back if there is no child any more.
    pub(crate) fn take_turn(self: &Arc<Self>, job: Box<Job>) -> Result<(), Box<Job>> {
        if let Some(sender) = &job.sender {
            sender.attach(self.clone());
        }
        let mut job = Some(job);
        let taken = self.tell(|dialogue| job.take().map_or(Ok(()), |job| dialogue.take_turn(job)));
        taken.unwrap_or_else(|| job.map_or(Ok(()), Err))
    }

    /// Ends the turn, if it is still this one; its reader hears the end.
    pub(crate) fn interrupt(&self, turn: TurnId) {
        self.tell(|dialogue| dialogue.interrupt_turn(turn));
    }

    /// Ends the turn, if it is still this one; its reader is gone.
    pub(crate) fn cancel(&self, turn: TurnId) {
        self.tell(|dialogue| dialogue.cancel_turn(turn));
    }

    /// The tree uses more memory than it may: ends it.
    pub(crate) fn outgrown(&self, limit: u64) {
        self.tell(|dialogue| dialogue.declare_dead(KillReason::MemoryLimit(limit)));
    }

    /// A tool may run, or not.
    pub(crate) fn answer(&self, answer: Answer) {
        // Without a dialogue the answer is dropped, which whoever waits for it notices.
        self.tell(|dialogue| dialogue.answer(answer));
    }
}

impl Source for Port {
    fn poll_lines(&self, turn: TurnId, context: &mut Context<'_>) -> Poll<Pulled> {
        self.with(|dialogue| dialogue.poll_for_reader(turn, context)).unwrap_or(Poll::Pending)
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Port")
    }
}
