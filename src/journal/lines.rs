//! What the lines of one child add to the journal, until its turn is over.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;

use super::frame::push_record;
use crate::adapter::Kept;

/// Bytes that are kept in memory; more go to the file before the turn is over. Ordinary turns have some kilobytes.
const MOST_KEPT: usize = 1 << 20;

/// Mirrored lines, and the turn's own lines for the case that the CLI mirrors nothing: it mirrors only what it could
/// write, so a full disk silences the mirror.
#[derive(Debug)]
pub(crate) struct Lines {
    is_on: bool,
    mirrored: Vec<u8>,
    own: Vec<u8>,
    /// The ids of the own lines.
    ids: Vec<String>,
}

impl Lines {
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, mirrored: Vec::new(), own: Vec::new(), ids: Vec::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// A line in which the CLI repeats what it has written to its transcript.
    pub(crate) fn mirrored(&mut self, line: &[u8]) {
        if self.is_on {
            push_record(&mut self.mirrored, Kept::Mirrored(line));
        }
    }

    /// The message of the turn that runs.
    pub(crate) fn prompt(&mut self, line: &[u8]) {
        if self.is_on {
            push_record(&mut self.own, Kept::Prompt(line));
        }
    }

    /// A line of the turn that the transcript will hold under this id.
    pub(crate) fn own(&mut self, id: &str, line: &[u8]) {
        if self.is_on {
            push_record(&mut self.own, Kept::Line(line));
            self.ids.push(id.to_owned());
        }
    }

    /// More is kept than should be: [`Lines::take`] before the turn is over.
    pub(crate) fn are_many(&self) -> bool {
        self.mirrored.len() + self.own.len() > MOST_KEPT
    }

    /// The records since the last call: the mirrored lines, and the own lines unless all of them were mirrored.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut records = std::mem::take(&mut self.mirrored);
        let own = std::mem::take(&mut self.own);
        if !are_mirrored(std::mem::take(&mut self.ids), &records) {
            records.extend(own);
        }
        records
    }
}

static ID: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(r#""uuid":""#));

/// Whether all entries with these ids were mirrored. One pass over the records: a child may write ten thousand short lines.
fn are_mirrored(mut missing: Vec<String>, records: &[u8]) -> bool {
    missing.sort_unstable();
    missing.dedup();
    let mut found = vec![false; missing.len()];
    for at in ID.find_iter(records) {
        let rest = records.get(at + ID.needle().len()..).unwrap_or_default();
        let mirrored = memchr(b'"', rest).and_then(|end| rest.get(..end)).unwrap_or(rest);
        if let Ok(place) = missing.binary_search_by(|id| id.as_bytes().cmp(mirrored))
            && let Some(found) = found.get_mut(place)
        {
            *found = true;
        }
    }
    found.into_iter().all(|found| found)
}
