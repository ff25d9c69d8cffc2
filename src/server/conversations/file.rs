//! Persistence of a user's conversation cache across restarts.
//!
//! One small file per user (mode 0600; generated names and digests, no text), with a fixed-size slot per conversation. A
//! change overwrites its slot in place, in the page cache only: this takes microseconds, unless a busy disk holds up the
//! writer. A slot lies within one page, so a kill leaves either the old or the new content. Unreadable slots are empty.
//! Blocking.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cache::{Changed, Conversation, SlotState};
use super::digest::Digest;
use crate::support::hex;
use crate::workspace::{open_own, read_own};

/// Size of a slot. A name and two digests take some 230 bytes; a power of two keeps each slot within one page.
const SLOT_BYTES: usize = 256;
/// Maximum file size read: more slots than any configuration allows.
const MAX_FILE: u64 = (SLOT_BYTES as u64) << 14;

#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    used: u64,
    system: String,
    /// Absent when nothing matches the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<String>,
    #[serde(default, rename = "doomed", skip_serializing_if = "std::ops::Not::not")]
    deleting: bool,
}

/// Reads all slots of a file. A conversation that was claimed when the program was killed is stale.
pub(super) fn read(path: &Path) -> Vec<Option<Conversation>> {
    // An unreadable file counts as empty.
    let content = read_own(path, MAX_FILE).unwrap_or_default();
    content.chunks(SLOT_BYTES).map(parse).collect()
}

fn parse(slot: &[u8]) -> Option<Conversation> {
    let record: Record = serde_json::from_slice(slot).ok()?;
    let state = match record.history {
        _ if record.deleting => SlotState::Deleting { queued: false },
        Some(history) => SlotState::Free(parse_digest(&history)?),
        None => SlotState::Stale,
    };
    Some(Conversation { name: record.name, system: parse_digest(&record.system)?, used: record.used, state })
}

/// Writes slots. A failed write removes the file, because outdated slots would match wrongly.
pub(super) fn write(path: &Path, changed: &[Changed]) {
    if changed.is_empty() {
        return;
    }
    let written = (|| {
        let open = || open_own(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                open()?
            }
            opened => opened?,
        };
        for (number, slot) in changed {
            let content = render(slot.as_ref())?;
            file.write_all_at(&content, (number * SLOT_BYTES) as u64)?;
        }
        Ok::<_, io::Error>(())
    })();
    if let Err(error) = written {
        tracing::warn!(%error, "cannot store the conversations of a user: they will not match after a restart");
        // A failure here means that the disk is gone.
        std::fs::remove_file(path).ok();
    }
}

fn render(slot: Option<&Conversation>) -> io::Result<Vec<u8>> {
    let mut content = match slot {
        None => Vec::new(),
        Some(it) => serde_json::to_vec(&Record {
            name: it.name.clone(),
            used: it.used,
            system: hex::encode(&it.system.0),
            history: match &it.state {
                SlotState::Free(history) => Some(hex::encode(&history.0)),
                SlotState::Claimed | SlotState::Stale | SlotState::Deleting { .. } => None,
            },
            deleting: matches!(it.state, SlotState::Deleting { .. }),
        })?,
    };
    if content.len() >= SLOT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a conversation does not fit into its slot"));
    }
    content.resize(SLOT_BYTES - 1, b' ');
    content.push(b'\n');
    Ok(content)
}

fn parse_digest(text: &str) -> Option<Digest> {
    hex::decode_array(text).map(Digest)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn conversation(state: SlotState) -> Option<Conversation> {
        let name = format!("auto-{}", uuid::Uuid::new_v4().simple());
        Some(Conversation { name, system: Digest([0xab; 32]), used: u64::MAX >> 8, state })
    }

    fn put(path: &Path, slots: &[Option<Conversation>], changed: &[usize]) {
        write(path, &changed.iter().map(|number| (*number, slots[*number].clone())).collect::<Vec<_>>());
    }

    #[test]
    fn file_round_trips_slot_by_slot() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/file");
        let mut slots = vec![
            conversation(SlotState::Free(Digest([1; 32]))),
            None,
            conversation(SlotState::Claimed),
            conversation(SlotState::Deleting { queued: true }),
        ];
        put(&path, &slots, &[0, 2, 3]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = read(&path);
        assert_eq!((&again[0], &again[1]), (&slots[0], &None));
        assert_eq!(
            again[2].as_ref().unwrap().state,
            SlotState::Stale,
            "it was claimed when the server was killed"
        );
        assert_eq!(again[3].as_ref().unwrap().state, SlotState::Deleting { queued: false });

        slots[0] = None;
        put(&path, &slots, &[0]);
        assert_eq!(read(&path)[0], None);
        assert_eq!(read(&directory.path().join("none")), vec![]);
    }

    #[test]
    fn damaged_slot_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let slots = [conversation(SlotState::Free(Digest([1; 32]))), conversation(SlotState::Stale)];
        put(&path, &slots, &[0, 1]);
        let good = std::fs::read(&path).unwrap();
        for (at, byte) in [(0, b'x'), (100, 0xff), (3, 0)] {
            let mut torn = good.clone();
            torn[at] = byte;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(read(&path)[0], None);
            assert_eq!(read(&path)[1], slots[1]);
        }
        std::fs::write(&path, &good[..400]).unwrap();
        assert_eq!(read(&path), [slots[0].clone(), None]);
    }

    #[test]
    fn file_is_removed_when_a_write_fails() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let long = Conversation { name: "n".repeat(300), ..conversation(SlotState::Stale).unwrap() };
        put(&path, &[conversation(SlotState::Free(Digest([1; 32])))], &[0]);
        put(&path, &[Some(long)], &[0]);
        assert!(!path.exists());
    }
}
