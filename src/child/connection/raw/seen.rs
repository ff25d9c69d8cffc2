//! What the session reads from the lines on their way: cost, journal, the end of a turn.

use crate::adapter::{self, LineKind};
use crate::child::connection::ChildContext;
use crate::child::connection::protocol::Spending;
use crate::child::event::ChildEvent;
use crate::child::running_turn::TurnReport;
use crate::journal::Lines;
use crate::telemetry::metrics::{ModelClass, ProtocolError};

/// See the module.
pub(super) struct Seen<'a> {
    pub(super) context: &'a ChildContext,
    pub(super) journal: &'a mut Lines,
    pub(super) spending: &'a mut Spending,
    pub(super) checkpoint: &'a mut Option<String>,
}

impl Seen<'_> {
    /// Notes a line of the child; whether it ends the client's turn.
    pub(super) fn note(self, line: &[u8]) -> bool {
        match adapter::classify(line) {
            LineKind::Message { checkpoint: true, .. } => {
                if let Some(id) = adapter::checkpoint(line) {
                    self.journal.own(&id, line);
                    *self.checkpoint = Some(id);
                }
            }
            LineKind::Mirror if adapter::mirrors_conversation(line) => {
                self.context.metrics.mirrored_lines.increment(1);
                self.journal.mirrored(line);
            }
            LineKind::Announcement => {
                if !std::mem::replace(&mut self.spending.announced, true)
                    && let Some(model) = adapter::announced_model(line)
                {
                    self.context.events.on_child_event(ChildEvent::Model(model));
                }
            }
            LineKind::Terminal => return self.terminal(line),
            _ => return false,
        }
        if self.journal.are_many() {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
        }
        false
    }

    fn terminal(self, line: &[u8]) -> bool {
        let metrics = &self.context.metrics;
        let Some(terminal) = adapter::terminal(line) else {
            metrics.protocol_errors.increment(ProtocolError::BadJson);
            return true;
        };
        let (cost_usd, is_plausible) = self.spending.cost_of(&terminal);
        if !is_plausible {
            metrics.protocol_errors.increment(ProtocolError::ImplausibleUsage);
        }
        metrics.count_usage(ModelClass::of(self.spending.model.as_deref()), &terminal.usage, cost_usd);
        if terminal.unsolicited {
            self.context.events.on_child_event(ChildEvent::Journal(self.journal.take()));
            self.context.events.on_child_event(ChildEvent::OwnTurn { cost_usd });
            return false;
        }
        let report = TurnReport {
            // Of no turn of the session: for it, the connection as a whole is one.
            answered: terminal.failure.is_none(),
            cli_session_id: terminal.session_id,
            checkpoint: self.checkpoint.take(),
            cost_usd,
            usage: terminal.usage,
            journal: self.journal.take(),
            ..TurnReport::default()
        };
        drop(self.context.events.on_turn_ended(report, None));
        true
    }
}
