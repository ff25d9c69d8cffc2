//! When the tools of a turn ran. Pure, and bounded.
//!
//! Their names alone: what a tool is given and gives back is the user's.

use std::time::Duration;

/// Calls of one turn that are kept; more are counted.
pub(crate) const MOST_CALLS: usize = 24;
/// Characters that are kept of a name.
const MAX_NAME: usize = 64;

/// The call of a tool. Times are since the turn was accepted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolRun {
    pub(crate) name: Box<str>,
    pub(crate) began_after: Duration,
    /// A wait for its permission is a part of it. `None`: no result came within the turn.
    pub(crate) took: Option<Duration>,
    pub(crate) failed: bool,
}

/// The calls of a turn, in their order.
#[derive(Debug, Default)]
pub(crate) struct ToolRuns {
    kept: Vec<ToolRun>,
    /// Those that run, by their place among the kept.
    open: Vec<(String, usize)>,
    left_out: usize,
}

impl ToolRuns {
    pub(super) fn began(&mut self, id: String, name: &str, after: Duration) {
        if self.kept.len() >= MOST_CALLS {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.open.push((id, self.kept.len()));
        let name = name.chars().take(MAX_NAME).collect::<String>().into_boxed_str();
        self.kept.push(ToolRun { name, began_after: after, took: None, failed: false });
    }

    pub(super) fn ended(&mut self, id: &str, failed: bool, after: Duration) {
        let Some(at) = self.open.iter().position(|(open, _)| open == id) else { return };
        let (_, place) = self.open.swap_remove(at);
        if let Some(run) = self.kept.get_mut(place) {
            (run.took, run.failed) = (Some(after.saturating_sub(run.began_after)), failed);
        }
    }

    /// Whether a result would end one.
    pub(super) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Those that are kept, and how many are not.
    pub(super) fn take(&mut self) -> (Vec<ToolRun>, usize) {
        let Self { mut kept, left_out, .. } = std::mem::take(self);
        kept.shrink_to_fit();
        (kept, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_call_has_its_own_result() {
        let mut runs = ToolRuns::default();
        runs.began("a".into(), "Bash", SECOND);
        runs.began("b".into(), "Read", 2 * SECOND);
        runs.ended("b", true, 3 * SECOND);
        runs.ended("z", false, 3 * SECOND);
        assert!(runs.are_open());
        runs.ended("a", false, 5 * SECOND);
        runs.ended("a", true, 9 * SECOND);
        runs.began("c".into(), "Edit", 6 * SECOND);
        let (kept, left_out) = runs.take();
        let seen: Vec<_> = kept.iter().map(|run| (&*run.name, run.took, run.failed)).collect();
        let expected =
            [("Bash", Some(4 * SECOND), false), ("Read", Some(SECOND), true), ("Edit", None, false)];
        assert_eq!((seen, left_out), (expected.to_vec(), 0));
    }

    #[test]
    fn calls_and_names_are_bounded() {
        let mut runs = ToolRuns::default();
        (0..10 * MOST_CALLS).for_each(|number| runs.began(number.to_string(), &"é".repeat(1000), SECOND));
        let (kept, left_out) = runs.take();
        assert_eq!((kept.len(), left_out), (MOST_CALLS, 9 * MOST_CALLS));
        assert_eq!(kept[0].name.chars().count(), MAX_NAME);
        assert!(!runs.are_open());
    }
}
