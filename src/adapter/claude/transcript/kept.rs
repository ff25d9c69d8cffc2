//! What a transcript holds of a conversation: the entries that can be read, and the way from one to the first.
//!
//! Each entry names the one that it follows, and the CLI remembers no further back than to the first that is missing. On
//! a full disk lines are cut off and glued to the next one; the CLI skips such a line whole, so only what parses counts.
//! Whatever is read, memory stays within some megabytes.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead as _, BufReader, Read};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Entries remembered, 48 bytes each. An entry of a conversation takes some kilobytes; a file with more in its tail
/// was not written by the CLI.
const MAX_ENTRIES: usize = 200_000;
/// What every line of an entry has in it; others need not be parsed.
const MARK: &[u8] = b"\"uuid\"";

/// An entry of the transcript, as far as it tells its place.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "parentUuid")]
    parent: Option<Cow<'a, str>>,
}

/// Digest of an entry's id: of one size whatever the id, and the same in every run.
type Id = u128;

/// The first entry that is missing on the way from `checkpoint` back to the first one, as a text to know it again by;
/// `None` if all are there. `is_cut`: the transcript begins before `tail`, so that what is not found in it may be there.
/// Holds one line at a time.
pub(super) fn gap(tail: impl Read, mut is_cut: bool, checkpoint: &str) -> io::Result<Option<String>> {
    let mut places: VecDeque<(Id, Option<Id>)> = VecDeque::new();
    let (mut lines, mut line) = (BufReader::new(tail), Vec::new());
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(place) = place(&line) {
            if places.len() == MAX_ENTRIES {
                places.pop_front();
                is_cut = true;
            }
            places.push_back(place);
        }
        line.clear();
    }
    // Of two entries of one id the last one counts.
    let mut parents: HashMap<Id, Option<Id>> = places.into_iter().collect();
    let mut wanted = digest(checkpoint);
    let mut is_there = false;
    // Each is taken out, so that a circle ends.
    while let Some(parent) = parents.remove(&wanted) {
        is_there = true;
        match parent {
            Some(parent) => wanted = parent,
            None => return Ok(None),
        }
    }
    Ok((!is_there || !is_cut).then(|| format!("{wanted:032x}")))
}

fn digest(id: &str) -> Id {
    let digest = Sha256::digest(id);
    digest.iter().take(16).fold(0, |number, byte| number << 8 | Id::from(*byte))
}

/// A line's entry and the one that it follows.
fn place(line: &[u8]) -> Option<(Id, Option<Id>)> {
    memchr::memmem::find(line, MARK)?;
    // A list of two texts would be read as one, too.
    line.trim_ascii_start().first().filter(|first| **first == b'{')?;
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some((digest(&entry.uuid?), entry.parent.map(|id| digest(&id))))
}
