//! Tokens that the CLI of a session, or the broker, has renewed: they are in its credentials file.
//!
//! A session is marked before its child starts ([`TokenIndex::mark_renewing`]). Only marked sessions are searched for an
//! unknown token: those with a child, and those whose child ended lately. Once a child has ended its tokens are entered
//! in the index, and the mark is removed: at most [`SETTLED_AT_ONCE`] in a round.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::{Digest, Identities, digest};
use crate::model::ids::{SessionHash, UserId};
use crate::server::app::App;
use crate::support::secret_file::FileId;
use crate::system::Pilotlight;

/// Files in memory, some 200 bytes each. Others are read each time.
const MAX_FILES: usize = 10_000;
/// Pause between two rounds. A search costs some 30 µs for each session that waits for the next one.
const ROUND: Duration = Duration::from_secs(5);
/// Sessions whose tokens are entered in one round, each in some milliseconds.
const SETTLED_AT_ONCE: usize = 500;

type Held = (FileId, [Digest; 2]);

#[derive(Default)]
pub(crate) struct Renewed {
    seen: Arc<Mutex<HashMap<SessionHash, Held>>>,
}

impl Renewed {
    /// The user with a session that holds the presented access token, else the refresh token. One search at a time: a
    /// crowd of strangers queues, and occupies one thread for blocking work.
    pub(crate) async fn owner(
        &self,
        pilot: &Pilotlight,
        identities: &Identities,
        presented: [Digest; 2],
    ) -> Option<UserId> {
        let mut seen = self.seen.clone().lock_owned().await;
        let (pilot, identities) = (pilot.clone(), identities.clone());
        let search = move || search(&pilot, &identities, &presented, &mut seen);
        // A failed search is that of an unknown token.
        tokio::task::spawn_blocking(search).await.unwrap_or_default()
    }
}

fn search(
    pilot: &Pilotlight,
    identities: &Identities,
    presented: &[Digest; 2],
    before: &mut HashMap<SessionHash, Held>,
) -> Option<UserId> {
    let mut now = HashMap::new();
    let mut matching = [None, None];
    for session in identities.index.marked() {
        let Some((stamp, held)) = look(pilot, &session, before.remove(&session)) else { continue };
        for (kind, found) in matching.iter_mut().enumerate() {
            if found.is_none() && held.get(kind) == presented.get(kind) {
                *found = pilot.owner(&session);
            }
        }
        if now.len() < MAX_FILES {
            now.insert(session, (stamp, held));
        }
    }
    *before = now;
    let [by_access, by_refresh] = matching;
    by_access.or(by_refresh)
}

/// Enters the tokens of ended children in the index, until the task is dropped.
pub(crate) async fn settle(app: Arc<App>) {
    loop {
        let (pilot, identities) = (app.pilot.clone(), app.identities.clone());
        let round = tokio::task::spawn_blocking(move || settle_some(&pilot, &identities)).await;
        match round {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "renewed tokens could not be saved yet"),
            Err(_) => tracing::error!("saving renewed tokens failed"),
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// # Errors
/// The first one. A session that fails is tried again in the next round and holds up no other.
fn settle_some(pilot: &Pilotlight, identities: &Identities) -> std::io::Result<()> {
    let (mut settled, mut result) = (0, Ok(()));
    for session in identities.index.marked() {
        let done = pilot.without_child(&session, || {
            if let (Some((_, held)), Some(user)) = (look(pilot, &session, None), pilot.owner(&session)) {
                identities.learn_now(&user, held)?;
            }
            identities.index.settle(&session)
        });
        settled += usize::from(done.is_some());
        result = result.and(done.unwrap_or(Ok(())));
        if settled == SETTLED_AT_ONCE {
            break;
        }
    }
    result
}

/// Tokens of a session's credentials file; cached while the file is unchanged.
fn look(pilot: &Pilotlight, session: &SessionHash, before: Option<Held>) -> Option<Held> {
    let file = pilot.credentials_file(&pilot.workspace(session)?)?;
    let id = file.id()?;
    if let Some(before) = before.filter(|(seen, _)| *seen == id) {
        return Some(before);
    }
    let stored = file.read()?;
    let access = digest("access", stored.access_token?.as_bytes());
    Some((id, [access, digest("refresh", stored.refresh_token?.as_bytes())]))
}
