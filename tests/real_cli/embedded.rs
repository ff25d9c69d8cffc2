//! The system inside a test's own process, on the real CLI: for what the service has no words for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pilotlight::model::SessionState;
use pilotlight::turn::Status;
use pilotlight::{Config, Event, Outcome, Pilotlight, Session, Turn, TurnError};
use serde_json::Value;
use tokio::time::timeout;

use super::bench::Bench;
use crate::common::place::{MARK, Place};
use crate::common::process::Process;
use crate::common::{SOON, eventually, eventually_some};

/// The longest that any turn of these tests takes, a start on a busy machine included.
const TURN_WITHIN: Duration = Duration::from_secs(90);

/// A running system. At its end nothing of it may be left.
pub(crate) struct Embedded {
    pub(crate) pilot: Pilotlight,
    place: Arc<Place>,
}

impl Bench {
    /// Starts the system; `change` is what this test needs.
    pub(crate) async fn embed(&self, change: impl FnOnce(&mut Config)) -> Embedded {
        self.embed_in(&self.place.data_dir(), change).await
    }

    /// The same with a data directory of the test's choice.
    pub(crate) async fn embed_in(&self, data: &Path, change: impl FnOnce(&mut Config)) -> Embedded {
        let mut config = Config::new(data);
        config.cli.program = self.cli.display().to_string();
        config.cli.shim = Some(env!("CARGO_BIN_EXE_pilotlight-shim").into());
        config.cli.env_pass = vec!["PATH".into()];
        config.cli.env.extend(self.environment().map(|(name, value)| (name.to_owned(), value)));
        config.cli.env.insert(MARK.into(), self.place.id().into());
        change(&mut config);
        let pilot = Pilotlight::start(config).await.expect("it starts");
        Embedded { pilot, place: Arc::clone(&self.place) }
    }
}

impl Embedded {
    pub(crate) fn alice(&self) -> Session {
        self.pilot.session("alice")
    }

    /// Stops the system in order, and sees that nothing is left.
    pub(crate) async fn end(self) {
        self.pilot.shutdown(Duration::from_secs(5)).await;
        let left = self.place.leftovers();
        assert!(left.is_empty(), "left after the shutdown: {left:#?}");
    }
}

/// Sends a message and gives the turn.
pub(crate) async fn send(session: &Session, text: &str) -> Turn {
    session.send(text).await.expect("the turn is accepted")
}

/// Sends a message and reads the turn to its end.
pub(crate) async fn ask(session: &Session, text: &str) -> Outcome {
    finish(send(session, text).await).await
}

/// An answer that must come.
pub(crate) async fn say(session: &Session, text: &str) -> String {
    let outcome = ask(session, text).await;
    assert!(outcome.is_ok(), "{text:.80}: {outcome:?}");
    outcome.text
}

pub(crate) async fn finish(turn: Turn) -> Outcome {
    timeout(TURN_WITHIN, turn.finish()).await.expect("the turn ends in time")
}

/// Reads a turn to its end and gives all of its events.
pub(crate) async fn read(mut turn: Turn) -> (Vec<Value>, Outcome) {
    let mut events = Vec::new();
    while let Some(Ok(event)) = timeout(TURN_WITHIN, turn.next()).await.expect("the turn goes on") {
        events.push(json(&event));
    }
    let outcome = turn.outcome().expect("it has ended").clone();
    (events, outcome)
}

/// Reads a turn up to the first event that is wanted.
pub(crate) async fn until(turn: &mut Turn, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let event = timeout(TURN_WITHIN, turn.next()).await.expect("the turn goes on");
        let event = event.unwrap_or_else(|| panic!("the turn ended before {what}: {:?}", turn.outcome()));
        let event = json(&event.unwrap_or_else(|error| panic!("the turn failed before {what}: {error}")));
        if wanted(&event) {
            return event;
        }
    }
}

/// Reads a turn up to an event, or to its end.
pub(crate) async fn until_or_end(turn: &mut Turn, wanted: impl Fn(&Value) -> bool) {
    while let Some(Ok(event)) = timeout(TURN_WITHIN, turn.next()).await.expect("the turn goes on") {
        if wanted(&json(&event)) {
            break;
        }
    }
}

pub(crate) async fn until_text(turn: &mut Turn) {
    until(turn, "a text delta", |event| event["event"]["delta"]["type"] == "text_delta").await;
}

fn json(event: &Event) -> Value {
    serde_json::from_slice(event.as_bytes()).expect("an event is JSON")
}

/// How a turn failed that the CLI itself ended.
pub(crate) fn failure(outcome: &Outcome) -> &pilotlight::model::Failure {
    match &outcome.status {
        Status::Failed(failure) => failure,
        other => panic!("not a failure from the CLI: {other:?}"),
    }
}

/// Why a turn has no answer.
pub(crate) fn aborted(outcome: &Outcome) -> &TurnError {
    match &outcome.status {
        Status::Aborted(error) => error,
        other => panic!("not aborted: {other:?}"),
    }
}

/// The process that serves the session.
pub(crate) fn child(session: &Session) -> Process {
    let pid = session.status().and_then(|status| status.pid).expect("a child");
    Process::of(pid.cast_signed()).expect("it lives")
}

pub(crate) async fn until_state(session: &Session, state: SessionState) {
    let is_so = || session.status().is_some_and(|status| status.state == state);
    eventually(&format!("the session is {state}"), SOON, is_so).await;
}

/// Waits until the session counts exactly this number of turns.
pub(crate) async fn until_turns(session: &Session, turns: u64) {
    let counted = async || session.status().filter(|status| status.turns >= turns).map(|status| status.turns);
    assert_eq!(eventually_some(&format!("{turns} turns"), SOON, counted).await, turns);
}
