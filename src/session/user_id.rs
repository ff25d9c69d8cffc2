//! The user id that a session's children run as, before the session asks for what others wait for.

use std::io;

use tokio::time::{Duration, Instant, timeout};

use super::lifecycle::Plan;
use crate::error::TurnError;
use crate::isolation::UidError;
use crate::support::blocking::blocking;
use crate::telemetry::metrics::SpareEnd;

/// Maximum wait for the id of a spare, whose end takes some milliseconds.
const MOST_WAIT: Duration = Duration::from_secs(10);
/// A spare may end without an id: then the next one goes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Gives the session's user an id. Where none is free, a spare gives way.
///
/// # Errors
/// [`TurnError::NoUserId`], [`TurnError::Storage`].
pub(super) async fn ensure(plan: &Plan) -> Result<(), TurnError> {
    let deadline = Instant::now() + MOST_WAIT;
    loop {
        let isolation = &plan.env().isolation;
        // Before the look, so that nothing between both is missed.
        let freed = isolation.freed();
        let (env, user) = (plan.env().clone(), plan.entry.key.user().clone());
        match blocking(move || Ok(env.isolation.owner(&user))).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(UidError::Held(_))) if Instant::now() < deadline => {
                plan.sessions.shelf.end_any(SpareEnd::Room);
                timeout(LOOK_AGAIN, freed).await.ok();
            }
            Ok(Err(error @ (UidError::Held(_) | UidError::Exhausted(_)))) => {
                tracing::error!(%error, "a user gets no user id");
                return Err(TurnError::NoUserId);
            }
            Ok(Err(error)) => return Err(TurnError::Storage(io::Error::from(error).into())),
            Err(error) => return Err(TurnError::Storage(error.into())),
        }
    }
}
