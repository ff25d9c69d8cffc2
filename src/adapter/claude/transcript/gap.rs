//! Gap in a transcript: a missing entry on the way from one entry back to the first.
//!
//! Each entry names its parent, and the CLI restores a conversation only up to a missing parent. On a full disk a line is
//! cut and joined with the next one. The CLI skips such a line, so only parsable lines count. Memory use is bounded to
//! some megabytes.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Maximum number of entries in memory, 48 bytes each. Entries on disk have some kilobytes: the CLI never writes more into
/// one tail.
const MAX_ENTRIES: usize = 200_000;
/// Bytes that every entry contains; other lines are not parsed.
const MARK: &[u8] = b"\"uuid\"";

/// Id and parent of an entry.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "parentUuid")]
    parent: Option<Cow<'a, str>>,
}

/// Digest of an entry's id: of fixed size, and equal in every run.
pub(super) type Id = u128;

/// First missing entry on the way from `checkpoint` back to the first entry, as a text that identifies the gap; `None` if
/// there is no gap. With `is_cut` the transcript begins before `tail`: a missing parent may be there. Reads line by line.
pub(super) fn gap(tail: impl Read, mut is_cut: bool, checkpoint: &str) -> io::Result<Option<String>> {
    let mut entries: VecDeque<(Id, Option<Id>)> = VecDeque::new();
    let (mut lines, mut line) = (BufReader::new(tail), Vec::new());
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(entry) = entry(&line) {
            if entries.len() == MAX_ENTRIES {
                entries.pop_front();
                is_cut = true;
            }
            entries.push_back(entry);
        }
        line.clear();
    }
    // The last of several entries with one id counts.
    let mut parents: HashMap<Id, Option<Id>> = entries.into_iter().collect();
    let mut wanted = digest(checkpoint);
    let mut found = false;
    // Removing each entry ends a cycle.
    while let Some(parent) = parents.remove(&wanted) {
        found = true;
        match parent {
            Some(parent) => wanted = parent,
            None => return Ok(None),
        }
    }
    Ok((!found || !is_cut).then(|| format!("{wanted:032x}")))
}

pub(super) fn digest(id: &str) -> Id {
    let digest = Sha256::digest(id);
    digest.iter().take(16).fold(0, |number, byte| number << 8 | Id::from(*byte))
}

/// The entry of a line and its parent.
pub(super) fn entry(line: &[u8]) -> Option<(Id, Option<Id>)> {
    memchr::memmem::find(line, MARK)?;
    // A list of two texts would deserialise as well.
    line.trim_ascii_start().first().filter(|first| **first == b'{')?;
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some((digest(&entry.uuid?), entry.parent.map(|id| digest(&id))))
}
