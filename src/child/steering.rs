//! Texts that callers put into the running turn. Pure.
//!
//! The CLI reads them when a tool has ended. A text is kept here until a tool runs; then it is the CLI's. Whether the CLI has
//! read it is known when it can be withdrawn no more.

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::adapter::ToolEdge;
use crate::model::SteerError;

/// Maximum texts of one turn that wait at once. A person writes one or two.
pub(crate) const MOST_STEERS: usize = 8;

/// A text, and who waits to know whether the turn has read it.
#[derive(Debug)]
pub(crate) struct Steer {
    pub(crate) text: String,
    /// Id of its message.
    pub(crate) id: Uuid,
    /// True: it was read in the turn.
    pub(crate) reply: oneshot::Sender<Result<bool, SteerError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Here.
    Kept,
    /// With the CLI. `results`: of tools have come since.
    Sent { results: bool },
    /// It was asked to give it back: by the request of this number.
    Asked { request: u64 },
    /// It could not give it back.
    Read,
}

/// The CLI's turn when it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CliTurn {
    Runs,
    /// For the caller's tools: its caller's part is over.
    Waits,
    /// Or about to end. A message that is left begins another one.
    Over,
}

/// The texts of one child's turn.
#[derive(Debug, Default)]
pub(crate) struct Steering {
    steers: Vec<(Steer, Place)>,
    /// Tools that run in the turn.
    tools: usize,
}

impl Steering {
    /// Takes a text; replies at once if there is no room.
    pub(crate) fn add(&mut self, steer: Steer) {
        self.steers.retain(|(steer, place)| *place != Place::Kept || !steer.reply.is_closed());
        if self.steers.len() < MOST_STEERS {
            self.steers.push((steer, Place::Kept));
        } else {
            steer.reply.send(Err(SteerError::TooMany { most: MOST_STEERS })).ok();
        }
    }

    /// Whether the CLI may have a text of which it is not known whether it was read.
    pub(crate) fn are_out(&self) -> bool {
        self.steers.iter().any(|(_, place)| *place != Place::Kept)
    }

    /// What the CLI can be given now: it reads it when the tools that run have ended. A text whose sender has gone is dropped.
    pub(crate) fn take_sendable(&mut self) -> Vec<(String, Uuid)> {
        if self.tools == 0 {
            return Vec::new();
        }
        self.steers.retain(|(steer, place)| *place != Place::Kept || !steer.reply.is_closed());
        let kept = self.steers.iter_mut().filter(|(_, place)| *place == Place::Kept);
        let sent = kept.map(|(steer, place)| {
            *place = Place::Sent { results: false };
            (steer.text.clone(), steer.id)
        });
        sent.collect()
    }

    /// Notes what a line says about tools. Texts that the model has seen by now, unless they came too late for the
    /// results of the tools, and requests whether they did.
    pub(crate) fn note(
        &mut self,
        edge: ToolEdge,
        mut request: impl FnMut() -> u64,
    ) -> Vec<(String, Uuid, u64)> {
        match edge {
            ToolEdge::Call => self.tools += 1,
            ToolEdge::Text => self.tools = 0,
            ToolEdge::Result => self.tools = self.tools.saturating_sub(1),
        }
        let mut asked = Vec::new();
        for (steer, place) in &mut self.steers {
            match (*place, edge) {
                (Place::Sent { .. }, ToolEdge::Result) => *place = Place::Sent { results: true },
                (Place::Sent { results: true }, ToolEdge::Call | ToolEdge::Text) => {
                    let request = request();
                    *place = Place::Asked { request };
                    asked.push((steer.text.clone(), steer.id, request));
                }
                _ => {}
            }
        }
        asked
    }

    /// The turn ends, or is about to: what is here is not read in it, and the CLI is to give the rest back.
    pub(crate) fn end(&mut self, mut request: impl FnMut() -> u64) -> Vec<(Uuid, u64)> {
        self.tools = 0;
        self.reply_to(false, |place| place == Place::Kept);
        let sent = self.steers.iter_mut().filter(|(_, place)| matches!(place, Place::Sent { .. }));
        let asked = sent.map(|(steer, place)| {
            let request = request();
            *place = Place::Asked { request };
            (steer.id, request)
        });
        asked.collect()
    }

    /// The CLI has answered a request.
    pub(crate) fn answered(&mut self, request: u64, was_withdrawn: bool, turn: CliTurn) {
        let of_request = |place: Place| place == Place::Asked { request };
        match (was_withdrawn, turn) {
            (true, CliTurn::Runs) => {
                // It came too late for those tools; there may be others.
                for (steer, place) in self.steers.iter_mut().filter(|(_, place)| of_request(*place)) {
                    *place = Place::Kept;
                    // The CLI drops a message whose id it has seen.
                    steer.id = Uuid::from_u128(steer.id.as_u128().wrapping_add(1));
                }
            }
            (true, CliTurn::Waits | CliTurn::Over) => self.reply_to(false, of_request),
            (false, CliTurn::Runs | CliTurn::Waits) => self.reply_to(true, of_request),
            (false, CliTurn::Over) => {
                for (_, place) in self.steers.iter_mut().filter(|(_, place)| of_request(*place)) {
                    *place = Place::Read;
                }
            }
        }
    }

    /// The turn is over, and no other has begun: what the CLI could not give back was read in the turn.
    pub(crate) fn settle_read(&mut self) {
        self.reply_to(true, |place| place == Place::Read);
    }

    /// Nothing of it was read in the turn.
    pub(crate) fn give_up(&mut self) {
        self.reply_to(false, |_| true);
    }

    fn reply_to(&mut self, was_read: bool, which: impl Fn(Place) -> bool) {
        for (steer, _) in self.steers.extract_if(.., |(_, place)| which(*place)) {
            // Its sender may have stopped waiting.
            steer.reply.send(Ok(was_read)).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reply = oneshot::Receiver<Result<bool, SteerError>>;

    fn add(steering: &mut Steering, text: &str) -> Reply {
        let (reply, answer) = oneshot::channel();
        steering.add(Steer { text: text.into(), id: Uuid::from_u128(1), reply });
        answer
    }

    fn sent(steering: &mut Steering) -> Vec<String> {
        steering.take_sendable().into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn text_waits_for_a_tool() {
        let mut steering = Steering::default();
        let mut reply = add(&mut steering, "a");
        assert!(sent(&mut steering).is_empty() && !steering.are_out());
        assert!(steering.note(ToolEdge::Call, || 1).is_empty());
        assert_eq!(sent(&mut steering), ["a"]);
        assert!(sent(&mut steering).is_empty() && steering.are_out(), "once");
        assert!(steering.note(ToolEdge::Result, || 1).is_empty());
        let asked = steering.note(ToolEdge::Text, || 7);
        assert_eq!(asked, [("a".to_owned(), Uuid::from_u128(1), 7)]);
        steering.answered(7, false, CliTurn::Runs);
        assert_eq!(reply.try_recv().unwrap(), Ok(true));
        assert!(!steering.are_out());
    }

    #[test]
    fn text_that_came_too_late_waits_for_the_next_tool() {
        let mut steering = Steering::default();
        let mut reply = add(&mut steering, "a");
        steering.note(ToolEdge::Call, || 0);
        sent(&mut steering);
        steering.note(ToolEdge::Result, || 0);
        steering.note(ToolEdge::Call, || 3);
        steering.answered(3, true, CliTurn::Runs);
        assert_eq!(steering.take_sendable(), [("a".to_owned(), Uuid::from_u128(2))], "under another id");
        assert!(reply.try_recv().is_err());
        assert_eq!(steering.end(|| 4), [(Uuid::from_u128(2), 4)]);
        steering.answered(4, true, CliTurn::Over);
        assert_eq!(reply.try_recv().unwrap(), Ok(false));
    }

    #[test]
    fn end_of_the_turn_settles_every_text() {
        let mut steering = Steering::default();
        steering.note(ToolEdge::Call, || 0);
        let mut out = add(&mut steering, "out");
        sent(&mut steering);
        steering.note(ToolEdge::Text, || 0);
        let mut kept = add(&mut steering, "kept");
        assert_eq!(steering.end(|| 5).len(), 1);
        assert_eq!(kept.try_recv().unwrap(), Ok(false));
        steering.answered(5, false, CliTurn::Over);
        assert!(out.try_recv().is_err(), "perhaps another turn begins with it");
        steering.settle_read();
        assert_eq!(out.try_recv().unwrap(), Ok(true));
        let mut next = add(&mut steering, "next");
        steering.give_up();
        assert_eq!(next.try_recv().unwrap(), Ok(false));
    }

    #[test]
    fn texts_beyond_the_limit_are_refused() {
        let mut steering = Steering::default();
        let waiting: Vec<Reply> = (0..MOST_STEERS).map(|_| add(&mut steering, "a")).collect();
        let refused = Err(SteerError::TooMany { most: MOST_STEERS });
        assert_eq!(add(&mut steering, "b").try_recv().unwrap(), refused);
        // Whose senders have gone make room, and are not read.
        drop(waiting);
        let mut reply = add(&mut steering, "c");
        assert!(reply.try_recv().is_err());
        steering.note(ToolEdge::Call, || 0);
        assert_eq!(sent(&mut steering), ["c"]);
    }
}
