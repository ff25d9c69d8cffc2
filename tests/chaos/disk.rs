//! What the simulated CLI has written down of each conversation, read from its transcripts as an outsider finds them.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::wire::nonces;

/// Reads only what is new.
#[derive(Default)]
pub struct Transcripts {
    read: HashMap<PathBuf, u64>,
}

impl Transcripts {
    /// The numbers of turns whose messages are new in the transcripts below `home`.
    pub fn new_in(&mut self, home: &Path) -> Vec<u64> {
        let mut numbers = Vec::new();
        for project in std::fs::read_dir(home.join(".claude/projects")).into_iter().flatten().flatten() {
            for file in std::fs::read_dir(project.path()).into_iter().flatten().flatten() {
                self.read_on(&file.path(), &mut numbers);
            }
        }
        numbers
    }

    /// The conversation was deleted.
    pub fn forget(&mut self, home: &Path) {
        self.read.retain(|file, _| !file.starts_with(home));
    }

    fn read_on(&mut self, path: &Path, numbers: &mut Vec<u64>) {
        let from = self.read.entry(path.to_owned()).or_default();
        let Ok(mut file) = std::fs::File::open(path) else { return };
        let mut new = Vec::new();
        if file.seek(SeekFrom::Start(*from)).is_err() || file.read_to_end(&mut new).is_err() {
            return;
        }
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        *from += whole as u64;
        for line in new[..whole].split(|byte| *byte == b'\n') {
            let Ok(entry) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            if entry["type"] == "user" {
                numbers.extend(nonces(&entry["message"].to_string()).first().map(|nonce| nonce.number));
            }
        }
    }
}
