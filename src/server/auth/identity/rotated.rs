//! Tokens renewed by a session's CLI, found in its credentials file.
//!
//! Searched only for unknown tokens, which includes new users. Unchanged files are not read again. Blocking.

use std::collections::HashMap;
use std::sync::Mutex;

use super::{Digest, digest};
use crate::model::ids::{SessionHash, UserId};
use crate::support::lock::MutexExt;
use crate::support::secret_file::FileId;
use crate::system::Pilotlight;
use crate::workspace::Workspace;

/// Maximum files cached, some 200 bytes each. Others are read each time.
const MAX_FILES: usize = 100_000;

#[derive(Default)]
pub(crate) struct Rotated {
    seen: Mutex<HashMap<SessionHash, (FileId, [Digest; 2])>>,
}

impl Rotated {
    /// The user with a session that holds the presented access token, else the refresh token. One search at a time, so
    /// that a crowd of strangers queues.
    pub(crate) fn owner(&self, pilot: &Pilotlight, presented: &[Digest; 2]) -> Option<UserId> {
        let mut before = self.seen.lock_unpoisoned();
        let mut now = HashMap::new();
        let mut matching = [None, None];
        for (session, workspace) in pilot.workspaces() {
            let Some((stamp, held)) = look(pilot, &workspace, before.remove(&session)) else { continue };
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
}

/// Tokens of a session's credentials file; cached while the file is unchanged.
fn look(
    pilot: &Pilotlight,
    workspace: &Workspace,
    before: Option<(FileId, [Digest; 2])>,
) -> Option<(FileId, [Digest; 2])> {
    let file = pilot.credentials_file(workspace)?;
    let id = file.id()?;
    if let Some(before) = before.filter(|(seen, _)| *seen == id) {
        return Some(before);
    }
    let stored = file.read()?;
    let access = digest("access", stored.access_token?.as_bytes());
    Some((id, [access, digest("refresh", stored.refresh_token?.as_bytes())]))
}
