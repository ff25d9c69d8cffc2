//! Hibernation: an idle child is frozen and uses no processor time, until something needs it.
//!
//! The child is thawed before it is written to, before its input is closed and before SIGTERM: a frozen process notices
//! none of them. Only a kill needs no thaw.

use tokio::time::{Duration, Instant};

use super::{Action, Measurement, Phase, Protocol, Signal};
use crate::child::event::ChildEvent;

#[derive(Debug)]
pub(super) struct Hibernation {
    /// `None`: never.
    after: Option<Duration>,
    last_output: Instant,
    frozen: bool,
}

impl Hibernation {
    /// `after`: zero switches it off.
    pub(super) fn new(after: Duration, now: Instant) -> Self {
        Self { after: (!after.is_zero()).then_some(after), last_output: now, frozen: false }
    }
}

impl Protocol {
    /// Output proves that the child runs, and may be the first of work of its own: then it must not stay frozen.
    pub(super) fn hears(&mut self, now: Instant) {
        self.hibernation.last_output = now;
        self.thaw();
    }

    /// When the child is to be frozen; `None` while it works, is opening or stopping, or is frozen.
    pub(super) fn freezes_at(&self) -> Option<Instant> {
        let after = self.hibernation.after.filter(|_| !self.hibernation.frozen)?;
        let is_idle = self.phase == Phase::Serving
            && !self.over
            && self.running.is_none()
            && self.held.is_none()
            && self.waiting.is_none()
            && !self.own_work.reported
            && !self.own_work.tasks.owes();
        let due = self.hibernation.last_output + after;
        is_idle.then(|| self.asks_servers_until().map_or(due, |until| until.max(due)))
    }

    pub(super) fn freeze_if_due(&mut self, now: Instant) {
        if self.freezes_at().is_some_and(|due| due <= now) {
            self.hibernation.frozen = true;
            self.actions.push_back(Action::Send(Signal::Freeze));
            self.measure(Measurement::Hibernated);
            self.emit(ChildEvent::Frozen(true));
        }
    }

    /// Thaws a frozen child.
    pub(super) fn thaw(&mut self) {
        if std::mem::take(&mut self.hibernation.frozen) {
            self.actions.push_back(Action::Send(Signal::Thaw));
            self.emit(ChildEvent::Frozen(false));
        }
    }
}

/// Whether a frozen child would not notice the action.
pub(super) fn needs_a_running_child(action: &Action) -> bool {
    matches!(action, Action::Write(_) | Action::CloseInput | Action::Send(Signal::Terminate))
}
