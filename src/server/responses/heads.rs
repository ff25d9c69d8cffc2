//! The last response of each conversation that requests name. Pure.
//!
//! A conversation without a name has a digest of its history, which says what it holds. A named one holds what anybody
//! who names it has said in it, so it is continued only from the response that began last in it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::ResponseId;
use crate::support::hex;

/// Named conversations of one user that are remembered, some 120 bytes each. One that is not is not continued by id.
const MOST: usize = 256;
/// Longest file read.
pub(super) const MAX_FILE: u64 = 64 << 10;

/// Digests of names and the last response of each, the latest last.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Heads(Vec<(String, ResponseId)>);

impl Heads {
    /// The last response of the conversation.
    pub(super) fn of(&self, conversation: &str) -> Option<&ResponseId> {
        let name = digest(conversation);
        self.0.iter().find(|(known, _)| *known == name).map(|(_, id)| id)
    }

    /// Replaces the last response; `None` forgets it. The oldest conversation beyond the maximum is forgotten.
    pub(super) fn set(&mut self, conversation: &str, id: Option<ResponseId>) {
        let name = digest(conversation);
        self.0.retain(|(known, _)| *known != name);
        self.0.extend(id.map(|id| (name, id)));
        if self.0.len() > MOST {
            self.0.remove(0);
        }
    }
}

fn digest(conversation: &str) -> String {
    hex::encode(&Sha256::digest(conversation.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_conversations_are_remembered() {
        let mut heads = Heads::default();
        let (first, second) = (ResponseId::new(), ResponseId::new());
        heads.set("a", Some(first.clone()));
        heads.set("a", Some(second.clone()));
        assert_eq!((heads.of("a"), heads.of("b"), heads.0.len()), (Some(&second), None, 1));
        (0..MOST).for_each(|number| heads.set(&number.to_string(), Some(first.clone())));
        assert_eq!((heads.of("a"), heads.of("0"), heads.0.len()), (None, Some(&first), MOST));
        let file = serde_json::to_vec(&heads).unwrap();
        assert!((file.len() as u64) < MAX_FILE);
        assert_eq!(serde_json::from_slice::<Heads>(&file).unwrap(), heads);
        heads.set("0", None);
        assert_eq!(heads.of("0"), None);
    }
}
