//! Tokens that a session's CLI has renewed by itself: they stand in its credentials file, and nobody has told us.
//!
//! Looked at only when somebody presents tokens that were never seen here, which is when a user is new, too. Files that
//! have not changed since are not read again. Blocking.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{Digest, digest};
use crate::ids::UserId;
use crate::pilotlight::Pilotlight;
use crate::private::Stamp;

/// Files remembered, some 200 bytes each. Those beyond are read each time.
const MAX_FILES: usize = 100_000;

/// What was found in which file.
#[derive(Default)]
pub(in crate::http) struct Rotated {
    seen: Mutex<HashMap<PathBuf, (Stamp, [Digest; 2])>>,
}

impl fmt::Debug for Rotated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rotated(redacted)")
    }
}

impl Rotated {
    /// The user one of whose sessions holds the presented access token, else the refresh token. One search at a time:
    /// strangers that come in crowds wait for each other.
    pub(in crate::http) fn owner(&self, pilot: &Pilotlight, presented: &[Digest; 2]) -> Option<UserId> {
        let mut before = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        let mut matching = [None, None];
        for file in pilot.credentials_files() {
            let Ok(stamp) = Stamp::at(&file.path) else { continue };
            let known = before.remove(&file.path).filter(|(seen, _)| *seen == stamp).map(|(_, held)| held);
            let Some(held) = known.or_else(|| {
                let (access, refresh) = file.tokens()?;
                Some([digest("access", access.as_bytes()), digest("refresh", refresh.as_bytes())])
            }) else {
                continue;
            };
            for (kind, found) in matching.iter_mut().enumerate() {
                if found.is_none() && held.get(kind) == presented.get(kind) {
                    *found = file.owner();
                }
            }
            if now.len() < MAX_FILES {
                now.insert(file.path, (stamp, held));
            }
        }
        *before = now;
        let [by_access, by_refresh] = matching;
        by_access.or(by_refresh)
    }
}
