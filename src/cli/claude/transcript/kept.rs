//! What a transcript holds of a conversation: the entries that can be read, and the way from one to the first.
//!
//! Each entry names the one that it follows, and the CLI remembers no further back than to the first that is missing. On
//! a full disk lines are cut off and glued to the next one; the CLI skips such a line whole, so only what parses counts.
//! Whatever is read, memory stays within some megabytes.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::io::{self, BufRead as _, BufReader, Read};

use serde::Deserialize;

/// Entries remembered, 16 bytes each. An entry of a conversation takes some kilobytes; a file with more in its tail
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

/// Whether the entry is there and every one that it goes back to. `is_cut`: the transcript begins before `tail`, so
/// that what is not found in it may be there. Holds one line at a time.
pub(super) fn leads_back(tail: impl Read, mut is_cut: bool, checkpoint: &str) -> io::Result<bool> {
    // Seeded by chance: nobody can prepare two ids that look the same.
    let hasher = RandomState::new();
    let mut places: VecDeque<(u64, Option<u64>)> = VecDeque::new();
    let (mut lines, mut line) = (BufReader::new(tail), Vec::new());
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(place) = place(&line, &hasher) {
            if places.len() == MAX_ENTRIES {
                places.pop_front();
                is_cut = true;
            }
            places.push_back(place);
        }
        line.clear();
    }
    // Of two entries of one id the last one counts.
    let mut parents: HashMap<u64, Option<u64>> = places.into_iter().collect();
    let mut wanted = hasher.hash_one(checkpoint);
    let mut is_there = false;
    // Each is taken out, so that a circle ends.
    while let Some(parent) = parents.remove(&wanted) {
        is_there = true;
        match parent {
            Some(parent) => wanted = parent,
            None => return Ok(true),
        }
    }
    Ok(is_there && is_cut)
}

/// A line's entry and the one that it follows.
fn place(line: &[u8], hasher: &RandomState) -> Option<(u64, Option<u64>)> {
    memchr::memmem::find(line, MARK)?;
    // A list of two texts would be read as one, too.
    line.trim_ascii_start().first().filter(|first| **first == b'{')?;
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some((hasher.hash_one(entry.uuid?.as_ref()), entry.parent.map(|id| hasher.hash_one(id.as_ref()))))
}
