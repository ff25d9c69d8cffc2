//! What the end of a child means for its session, its turn, the restart and the metrics. Pure.

use std::time::Duration;

use crate::child::{ChildExit, ExitCause, Job, KillReason, RunningTurn};
use crate::error::{Loss, StartFailure, TurnError};
use crate::telemetry::metrics::{ExitReason, RestartCause};

#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The whole instance is stopping.
    pub(super) draining: bool,
    pub(super) retry_turn: bool,
    pub(super) spawn_timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Conclusion {
    pub(crate) kind: ExitKind,
    pub(crate) was_ready: bool,
    pub(crate) reason: ExitReason,
    /// The reason for people. Nothing that the child wrote.
    pub(crate) detail: String,
    /// The cause of a start that follows.
    pub(crate) restart: RestartCause,
    pub(crate) retry: Option<Box<Job>>,
    pub(crate) lost: Option<(Box<RunningTurn>, TurnError)>,
}

/// The kinds of ends that the session's state machine distinguishes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ExitKind {
    Requested,
    /// The tree exceeded the memory of a session, or the files their limits. No failure of the CLI.
    Outgrown,
    /// This node no longer holds its sessions. No failure, and nothing to be started again.
    Fenced,
    /// The child ended, or had to be killed, unasked.
    Crashed(StartFailure),
    NotStarted(StartFailure),
    /// There was no room for the child. Not a failure of the session.
    NotAdmitted(TurnError),
}

pub(super) fn conclude(exit: ChildExit, rules: Rules) -> Conclusion {
    let restart = RestartCause::from(&exit);
    let detail = match exit.cause {
        cause @ ExitCause::Killed(_) => cause.to_string(),
        _ if exit.requested => "the session was stopped".to_owned(),
        cause => cause.to_string(),
    };
    let reason = match exit.requested {
        true if rules.draining => ExitReason::Drain,
        true => ExitReason::Evicted,
        false => exit.cause.into(),
    };
    let early = || StartFailure::ExitedEarly { exit: detail.clone(), stderr: exit.stderr.clone() };
    let kind = match exit.cause {
        _ if exit.requested => ExitKind::Requested,
        ExitCause::Killed(KillReason::Fenced) => ExitKind::Fenced,
        ExitCause::Killed(KillReason::NeverReady) => {
            ExitKind::NotStarted(StartFailure::NeverReady { limit: rules.spawn_timeout })
        }
        ExitCause::Killed(KillReason::MemoryLimit(_) | KillReason::WorkspaceLimit { .. }) if exit.ready => {
            ExitKind::Outgrown
        }
        _ if exit.ready => ExitKind::Crashed(early()),
        _ => ExitKind::NotStarted(early()),
    };
    let (mut retry, mut lost) = (None, None);
    match (exit.unfinished, exit.cause) {
        (None, _) => {}
        // Another child would exceed the limit again.
        (Some(running), ExitCause::Killed(KillReason::MemoryLimit(limit))) => {
            lost = Some((running, TurnError::MemoryLimit { limit }));
        }
        (Some(running), ExitCause::Killed(KillReason::WorkspaceLimit { limit, what })) => {
            lost = Some((running, TurnError::WorkspaceLimit { limit, what, in_turn: true }));
        }
        // Not here, but another node may do it, if nothing was done yet.
        (Some(running), ExitCause::Killed(KillReason::Fenced)) => {
            let in_turn = !(rules.retry_turn && running.may_be_retried());
            lost = Some((running, TurnError::NodeFenced { in_turn }));
        }
        (Some(running), _) if rules.retry_turn && !exit.requested && running.may_be_retried() => {
            retry = Some(running.into_retry());
        }
        (Some(running), _) => {
            let loss = Loss { cause: detail.clone(), stderr: exit.stderr };
            lost = Some((running, TurnError::SessionLost(loss)));
        }
    }
    let retry = retry.or(exit.unseen);
    Conclusion { kind, was_ready: exit.ready, reason, detail, restart, retry, lost }
}

impl Conclusion {
    /// Of a start that came to no child, or to none that was ready.
    pub(super) fn without_child(kind: ExitKind) -> Self {
        Self {
            kind,
            was_ready: false,
            reason: ExitReason::StatusUnknown,
            detail: String::new(),
            restart: RestartCause::NotStarted,
            retry: None,
            lost: None,
        }
    }

    pub(super) fn was_requested(&self) -> bool {
        self.kind == ExitKind::Requested
    }

    /// The CLI did not start, for a reason of its own. No turn is with it.
    pub(super) fn never_started(&self) -> bool {
        let is_its_own = matches!(self.kind, ExitKind::NotStarted(_) | ExitKind::Crashed(_));
        !self.was_ready && is_its_own && self.retry.is_none()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::child::testing::job;
    use crate::config::Config;
    use crate::model::ids::TurnId;
    use crate::telemetry::metrics::FirstOutput;
    use crate::turn::Turn;

    const RULES: Rules = Rules { draining: false, retry_turn: true, spawn_timeout: Duration::from_secs(9) };

    /// The end of a child that had a turn.
    fn exit(cause: ExitCause, change: impl FnOnce(&mut ChildExit, &mut RunningTurn)) -> (ChildExit, Turn) {
        let (job, reader) = job(1);
        let mut running = RunningTurn::new(*job, None, Instant::now(), &Config::default().session);
        let mut exit = ChildExit { cause, ready: true, ..ChildExit::default() };
        change(&mut exit, &mut running);
        exit.unfinished = Some(Box::new(running));
        (exit, reader)
    }

    #[test]
    fn each_end_has_its_kind_label_and_restart() {
        use ExitCause::{Code, Killed, OutOfMemory, Signal, Unknown};
        use ExitReason as Label;
        for (cause, ready, requested, draining, kind, label, restart) in [
            (Code(0), true, false, false, "crashed", Label::Clean, RestartCause::Crash),
            (Code(1), true, false, false, "crashed", Label::Crash, RestartCause::Crash),
            (Signal(9), true, false, true, "crashed", Label::Signal, RestartCause::Crash),
            (OutOfMemory, true, false, false, "crashed", Label::Oom, RestartCause::Crash),
            (Unknown, true, false, false, "crashed", Label::StatusUnknown, RestartCause::Crash),
            (Code(1), false, false, false, "exited_early", Label::Crash, RestartCause::NotStarted),
            (Code(0), true, true, false, "requested", Label::Evicted, RestartCause::Crash),
            (Code(0), true, true, true, "requested", Label::Drain, RestartCause::Crash),
            (Code(0), false, true, false, "requested", Label::Evicted, RestartCause::NotStarted),
            (Killed(KillReason::Hung), true, false, false, "crashed", Label::Hang, RestartCause::Hang),
            (Killed(KillReason::Hung), true, true, false, "requested", Label::Evicted, RestartCause::Hang),
            (
                Killed(KillReason::NeverReady),
                false,
                false,
                false,
                "start_timeout",
                Label::Hang,
                RestartCause::NotStarted,
            ),
            (
                Killed(KillReason::Protocol("it broke it")),
                true,
                false,
                false,
                "crashed",
                Label::Protocol,
                RestartCause::Protocol,
            ),
            (
                Killed(KillReason::Protocol("it broke it")),
                false,
                false,
                false,
                "exited_early",
                Label::Protocol,
                RestartCause::Protocol,
            ),
            (Killed(KillReason::Fenced), true, false, false, "fenced", Label::Fenced, RestartCause::Crash),
            (
                Killed(KillReason::Fenced),
                false,
                false,
                false,
                "fenced",
                Label::Fenced,
                RestartCause::NotStarted,
            ),
            (Killed(KillReason::Fenced), true, true, true, "requested", Label::Drain, RestartCause::Crash),
            (
                Killed(KillReason::MemoryLimit(7)),
                true,
                false,
                false,
                "memory",
                Label::MemoryLimit,
                RestartCause::Crash,
            ),
            (
                Killed(KillReason::MemoryLimit(7)),
                false,
                false,
                false,
                "exited_early",
                Label::MemoryLimit,
                RestartCause::NotStarted,
            ),
        ] {
            let exit = ChildExit { cause, ready, requested, ..ChildExit::default() };
            let concluded = conclude(exit, Rules { draining, ..RULES });
            let found = match &concluded.kind {
                ExitKind::Requested => "requested",
                ExitKind::Outgrown => "memory",
                ExitKind::Fenced => "fenced",
                ExitKind::Crashed(_) => "crashed",
                ExitKind::NotStarted(failure) => failure.reason(),
                ExitKind::NotAdmitted(_) => "not_admitted",
            };
            let context = format!("{cause:?} ready={ready} requested={requested}");
            assert_eq!((found, concluded.reason, concluded.restart), (kind, label, restart), "{context}");
            assert_eq!(concluded.was_ready, ready);
            assert!(concluded.retry.is_none() && concluded.lost.is_none());
            let its_own = ["crashed", "exited_early", "start_timeout"].contains(&kind);
            assert_eq!(concluded.never_started(), !ready && its_own, "{context}");
        }
    }

    #[test]
    fn untouched_turn_is_retried_once() {
        let (exit, _reader) = exit(ExitCause::Signal(9), |_, _| ());
        let retry = conclude(exit, RULES).retry.unwrap();
        assert_eq!((retry.turn, retry.retries, retry.start), (TurnId(1), 1, FirstOutput::Cold));
    }

    #[test]
    fn turn_is_lost_where_a_retry_may_repeat_work() {
        type Change = fn(&mut ChildExit, &mut RunningTurn);
        let changes: [Change; 5] = [
            |_, running| running.produced = true,
            |_, running| running.job.retries = 1,
            |_, running| running.interrupted_until = Some(Instant::now()),
            |_, running| drop(running.job.sender.take()),
            |exit, _| exit.requested = true,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let (exit, _reader) = exit(ExitCause::Signal(9), change);
            let concluded = conclude(exit, RULES);
            assert!(concluded.retry.is_none(), "{number}");
            let (_, error) = concluded.lost.unwrap();
            let expected = if number == 4 { "the session was stopped" } else { "signal 9" };
            assert!(
                matches!(error, TurnError::SessionLost(Loss { cause, .. }) if cause == expected),
                "{number}"
            );
        }
        let (forbidden, _reader) = exit(ExitCause::Signal(9), |_, _| ());
        assert!(conclude(forbidden, Rules { retry_turn: false, ..RULES }).retry.is_none());
        let (unread, reader) = exit(ExitCause::Signal(9), |_, _| ());
        drop(reader);
        assert!(conclude(unread, RULES).retry.is_none());
    }

    #[test]
    fn memory_limit_loses_the_turn() {
        let (exit, _reader) = exit(ExitCause::Killed(KillReason::MemoryLimit(7)), |_, _| ());
        let concluded = conclude(exit, RULES);
        assert_eq!(concluded.lost.map(|(_, error)| error), Some(TurnError::MemoryLimit { limit: 7 }));
        assert_eq!(concluded.detail, "its tree used more than 7 bytes of memory (limits.memory_per_session)");
    }

    #[test]
    fn fence_leaves_the_turn_to_another_node() {
        for (produced, retry_turn) in [(false, true), (true, true), (false, false)] {
            let cause = ExitCause::Killed(KillReason::Fenced);
            let (exit, _reader) = exit(cause, |_, running| running.produced = produced);
            let concluded = conclude(exit, Rules { retry_turn, ..RULES });
            let error = concluded.lost.map(|(_, error)| error).unwrap();
            assert_eq!(error, TurnError::NodeFenced { in_turn: produced || !retry_turn });
            assert_eq!(error.reached_child(), produced || !retry_turn);
            assert!(concluded.retry.is_none());
        }
    }

    #[test]
    fn unseen_turn_goes_to_the_next_child() {
        for requested in [false, true] {
            let (unseen, _reader) = job(2);
            let exit = ChildExit { requested, unseen: Some(unseen), ..ChildExit::default() };
            let retry = conclude(exit, RULES).retry.unwrap();
            assert_eq!((retry.turn, retry.retries), (TurnId(2), 0));
        }
    }
}
