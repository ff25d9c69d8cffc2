//! Calls of the caller's tools that the model made and the CLI waits for. Pure.
//!
//! A message of the model may call several tools. The CLI asks for each result by itself, before or after the caller
//! has given it, in any order.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use crate::model::{CallerTool, ToolCall, ToolResult, Usage};

/// Maximum calls in one message: the model's API has messages of some thousand tokens, a call needs dozens.
const MOST_CALLS: usize = 128;

/// Maximum length of the lines with the calls of one message: what a model writes has some hundred kilobytes at most.
const MOST_BYTES: usize = 8 << 20;

/// Lists of tools that a child gets in a turn: a CLI needs one for each connection, and a list can be long.
const MOST_LISTS: u32 = 16;

/// A request of the CLI for a result.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OpenCall {
    pub(crate) request_id: String,
    pub(crate) message_id: Value,
    /// The id of the model's call.
    pub(crate) id: String,
}

/// The calls of one child.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) tools: Arc<[CallerTool]>,
    /// Those of the present message, until it has ended and one of them is asked for.
    made: Vec<ToolCall>,
    /// Length of the lines that made them.
    bytes: usize,
    lists: u32,
    /// The message has ended.
    ended: bool,
    usage: Usage,
    open: Vec<OpenCall>,
    /// Given before the CLI asked.
    early: HashMap<String, ToolResult>,
    /// Tokens that were reported to callers.
    reported: Usage,
    /// The caller gave results since the last message: a call without one gets none.
    answered: bool,
}

/// The caller's part of a turn is over: the model waits.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Called {
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) usage: Usage,
}

/// A turn that waits for its caller.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) until: Instant,
    /// It was asked to end.
    pub(crate) is_ending: bool,
    /// How often.
    pub(crate) interrupts: u32,
}

impl Calls {
    pub(crate) fn new(tools: Arc<[CallerTool]>) -> Self {
        Self { tools, ..Self::default() }
    }

    /// Whether the session has tools of its caller.
    pub(crate) fn are_possible(&self) -> bool {
        !self.tools.is_empty()
    }

    /// Whether the CLI waits for a result.
    pub(crate) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    pub(crate) fn message_began(&mut self) {
        (self.ended, self.answered) = (false, false);
        self.made.clear();
        self.early.clear();
        self.bytes = 0;
    }

    /// Calls that a line of this length makes. Those beyond the limits, and of no tool that is offered, are not the
    /// caller's, and get no result.
    pub(crate) fn made(&mut self, calls: Vec<ToolCall>, bytes: usize) {
        if calls.is_empty() {
            return;
        }
        if self.answered {
            // Of a message whose begin was not reported.
            self.message_began();
        }
        let total = self.bytes.saturating_add(bytes);
        if total > MOST_BYTES {
            return;
        }
        self.bytes = total;
        for call in calls {
            let is_offered = self.tools.iter().any(|tool| tool.name() == call.name);
            let is_new = self.made.iter().all(|other| other.id != call.id);
            if is_offered && is_new && self.made.len() < MOST_CALLS {
                self.made.push(call);
            }
        }
    }

    /// Whether the child gets a list of the tools.
    pub(crate) fn may_list(&mut self) -> bool {
        self.lists += 1;
        self.lists <= MOST_LISTS
    }

    pub(crate) fn message_ended(&mut self, usage: Usage) {
        self.ended = true;
        self.usage = usage;
    }

    /// The CLI asks for a result: that which is there already, or an error if there will be none.
    pub(crate) fn asked(&mut self, call: OpenCall) -> Option<(OpenCall, ToolResult)> {
        if let Some(result) = self.early.remove(&call.id) {
            return Some((call, result));
        }
        if self.answered || self.open.len() >= MOST_CALLS {
            let result = without_result(&call.id);
            return Some((call, result));
        }
        self.open.push(call);
        None
    }

    /// The CLI withdrew a request. Whether it was open.
    pub(crate) fn withdraw(&mut self, request_id: &str) -> bool {
        let before = self.open.len();
        self.open.retain(|call| call.request_id != request_id);
        self.open.len() < before
    }

    /// The calls for the caller, once the message is complete and the CLI waits for one of them.
    pub(crate) fn take_due(&mut self) -> Option<Called> {
        let is_due = self.ended && self.are_open() && !self.made.is_empty();
        is_due.then(|| {
            let usage = std::mem::take(&mut self.usage);
            self.reported = self.reported.and(&usage);
            Called { calls: std::mem::take(&mut self.made), usage }
        })
    }

    /// Whether one of the results is for an open call.
    pub(crate) fn expect_any(&self, results: &[ToolResult]) -> bool {
        self.open.iter().any(|call| results.iter().any(|result| result.id == call.id))
    }

    /// The caller's results: what the CLI is to be answered now. An open call without a result gets an error: nobody
    /// would answer it any more.
    pub(crate) fn answer(&mut self, results: &[ToolResult]) -> Vec<(OpenCall, ToolResult)> {
        self.answered = true;
        self.early = results.iter().map(|result| (result.id.clone(), result.clone())).collect();
        let open = std::mem::take(&mut self.open);
        open.into_iter()
            .map(|call| {
                let result = self.early.remove(&call.id).unwrap_or_else(|| without_result(&call.id));
                (call, result)
            })
            .collect()
    }

    /// The answer to a call that nobody waits for.
    pub(crate) fn refuse(call: OpenCall) -> (OpenCall, ToolResult) {
        let result = without_result(&call.id);
        (call, result)
    }

    /// Nobody answers: errors for all that is open.
    pub(crate) fn give_up(&mut self) -> Vec<(OpenCall, ToolResult)> {
        self.answer(&[])
    }

    /// Tokens of the present turn that were reported to callers.
    pub(crate) fn reported_usage(&self) -> Usage {
        self.reported
    }

    /// The turn is over.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.tools.clone());
    }
}

fn without_result(id: &str) -> ToolResult {
    ToolResult::text(id, "the caller gave no result of this call").failed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(id: &str) -> ToolCall {
        ToolCall::new(id.into(), "add".into(), json!({}))
    }

    fn open(id: &str) -> OpenCall {
        OpenCall { request_id: format!("r-{id}"), message_id: json!(1), id: id.into() }
    }

    fn calls() -> Calls {
        let tool = CallerTool::new("add", None, serde_json::Map::new()).unwrap();
        let mut calls = Calls::new([tool].into());
        calls.message_began();
        calls
    }

    #[test]
    fn calls_are_due_when_their_message_is_complete() {
        let mut calls = calls();
        calls.made(vec![call("a")], 100);
        assert_eq!(calls.asked(open("a")), None, "before the message has ended");
        assert_eq!(calls.take_due(), None);
        calls.made(vec![call("b")], 100);
        calls.message_ended(Usage { output_tokens: 3, ..Usage::default() });
        let due = calls.take_due().unwrap();
        assert_eq!((due.calls.len(), due.usage.output_tokens), (2, 3));
        assert_eq!(calls.take_due(), None, "once");
    }

    #[test]
    fn calls_beyond_the_limits_are_not_kept() {
        let mut calls = calls();
        calls.made(vec![call("a")], MOST_BYTES);
        calls.made(vec![call("b")], 1);
        calls.made((0..MOST_CALLS).map(|number| call(&number.to_string())).collect(), 0);
        assert_eq!(calls.made.len(), MOST_CALLS);
        assert_eq!((calls.made[0].id.as_str(), calls.made[1].id.as_str()), ("a", "0"));
    }

    #[test]
    fn refused_calls_are_not_the_callers() {
        let mut calls = calls();
        calls.made(vec![call("a")], 100);
        calls.message_ended(Usage::default());
        // The CLI answers the model itself and goes on.
        assert_eq!(calls.take_due(), None);
        calls.message_began();
        assert_eq!(calls.asked(open("z")), None);
        calls.message_ended(Usage::default());
        assert_eq!(calls.take_due(), None, "no call of this message");
    }

    #[test]
    fn each_call_gets_one_result() {
        let mut calls = calls();
        calls.asked(open("a"));
        calls.asked(open("b"));
        let results = [ToolResult::text("a", "1"), ToolResult::text("later", "2")];
        assert!(calls.expect_any(&results) && !calls.expect_any(&results[1..]));
        let answers = calls.answer(&results);
        assert_eq!(answers[0], (open("a"), results[0].clone()));
        assert!(answers[1].1.is_error, "b has none");
        assert_eq!(calls.asked(open("later")).unwrap().1, results[1]);
        assert!(calls.asked(open("later")).unwrap().1.is_error);
        assert!(!calls.are_open());
        calls.message_began();
        assert_eq!(calls.asked(open("c")), None, "a new message asks again");
        assert!(calls.withdraw("r-c") && !calls.withdraw("r-c"));
        calls.asked(open("d"));
        assert_eq!(calls.give_up().len(), 1);
    }

    /// A child can write any line.
    #[test]
    fn calls_that_are_none_of_the_callers_are_left_out() {
        let mut calls = calls();
        let other = ToolCall { name: "other".into(), ..call("x") };
        calls.made(vec![call("a"), call("a"), other], 1);
        calls.made(vec![call("b")], MOST_BYTES);
        calls.asked(open("a"));
        calls.message_ended(Usage::default());
        assert_eq!(calls.take_due().unwrap().calls, [call("a")]);
        assert!((0..MOST_LISTS).all(|_| calls.may_list()) && !calls.may_list());
    }

    /// A CLI that repeats a request without streaming reports neither begin nor end of the message.
    #[test]
    fn later_message_without_a_begin_has_calls_of_its_own() {
        let mut calls = calls();
        calls.made(vec![call("a")], 1);
        calls.asked(open("a"));
        calls.message_ended(Usage::default());
        assert!(calls.take_due().is_some());
        calls.answer(&[ToolResult::text("a", "1")]);
        calls.made(vec![call("b")], 1);
        assert_eq!(calls.asked(open("b")), None, "the caller can answer it");
        calls.message_ended(Usage::default());
        assert_eq!(calls.take_due().unwrap().calls, [call("b")]);
    }
}
