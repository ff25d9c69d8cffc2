//! The readers of turns, in the server's process: eager, slow, or gone before the end. They report what they saw, and
//! whether the stream kept its rules.

use std::time::Duration;

use pilotlight::turn::Status;
use pilotlight::{Outcome, Turn, TurnError};

use crate::plan::Reader;
use crate::wire::{Ended, Fate, Nonce, nonces};

/// Pause of a slow reader after each of its first events.
const SLOW: Duration = Duration::from_millis(15);
const SLOW_EVENTS: usize = 25;

/// Reads a turn as `reader` does.
pub async fn read(number: u64, mut turn: Turn, reader: Reader) -> Ended {
    let mut ended = Ended {
        number,
        fate: Fate::Dropped,
        text: String::new(),
        nonces: Vec::new(),
        loss_reported: false,
        events: 0,
        retries: 0,
        irregular: None,
    };
    let mut seen: Vec<Nonce> = Vec::new();
    let mut errors: Vec<TurnError> = Vec::new();
    let mut terminals = 0;
    loop {
        if matches!(reader, Reader::Drops(after) if ended.events >= after) {
            drop(turn);
            break;
        }
        let event = match turn.next().await {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                errors.push(error);
                continue;
            }
            None => {
                ended.irregular = irregularity(&mut turn, &errors, terminals).await;
                conclude(&mut ended, turn.outcome().expect("it has ended"));
                break;
            }
        };
        if !errors.is_empty() {
            ended.irregular = Some("an event after the error".to_owned());
        }
        ended.events += 1;
        terminals += usize::from(event.is_terminal());
        let text = event.to_text();
        ended.loss_reported |= text.contains("\"context_lost\"");
        seen.extend(nonces(&text));
        if reader == Reader::Slow && ended.events <= SLOW_EVENTS {
            tokio::time::sleep(SLOW).await;
        }
    }
    seen.sort_unstable();
    seen.dedup();
    ended.nonces = seen;
    ended
}

/// What is wrong with the end of a stream, if anything is.
async fn irregularity(turn: &mut Turn, errors: &[TurnError], terminals: usize) -> Option<String> {
    for _ in 0..3 {
        if turn.next().await.is_some() {
            return Some("something came after the end".to_owned());
        }
    }
    let outcome = turn.outcome().expect("it has ended");
    let expected = usize::from(!matches!(outcome.status, Status::Aborted(_)));
    match (&outcome.status, errors) {
        (Status::Aborted(error), [only]) if error == only => {}
        (Status::Completed | Status::Failed(_), []) => {}
        _ => return Some(format!("the outcome is {:?}, the stream's errors are {errors:?}", outcome.status)),
    }
    (terminals > 1 || terminals < expected)
        .then(|| format!("{terminals} terminal events and {:?}", outcome.status))
}

fn conclude(ended: &mut Ended, outcome: &Outcome) {
    ended.fate = match &outcome.status {
        Status::Completed => Fate::Completed,
        Status::Failed(_) => Fate::Failed,
        Status::Aborted(error) => Fate::Aborted {
            code: error.code().to_owned(),
            why: error.to_string().chars().take(200).collect(),
        },
        other => panic!("unknown status: {other:?}"),
    };
    // Of a large answer only what names turns counts.
    ended.text = nonces(&outcome.text).iter().map(Nonce::to_string).collect();
    ended.retries = outcome.retries;
    // A turn whose actor failed ends without what the actor knew; the next one reports it again.
    let unknown = matches!(&outcome.status, Status::Aborted(TurnError::Internal(_))) && ended.loss_reported;
    if ended.loss_reported != outcome.context_lost && !unknown {
        ended.irregular = Some(format!(
            "context lost: {} by its events, {} by its outcome",
            ended.loss_reported, outcome.context_lost
        ));
    }
}
