//! What an operator may want to know of a session afterwards: its last turns, and how its last children ended. Pure.
//!
//! In memory only, and bounded: the journal and the transcript keep what was said.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::telemetry::events::Exit;
use crate::turn::ToolRun;

/// Turns that are kept: what fits on a screen. Some 100 bytes each, without their tools.
const MAX_TURNS: usize = 32;
/// Calls of tools that are kept, of all these turns: some 100 bytes each.
const MAX_TOOLS: usize = 256;
/// Children that are kept: a circuit opens after fewer.
const MAX_ENDS: usize = 8;
/// Characters that are kept of a word of the CLI.
const MAX_WORD: usize = 64;
/// Bytes that are kept of the end of a child's standard error.
const MAX_STDERR: usize = 2 << 10;

/// The last turns and children of a session, the oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    pub(crate) turns: VecDeque<PastTurn>,
    pub(crate) ends: VecDeque<ChildEnd>,
}

/// A turn that has ended. Times are since it was accepted.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the server shows it"))]
pub(crate) struct PastTurn {
    pub(crate) accepted_at: SystemTime,
    /// When a child got it; `None` without one.
    pub(crate) given_after: Option<Duration>,
    /// When its first output came; `None` without any.
    pub(crate) first_after: Option<Duration>,
    pub(crate) took: Duration,
    /// As the label of `turns_total`.
    pub(crate) outcome: &'static str,
    /// Code of the error, or the CLI's own word for it; cut off.
    pub(crate) error: Option<String>,
    pub(crate) cost_usd: f64,
    /// The first calls of tools.
    pub(crate) tools: Vec<ToolRun>,
    /// Further calls, which are not kept.
    pub(crate) tools_left_out: usize,
}

/// The end of a child.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the server shows it"))]
pub(crate) struct ChildEnd {
    pub(crate) generation: u64,
    /// Time since its start was requested.
    pub(crate) lived: Option<Duration>,
    pub(crate) exit: Exit,
    /// The end of its standard error, without the secrets that the server knows; empty if it was stopped on request.
    pub(crate) stderr: String,
}

impl Past {
    pub(super) fn turn_ended(&mut self, mut turn: PastTurn) {
        turn.error = turn.error.map(|word| word.chars().take(MAX_WORD).collect());
        push(&mut self.turns, turn, MAX_TURNS);
        let mut kept: usize = self.turns.iter().map(|turn| turn.tools.len()).sum();
        for turn in &mut self.turns {
            if kept <= MAX_TOOLS {
                break;
            }
            let left_out = std::mem::take(&mut turn.tools).len();
            turn.tools_left_out = turn.tools_left_out.saturating_add(left_out);
            kept -= left_out;
        }
    }

    pub(super) fn child_ended(&mut self, mut end: ChildEnd) {
        let from = end.stderr.len().saturating_sub(MAX_STDERR);
        let from = (from..=end.stderr.len()).find(|at| end.stderr.is_char_boundary(*at)).unwrap_or(0);
        // Without the room of the rest.
        end.stderr = end.stderr.split_off(from);
        push(&mut self.ends, end, MAX_ENDS);
    }
}

fn push<T>(kept: &mut VecDeque<T>, latest: T, most: usize) {
    if kept.len() == most {
        kept.pop_front();
    }
    kept.push_back(latest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_is_bounded_and_keeps_the_latest() {
        let mut past = Past::default();
        for generation in 1..=3 * MAX_ENDS as u64 {
            let exit = Exit { reason: "crash", detail: String::new(), at: SystemTime::UNIX_EPOCH };
            let stderr = format!("é{}", "ü".repeat(MAX_STDERR));
            past.child_ended(ChildEnd { generation, lived: None, exit, stderr });
        }
        let last = past.ends.back().unwrap();
        assert_eq!((past.ends.len(), last.generation), (MAX_ENDS, 3 * MAX_ENDS as u64));
        assert!(last.stderr.len() <= MAX_STDERR && last.stderr.chars().all(|letter| letter == 'ü'));
        let tool = ToolRun { name: "Bash".into(), began_after: Duration::ZERO, took: None, failed: false };
        for cost in 0..100 {
            past.turn_ended(PastTurn {
                accepted_at: SystemTime::UNIX_EPOCH,
                given_after: None,
                first_after: None,
                took: Duration::ZERO,
                outcome: "ok",
                error: Some("ü".repeat(1000)),
                cost_usd: f64::from(cost),
                tools: vec![tool.clone(); 20],
                tools_left_out: 1,
            });
        }
        let last = past.turns.back().unwrap();
        assert_eq!((past.turns.len(), last.cost_usd), (MAX_TURNS, 99.0));
        let kept: usize = past.turns.iter().map(|turn| turn.tools.len()).sum();
        assert_eq!((kept, last.tools.len(), last.tools_left_out), (MAX_TOOLS / 20 * 20, 20, 1));
        assert_eq!(past.turns.front().unwrap().tools_left_out, 21);
        assert_eq!(last.error.as_ref().map(|word| word.chars().count()), Some(MAX_WORD));
    }
}
