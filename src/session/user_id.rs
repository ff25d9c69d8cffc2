//! The user id that a session's children run as, before the session asks for what others wait for.

use std::io;

use tokio::time::{Duration, Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::lifecycle::Plan;
use crate::error::TurnError;
use crate::isolation::UidError;
use crate::support::blocking::blocking;

/// Maximum wait for the id of a spare, whose end takes some milliseconds.
const MOST_WAIT: Duration = Duration::from_secs(10);
/// Pause between two looks while no spare can be ended: their ids are on the way, or about to be taken.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// When to try again: an id that may have a process is looked for every five seconds.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Gives the session's user an id. Where none is free, a spare gives way.
///
/// # Errors
/// [`TurnError::NoUserId`], [`TurnError::Storage`].
pub(super) async fn ensure(plan: &Plan) -> Result<(), TurnError> {
    let (isolation, shelf) = (&plan.env().isolation, &plan.sessions.shelf);
    // Not even a thread is asked then.
    if !isolation.has_owners() {
        return Ok(());
    }
    let deadline = Instant::now() + MOST_WAIT;
    let mut own_turn = None;
    let mut leaving: Option<CancellationToken> = None;
    loop {
        // Before the look, so that nothing between both is missed.
        let freed = isolation.freed();
        let (env, user) = (plan.env().clone(), plan.entry.key.user().clone());
        let found = blocking(move || Ok(env.isolation.owner(&user))).await;
        let error = match found.map_err(|error| TurnError::Storage(error.into()))? {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let retry_after = match error {
            UidError::Held(_) if Instant::now() < deadline => {
                if own_turn.is_none() {
                    // One after the other: the id that is on its way to one is not what another counts on.
                    own_turn = timeout_at(deadline, shelf.id_waits.lock()).await.ok();
                    continue;
                }
                // The next spare goes only if the last one is gone and has left no id.
                if leaving.as_ref().is_none_or(CancellationToken::is_cancelled) {
                    leaving = shelf.end_for_id();
                }
                let look_again = Instant::now() + LOOK_AGAIN;
                tokio::select! {
                    () = freed => {}
                    () = async { if let Some(gone) = &leaving { gone.cancelled().await } }, if leaving.is_some() => {}
                    () = sleep_until(if leaving.is_some() { deadline } else { look_again.min(deadline) }) => {}
                }
                continue;
            }
            UidError::Held(_) | UidError::Doubted(_) => Some(RETRY_AFTER),
            UidError::Exhausted(_) => None,
            error => return Err(TurnError::Storage(io::Error::from(error).into())),
        };
        tracing::error!(%error, "a user gets no user id");
        return Err(TurnError::NoUserId { retry_after });
    }
}
