//! Users who came with unknown tokens and are let go again.
//!
//! Any text is a token, so a caller without keys can begin a user with each request. New users are limited
//! (`http.new_users_per_minute`), and each is deleted once it has rested for [`UNANSWERED`] without a single answer. With
//! `retention.idle_days` the tokens of users without sessions expire as well.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use crate::model::ids::UserId;
use crate::server::app::App;
use crate::support::blocking::blocking;

/// Time that a new user has for a first answer. A session that is in memory is in use, and keeps its user longer.
const UNANSWERED: Duration = Duration::from_secs(600);
/// Pause between two rounds over the new users.
const ROUND: Duration = Duration::from_secs(5);
/// Users that are let go in one round, each by some ten removals.
const LET_GO_AT_ONCE: usize = 200;

/// Lets users go, until the task is dropped.
pub(crate) async fn reclaim(app: Arc<App>) {
    let interval = app.pilot.config().retention.sweep_interval;
    let mut last_expiry = Instant::now();
    loop {
        sleep(ROUND.min(interval)).await;
        if let Err(error) = reclaim_some(&app).await {
            tracing::warn!(%error, "users without an answer could not be looked at");
        }
        if last_expiry.elapsed() >= interval {
            if let Err(error) = expire_some(&app).await {
                tracing::warn!(%error, "the tokens of users without sessions could not be removed");
            }
            last_expiry = Instant::now();
        }
    }
}

/// Deletes users whose time for a first answer is over.
async fn reclaim_some(app: &Arc<App>) -> io::Result<()> {
    let index = app.identities.index.clone();
    let listed =
        blocking(move || Ok(index.new_before(before(UNANSWERED)).take(LET_GO_AT_ONCE).collect::<Vec<_>>()));
    let mut deleted = 0;
    for user in listed.await? {
        match app.delete_unanswered(&user).await {
            Ok(is_deleted) => deleted += usize::from(is_deleted),
            // Tried again in the next round; it holds up no other.
            Err(error) => tracing::warn!(code = error.code(), "a user without an answer is not deleted yet"),
        }
    }
    if deleted > 0 {
        tracing::info!(deleted, "users who came with unknown tokens and got no answer were deleted");
    }
    Ok(())
}

/// Removes the tokens of users who have no session and sent no new token for `retention.idle_days`.
async fn expire_some(app: &Arc<App>) -> io::Result<()> {
    let Some(age) = app.pilot.config().retention.idle() else { return Ok(()) };
    let index = app.identities.index.clone();
    let data_dir = app.pilot.config().data_dir.clone();
    let idle = blocking(move || {
        let without_sessions = |user: &UserId| !has_sessions(&data_dir, user);
        Ok(index.known_before(before(age)).filter(without_sessions).take(LET_GO_AT_ONCE).collect::<Vec<_>>())
    });
    for user in idle.await? {
        // A request of the user is in progress, or the user is being deleted.
        let Some(closed) = app.pilot.try_close(&user) else { continue };
        let (identities, data_dir) = (app.identities.clone(), app.pilot.config().data_dir.clone());
        blocking(move || {
            let _closed = closed;
            if has_sessions(&data_dir, &user) { Ok(()) } else { identities.forget_now(&user) }
        })
        .await?;
    }
    Ok(())
}

fn has_sessions(data_dir: &std::path::Path, user: &UserId) -> bool {
    crate::workspace::user_dir(data_dir, user).symlink_metadata().is_ok()
}

/// This long ago.
fn before(age: Duration) -> SystemTime {
    SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}
