//! Damages to what the disk holds of one conversation: the CLI's transcript, or the journal. Either file alone is enough
//! to restore it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    TranscriptCut,
    TranscriptEmptied,
    TranscriptRemoved,
    JournalCut,
    /// Bytes anywhere in it have other values.
    JournalBroken,
}

pub const DAMAGES: &[Damage] = &[
    Damage::TranscriptCut,
    Damage::TranscriptEmptied,
    Damage::TranscriptRemoved,
    Damage::JournalCut,
    Damage::JournalBroken,
];

/// Bytes of a broken journal that have changed, at most.
const CHANGED: usize = 8;

/// A frame of a journal begins with these bytes; its length and its checksum follow in a header of this size.
const MAGIC: &[u8] = b"PLJ1";
const HEADER: usize = 16;
/// A journal ends with a frame of this size, which says in JSON how far the conversation has come.
const MARK: usize = 512;

impl Damage {
    pub fn is_to_journal(self) -> bool {
        matches!(self, Self::JournalCut | Self::JournalBroken)
    }

    /// Does it to the file, at places that `seed` decides; whether there was a file with content.
    pub fn inflict(self, file: &Path, seed: u64) -> std::io::Result<bool> {
        let mut random = fastrand::Rng::with_seed(seed);
        let Some(mut content) = fs::read(file).ok().filter(|content| !content.is_empty()) else {
            return Ok(false);
        };
        let length = match self {
            Self::TranscriptRemoved => return fs::remove_file(file).map(|()| true),
            Self::TranscriptEmptied => 0,
            Self::TranscriptCut => random.usize(0..content.len()),
            // A cut between two frames is not visible to an outsider.
            Self::JournalCut => {
                let length = random.usize(1..content.len());
                if frames(&content[..length]).is_some() { length - 1 } else { length }
            }
            Self::JournalBroken => {
                for _ in 0..random.usize(1..=CHANGED) {
                    let at = random.usize(0..content.len());
                    content[at] = content[at].wrapping_add(random.u8(1..));
                }
                // Two changes of one byte may undo each other.
                let is_changed = frames(&content).is_none();
                return fs::write(file, content).map(|()| is_changed);
            }
        };
        OpenOptions::new().write(true).open(file)?.set_len(length as u64)?;
        Ok(true)
    }
}

/// The id of the CLI's conversation, and that of the message which its transcript owes, according to an undamaged journal.
pub fn conversation(journal: &Path) -> Option<(String, Option<String>)> {
    let content = fs::read(journal).ok()?;
    frames(&content).filter(|frames| *frames > 0)?;
    let mark = content.get(content.len().checked_sub(MARK)? + HEADER..)?;
    let mark: serde_json::Value = serde_json::from_slice(mark).ok()?;
    let text = |name: &str| mark[name].as_str().map(str::to_owned);
    Some((text("conversation")?, text("checkpoint")))
}

/// Whether a transcript has this message, as an entry of its own.
pub fn has_message(transcript: &Path, message: &str) -> bool {
    let entries = fs::read(transcript).unwrap_or_default();
    let entries = entries.split(|byte| *byte == b'\n');
    let mut entries = entries.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    entries.any(|entry| entry["uuid"] == message)
}

/// The transcript of a conversation below the HOME of its children.
pub fn transcript(home: &Path, conversation: &str) -> Option<PathBuf> {
    let projects = fs::read_dir(home.join(".claude/projects")).ok()?.flatten();
    projects.map(|project| project.path().join(format!("{conversation}.jsonl"))).find(|file| file.is_file())
}

/// The number of frames, if nothing else is there.
fn frames(mut journal: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !journal.is_empty() {
        let (header, rest) = journal.split_first_chunk::<HEADER>()?;
        let length = u32::from_le_bytes(header[8..12].try_into().ok()?);
        let (body, rest) = rest.split_at_checked(length as usize)?;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header[4..5]);
        sum.update(&header[8..12]);
        sum.update(body);
        let is_whole = header.starts_with(MAGIC)
            && header[5..8] == [0; 3]
            && header[12..] == sum.finalize().to_le_bytes();
        is_whole.then_some(())?;
        (journal, count) = (rest, count + 1);
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The child had written the message, and died before it had written the answer.
    #[test]
    fn message_without_its_answer_is_no_whole_transcript() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("transcript");
        let prompt = r#"{"type":"user","uuid":"p"}"#;
        let answer = r#"{"type":"assistant","parentUuid":"p","uuid":"a"}"#;
        fs::write(&file, format!("{prompt}\n")).unwrap();
        assert!(has_message(&file, "p") && !has_message(&file, "a"));
        fs::write(&file, format!("{prompt}\n{}", &answer[..answer.len() - 1])).unwrap();
        assert!(!has_message(&file, "a"), "half a line");
        fs::write(&file, format!("{prompt}\n{answer}\n")).unwrap();
        assert!(has_message(&file, "a"));
    }
}
