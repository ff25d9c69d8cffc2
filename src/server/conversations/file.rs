//! A user's conversations on disk, so that a client without a name finds its own again after a restart.
//!
//! One small file per user (mode 0600; names made by us and digests, no text), one place of fixed length per
//! conversation. A change writes its place where it stands, for the kernel and not for the disk: some microseconds, and
//! a place lies within one page, so that whoever kills this program leaves the old content or the new. What cannot be
//! read is as if it were not there: then a conversation begins anew. Blocks, if only for a moment.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cache::{Conversation, State};
use super::digest::Digest;
use crate::support::hex;
use crate::workspace::{open_own, read_own};

/// Bytes of a place. A name and two digests take some 230; a power of two, so that none lies across two pages.
const PLACE: usize = 256;
/// Longest file read: more places than any configuration allows.
const MAX_FILE: u64 = (PLACE as u64) << 14;

#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    used: u64,
    system: String,
    /// Not there: nothing can be matched with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doomed: bool,
}

/// All places of a file. One that was claimed when its program was killed is spent.
pub(super) fn read(path: &Path) -> Vec<Option<Conversation>> {
    // What cannot be read is not known.
    let content = read_own(path, MAX_FILE).unwrap_or_default();
    content.chunks(PLACE).map(parse).collect()
}

fn parse(place: &[u8]) -> Option<Conversation> {
    let line: Line = serde_json::from_slice(place).ok()?;
    let state = match line.history {
        _ if line.doomed => State::Doomed { queued: false },
        Some(history) => State::Free(parse_digest(&history)?),
        None => State::Spent,
    };
    Some(Conversation { name: line.name, system: parse_digest(&line.system)?, used: line.used, state })
}

/// Writes these places. When that fails the whole file is given up: better nothing than something that is no longer
/// true.
pub(super) fn write(path: &Path, places: &[Option<Conversation>], changed: &[usize]) {
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
        for number in changed {
            let content = render(places.get(*number).and_then(Option::as_ref))?;
            file.write_all_at(&content, (number * PLACE) as u64)?;
        }
        Ok::<_, io::Error>(())
    })();
    if let Err(error) = written {
        tracing::warn!(%error, "conversations of a user will not be known after a restart");
        // If this fails too, the disk is gone.
        std::fs::remove_file(path).ok();
    }
}

fn render(place: Option<&Conversation>) -> io::Result<Vec<u8>> {
    let mut content = match place {
        None => Vec::new(),
        Some(it) => serde_json::to_vec(&Line {
            name: it.name.clone(),
            used: it.used,
            system: hex::encode(&it.system.0),
            history: match &it.state {
                State::Free(history) => Some(hex::encode(&history.0)),
                State::Claimed | State::Spent | State::Doomed { .. } => None,
            },
            doomed: matches!(it.state, State::Doomed { .. }),
        })?,
    };
    if content.len() >= PLACE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a conversation needs more than its place"));
    }
    content.resize(PLACE - 1, b' ');
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

    fn conversation(state: State) -> Option<Conversation> {
        let name = format!("auto-{}", uuid::Uuid::new_v4().simple());
        Some(Conversation { name, system: Digest([0xab; 32]), used: u64::MAX >> 8, state })
    }

    #[test]
    fn a_file_comes_back_place_by_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/file");
        let mut places = vec![
            conversation(State::Free(Digest([1; 32]))),
            None,
            conversation(State::Claimed),
            conversation(State::Doomed { queued: true }),
        ];
        write(&path, &places, &[0, 2, 3]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = read(&path);
        assert_eq!((&again[0], &again[1]), (&places[0], &None));
        assert_eq!(again[2].as_ref().unwrap().state, State::Spent, "it was claimed when we were killed");
        assert_eq!(again[3].as_ref().unwrap().state, State::Doomed { queued: false });

        places[0] = None;
        write(&path, &places, &[0]);
        assert_eq!(read(&path)[0], None);
        assert_eq!(read(&directory.path().join("none")), vec![]);
    }

    #[test]
    fn nonsense_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let places = [conversation(State::Free(Digest([1; 32]))), conversation(State::Spent)];
        write(&path, &places, &[0, 1]);
        let good = std::fs::read(&path).unwrap();
        for (at, byte) in [(0, b'x'), (100, 0xff), (3, 0)] {
            let mut torn = good.clone();
            torn[at] = byte;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(read(&path)[0], None);
            assert_eq!(read(&path)[1], places[1]);
        }
        std::fs::write(&path, &good[..400]).unwrap();
        assert_eq!(read(&path), [places[0].clone(), None]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let long = Conversation { name: "n".repeat(300), ..conversation(State::Spent).unwrap() };
        write(&path, &[conversation(State::Free(Digest([1; 32])))], &[0]);
        write(&path, &[Some(long)], &[0]);
        assert!(!path.exists());
    }
}
