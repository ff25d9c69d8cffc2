//! A turn while the child works on it.

use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use tokio::time::Instant;

use super::calls::Called;
use super::watchdog::{Vitals, Watchdog};
use crate::adapter::Terminal;
use crate::config::SessionConfig;
use crate::error::{Loss, TurnError};
use crate::model::ids::TurnId;
use crate::model::{ToolResult, Usage};
use crate::telemetry::metrics::FirstOutput;
use crate::turn::{Earlier, Hold, Lines, Outcome, Status, TurnSender, TurnTrace, aborted, wake};

/// A turn on its way to a child, and what is needed to give it to another one.
pub(crate) struct Job {
    pub(crate) turn: TurnId,
    /// `None` once its reader has heard the end.
    pub(crate) sender: Option<TurnSender>,
    pub(crate) line: Bytes,
    /// The earlier messages, for a conversation that does not have them. Kept until the child has begun to answer: until
    /// then another child may get the turn.
    pub(crate) earlier: Option<Earlier>,
    /// Kept as long as the turn may be given to another child, and so what its caller sent is in memory.
    pub(crate) hold: Option<Hold>,
    pub(crate) accepted: Instant,
    pub(crate) start: FirstOutput,
    pub(crate) retries: u32,
    pub(crate) context_lost: bool,
    pub(crate) trace: TurnTrace,
    /// Results of calls that the child may wait for; else it gets the line.
    pub(crate) results: Arc<[ToolResult]>,
}

#[derive(Debug)]
pub(crate) struct RunningTurn {
    pub(crate) job: Job,
    pub(crate) deadline: Instant,
    pub(crate) watchdog: Watchdog,
    /// When the ping that is out was sent, and the process then.
    pub(crate) pinged: Option<Instant>,
    pub(crate) vitals: Option<Vitals>,
    /// The child has reported that it began.
    pub(crate) working: bool,
    /// More than announcements has come: giving it to another child could do the work twice.
    pub(crate) produced: bool,
    pub(crate) interrupted_until: Option<Instant>,
    /// How often the interrupt had to be repeated.
    pub(crate) interrupts: u32,
    /// Lines that were not handed over when the child ended.
    pub(crate) rest: Lines,
    checkpoint: Option<String>,
    /// It brought results to a turn that had begun before: its message was not sent.
    pub(crate) goes_on: bool,
    /// Tokens that earlier parts of the same turn have reported.
    before: Usage,
    /// The message's id, where the CLI is asked to repeat it when it takes the message up.
    pub(crate) mark: Option<String>,
    /// What has come belongs to this turn or to one of the CLI's own: it is kept back until that is known.
    withheld: Option<Withheld>,
}

#[derive(Debug, Default)]
struct Withheld {
    substantial: bool,
    checkpoint: Option<String>,
}

/// What the session needs to know of a turn that is over.
#[derive(Debug, Default)]
pub(crate) struct TurnReport {
    pub(crate) turn: TurnId,
    /// The CLI answered without an error.
    pub(crate) answered: bool,
    /// No turn can succeed in this child any more.
    pub(crate) exhausted: bool,
    /// The CLI goes on with it: cost and tokens are reported later.
    pub(crate) is_part: bool,
    pub(crate) cli_session_id: Option<String>,
    pub(crate) checkpoint: Option<String>,
    pub(crate) cost_usd: f64,
    pub(crate) usage: Usage,
    /// What the journal keeps of the turn.
    pub(crate) journal: Vec<u8>,
    /// Sent to the reader once the session has got the rest.
    pub(crate) last: Option<Box<TurnEnd>>,
}

pub(crate) struct TurnEnd {
    sender: TurnSender,
    tail: Lines,
    outcome: Outcome,
}

impl TurnEnd {
    /// Ends the turn; returns the reader if it waits.
    pub(crate) fn send(self) -> Option<Waker> {
        self.sender.finish(self.tail, self.outcome)
    }

    /// Ends the turn, which was answered, with an error: something that its caller may rely on is missing.
    #[cfg(feature = "cluster")]
    pub(crate) fn fail(mut self, error: TurnError) -> Option<Waker> {
        // They end with the CLI's own result, beside which the error would be a second end.
        self.tail = Lines::default();
        self.outcome.status = Status::Aborted(error);
        self.send()
    }
}

impl fmt::Debug for TurnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Holds the answer.
        f.write_str("TurnEnd")
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Holds the message.
        f.debug_struct("Job").field("turn", &self.turn).finish_non_exhaustive()
    }
}

impl Job {
    /// Ends a turn that no child works on. One that a former child had seen is lost, whatever came after.
    pub(crate) fn abort(mut self, error: TurnError) {
        let error = if self.retries > 0 && !error.reached_child() {
            let cause = format!("it ended before it had begun, and there was no other: {error}");
            TurnError::SessionLost(Loss { cause, stderr: String::new() })
        } else {
            error
        };
        if let Some(sender) = self.sender.take() {
            let outcome = Outcome {
                retries: self.retries,
                context_lost: self.context_lost,
                duration: self.accepted.elapsed(),
                ..aborted(error)
            };
            wake(sender.finish(Bytes::new(), outcome));
        }
    }
}

impl RunningTurn {
    /// `mark`: the message's id, for a child that may be at a turn of its own.
    pub(crate) fn new(job: Job, mark: Option<String>, now: Instant, limits: &SessionConfig) -> Self {
        Self {
            job,
            deadline: now + limits.turn_timeout,
            watchdog: Watchdog::new(now, limits.stall_timeout, limits.ping_timeout),
            pinged: None,
            vitals: None,
            working: false,
            produced: false,
            interrupted_until: None,
            interrupts: 0,
            rest: Lines::default(),
            checkpoint: None,
            goes_on: false,
            before: Usage::default(),
            withheld: mark.is_some().then(Withheld::default),
            mark,
        }
    }

    /// A turn that goes on where the model has called the caller's tools.
    pub(crate) fn going_on(job: Job, before: Usage, now: Instant, limits: &SessionConfig) -> Self {
        Self { goes_on: true, before, ..Self::new(job, None, now, limits) }
    }

    /// Whether what has come may belong to a turn of the CLI's own.
    pub(crate) fn is_withheld(&self) -> bool {
        self.withheld.is_some()
    }

    /// What has come belongs to this turn. Whether it holds the first output.
    pub(crate) fn claim(&mut self) -> bool {
        self.withheld.take().is_some_and(|withheld| self.saw(withheld.substantial, withheld.checkpoint))
    }

    /// The turn begins now: what precedes it is no work on it.
    pub(crate) fn begins(&mut self) {
        self.withheld = None;
    }

    /// What has come belonged to a turn of the CLI's own.
    pub(crate) fn disclaim(&mut self) {
        self.withheld = self.mark.is_some().then(Withheld::default);
        self.working = false;
    }

    /// Records an event of the turn. Whether it is the first output.
    pub(crate) fn saw(&mut self, substantial: bool, checkpoint: Option<String>) -> bool {
        if let Some(withheld) = &mut self.withheld {
            withheld.substantial |= substantial;
            withheld.checkpoint = checkpoint.or(withheld.checkpoint.take());
            return false;
        }
        if checkpoint.is_some() {
            self.checkpoint = checkpoint;
        }
        let is_first = substantial && !std::mem::replace(&mut self.produced, true);
        if is_first {
            // No other child gets the turn: its message is of no more use.
            (self.job.earlier, self.job.hold, self.job.line) = (None, None, Bytes::new());
        }
        is_first
    }

    /// Whether another child may do the turn: it was not tried again before, nothing came of it, it was not ended and
    /// its reader waits.
    pub(crate) fn may_be_retried(&self) -> bool {
        let is_read = self.job.sender.as_ref().is_some_and(|sender| !sender.is_closed());
        is_read && self.job.retries == 0 && !self.produced && self.interrupted_until.is_none()
    }

    pub(crate) fn into_retry(self) -> Box<Job> {
        Box::new(Job { retries: self.job.retries + 1, start: FirstOutput::Cold, ..self.job })
    }

    /// Ends the turn for its reader without an answer, perhaps while the child still works on it.
    pub(crate) fn abandon(&mut self, tail: Lines, error: TurnError, now: Instant) -> Option<Box<TurnEnd>> {
        let sender = self.job.sender.take()?;
        let outcome = self.outcome(Status::Aborted(error), now);
        Some(Box::new(TurnEnd { sender, tail, outcome }))
    }

    /// The CLI has ended the turn. `tail`: the last lines.
    pub(crate) fn finish(
        mut self,
        tail: Lines,
        terminal: Terminal,
        cost_usd: f64,
        now: Instant,
    ) -> TurnReport {
        let answered = terminal.failure.is_none() && self.job.sender.is_some();
        let last = self.job.sender.take().map(|sender| {
            let status = terminal.failure.map_or(Status::Completed, Status::Failed);
            let outcome = Outcome {
                text: terminal.text,
                stop_reason: terminal.stop_reason,
                usage: terminal.usage.without(&self.before),
                cost_usd,
                cli_session_id: terminal.session_id.clone().unwrap_or_default(),
                ..self.outcome(status, now)
            };
            Box::new(TurnEnd { sender, tail, outcome })
        });
        TurnReport {
            turn: self.job.turn,
            answered,
            exhausted: terminal.process_exhausted,
            is_part: false,
            cli_session_id: terminal.session_id,
            checkpoint: self.checkpoint,
            cost_usd,
            usage: terminal.usage,
            journal: Vec::new(),
            last,
        }
    }

    /// The model calls tools of the caller's. Cost and tokens count with the end of the CLI's turn.
    pub(crate) fn called(mut self, tail: Lines, called: Called, now: Instant) -> TurnReport {
        let last = self.job.sender.take().map(|sender| {
            let outcome = Outcome {
                stop_reason: Some("tool_use".to_owned()),
                usage: called.usage,
                tool_calls: called.calls,
                ..self.outcome(Status::Completed, now)
            };
            Box::new(TurnEnd { sender, tail, outcome })
        });
        let checkpoint = self.checkpoint;
        let turn = self.job.turn;
        TurnReport { turn, answered: true, is_part: true, checkpoint, last, ..TurnReport::default() }
    }

    pub(crate) fn lose(mut self, tail: Lines, error: TurnError, now: Instant) -> TurnReport {
        let last = self.abandon(tail, error, now);
        TurnReport { turn: self.job.turn, checkpoint: self.checkpoint, last, ..TurnReport::default() }
    }

    fn outcome(&self, status: Status, now: Instant) -> Outcome {
        Outcome {
            status,
            usage: Usage::default(),
            retries: self.job.retries,
            context_lost: self.job.context_lost,
            duration: now.duration_since(self.job.accepted),
            ..aborted(TurnError::Cancelled)
        }
    }
}
