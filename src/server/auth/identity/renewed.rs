//! Tokens that the CLI of a session, or the broker, has renewed: they are in its credentials file.
//!
//! A session is marked before its child starts ([`TokenIndex::mark_renewing`]). Only marked sessions are searched for an
//! unknown token: those with a child, and those whose child ended lately. Once a child has ended its tokens are entered
//! in the index, and the mark is removed: at most [`SETTLED_AT_ONCE`] in a round. Requests share searches ([`Rounds`]): a
//! crowd of strangers costs no more of them, and keeps nobody whose token is found from being served.

use std::collections::HashMap;
#[cfg(feature = "cluster")]
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::rounds::Rounds;
use super::{Digest, Identities, digest};
use crate::model::ids::{SessionHash, UserId};
use crate::server::app::App;
#[cfg(feature = "cluster")]
use crate::session::known::has_answer;
use crate::support::blocking::blocking;
use crate::support::secret_file::FileId;
use crate::system::Pilotlight;
#[cfg(feature = "cluster")]
use crate::workspace::UserFiles;

/// Files in memory, some 200 bytes each: more than a machine has children. Those of further sessions are not searched.
const MAX_FILES: usize = 100_000;
/// Pause between two rounds. A search costs some 30 µs for each session that waits for the next one.
const ROUND: Duration = Duration::from_secs(5);
/// Sessions whose tokens are entered in one round, each in some milliseconds.
const SETTLED_AT_ONCE: usize = 500;

type Held = (FileId, [Digest; 2]);
type Files = HashMap<SessionHash, Held>;

#[derive(Default)]
pub(crate) struct Renewed {
    files: Rounds<Files>,
}

impl Renewed {
    /// The user with a session that holds the presented access token, else the refresh token.
    pub(crate) async fn owner(
        &self,
        pilot: &Pilotlight,
        identities: &Identities,
        presented: [Digest; 2],
    ) -> Option<UserId> {
        let (looking, identities) = (pilot.clone(), identities.clone());
        let search = move |files: &mut Files| search(&looking, &identities, files);
        // A failed search is that of an unknown token.
        let found = self.files.read(search, |files| holders(files, &presented)).await?;
        if found.is_empty() {
            return None;
        }
        let pilot = pilot.clone();
        blocking(move || Ok(found.iter().find_map(|session| pilot.owner(session)))).await.ok()?
    }
}

/// The sessions with the access token, then those with the refresh token.
fn holders(files: &Files, presented: &[Digest; 2]) -> Vec<SessionHash> {
    let [access, refresh] = presented;
    let with = |kind: usize, token: &Digest| {
        let token = *token;
        files.iter().filter(move |(_, (_, held))| held.get(kind) == Some(&token)).map(|(session, _)| session)
    };
    with(0, access).chain(with(1, refresh)).cloned().collect()
}

/// Reads the files that have changed.
fn search(pilot: &Pilotlight, identities: &Identities, files: &mut Files) {
    let mut before = std::mem::take(files);
    for session in identities.index.marked().take(MAX_FILES) {
        if let Some(held) = look(pilot, &session, before.remove(&session)) {
            files.insert(session, held);
        }
    }
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

#[cfg(feature = "cluster")]
impl Identities {
    /// Enters the tokens of a user's ended children in the index, and notes whether the user is new any more. Before the files
    /// of the user leave this node.
    pub(crate) async fn settle_user(&self, pilot: &Pilotlight, user: &UserId) {
        let (pilot, identities, user) = (pilot.clone(), self.clone(), user.clone());
        let settled = blocking(move || {
            let mut sessions = UserFiles::of(&pilot.config().data_dir, &user).sessions()?;
            let marked: HashSet<SessionHash> = identities.index.marked().take(MAX_FILES).collect();
            sessions.retain(|session| marked.contains(session));
            for session in sessions {
                if let Some((_, held)) = look(&pilot, &session, None) {
                    identities.learn_now(&user, held)?;
                }
            }
            // Without the files there would be no answer.
            if has_answer(&pilot.config().data_dir, &user)? {
                identities.index.settle_new(&user)?;
            }
            Ok(())
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, "renewed tokens of a user who leaves could not be saved: they will not be known");
        }
    }
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
