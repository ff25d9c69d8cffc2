//! Files that a turn wrote, for callers that request them.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::blocking::blocking_long;
use crate::workspace::beneath::{Beneath, ChildDir};
use snapshot::{FileVersion, Snapshot, look};

pub(crate) mod snapshot;

const FILE_BYTES: usize = 10 << 20;
/// Maximum bytes sent of all files of a turn, which are in memory together.
const ALL_BYTES: usize = 20 << 20;
const MAX_FILES: usize = 1000;

pub(super) struct WorkspaceWatch {
    work: ChildDir,
    before: Snapshot,
    /// Replaces `before` once available.
    newer: Option<tokio::task::JoinHandle<io::Result<Snapshot>>>,
}

/// Files changed by a turn, as JSON.
#[derive(Debug, Default)]
pub(super) struct ChangedFiles {
    each: Vec<Value>,
    pub(super) files: Value,
    /// Count, size and omissions.
    pub(super) summary: Value,
}

impl ChangedFiles {
    /// One event per file, then one with all of them.
    pub(super) fn events(&self) -> Vec<Value> {
        let batch = match &self.files {
            Value::Null => self.summary.clone(),
            files => json!({ "type": "files_batch", "files": files, "files_summary": self.summary }),
        };
        self.each.iter().cloned().chain([batch]).collect()
    }
}

impl WorkspaceWatch {
    pub(super) async fn start(work: ChildDir) -> io::Result<Self> {
        blocking_long(move || {
            let before = snapshot::of(&work)?;
            Ok(Self { work, before, newer: None })
        })
        .await
    }

    /// Retakes the snapshot in the background, because earlier turns have written since. A failure keeps the former
    /// one.
    pub(super) fn look_again(&mut self) {
        let work = self.work.clone();
        let since = SystemTime::now();
        self.newer = Some(tokio::task::spawn_blocking(move || {
            let mut newer = snapshot::of(&work)?;
            // The turn may have written before the snapshot.
            newer.files.retain(|_, stamp| stamp.is_before(since));
            Ok(newer)
        }));
    }

    /// Collects the changes. Never fails: unreadable files must not lose an answer.
    pub(super) async fn written(mut self) -> ChangedFiles {
        if let Some(newer) = self.newer.take()
            && let Ok(Ok(newer)) = newer.await
        {
            self.before = newer;
        }
        let written = blocking_long(move || Ok(written(&self.work.open()?, &self.before))).await;
        written.unwrap_or_else(|_| {
            let message = "the files of this turn could not be read";
            let summary = json!({ "type": "pilotlight", "subtype": "files_unavailable", "message": message });
            ChangedFiles { each: Vec::new(), files: Value::Null, summary }
        })
    }
}

fn written(work: &Beneath, before: &Snapshot) -> ChangedFiles {
    let after = look(work).unwrap_or_default();
    let is_changed = |(path, stamp): &(&PathBuf, &FileVersion)| {
        !before.files.get(*path).is_some_and(|before| before.is_same(stamp))
    };
    let found: Vec<_> = after.files.iter().filter(is_changed).collect();
    let total_size: u64 = found.iter().map(|(_, stamp)| stamp.size).sum();
    let (mut each, mut files, mut room) = (Vec::new(), Vec::new(), ALL_BYTES);
    for (file, FileVersion { size, .. }) in found.iter().take(MAX_FILES) {
        let path = file.to_string_lossy().into_owned();
        let change = if before.files.contains_key(*file) { "changed" } else { "created" };
        each.push(json!({ "type": "file_created", "path": path, "size": size, "change": change }));
        // Removed or unreadable: listed without content.
        if let Ok(content) = work.beginning(file, FILE_BYTES.min(room) as u64) {
            room -= content.len();
            files.push(entry(path, *size, content));
        }
    }
    let summary = json!({
        "total": found.len(),
        "total_size": total_size,
        "truncated": files.iter().filter(|file| file["truncated"] == true).count(),
        "left_out": found.len() - files.len(),
        "partial": before.partial || after.partial,
    });
    ChangedFiles { each, files: files.into(), summary }
}

/// UTF-8 text or base64. `truncated` if `content` is only its beginning.
fn entry(path: String, size: u64, content: Vec<u8>) -> Value {
    let truncated = (content.len() as u64) < size;
    let (content, encoding) = match String::from_utf8(content) {
        Ok(text) => (text, "text"),
        Err(error) => {
            // A cut within the last character leaves the file text.
            let valid = error.utf8_error().valid_up_to();
            let is_cut_text = truncated && error.utf8_error().error_len().is_none();
            let mut bytes = error.into_bytes();
            if is_cut_text {
                bytes.truncate(valid);
            }
            String::from_utf8(bytes)
                .map_or_else(|error| (STANDARD.encode(error.as_bytes()), "base64"), |text| (text, "text"))
        }
    };
    let mut entry = json!({ "path": path, "content": content, "encoding": encoding, "size": size });
    if truncated {
        entry["truncated"] = true.into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &tempfile::TempDir) -> ChildDir {
        ChildDir { trusted: root.path().to_owned(), inner: PathBuf::new() }
    }

    #[tokio::test]
    async fn changes_since_snapshot_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        std::fs::write(at("edited"), "before").unwrap();
        let watch = WorkspaceWatch::start(place(&root)).await.unwrap();
        std::fs::write(at("edited"), "after").unwrap();
        std::fs::write(at("picture"), b"\xff\x00").unwrap();
        std::fs::write(at(".credentials.json"), "secret").unwrap();
        let events = watch.written().await.events();
        let expected = [
            json!({ "type": "file_created", "path": "edited", "size": 5, "change": "changed" }),
            json!({ "type": "file_created", "path": "picture", "size": 2, "change": "created" }),
            json!({ "type": "files_batch", "files": [
                { "path": "edited", "content": "after", "encoding": "text", "size": 5 },
                { "path": "picture", "content": "/wA=", "encoding": "base64", "size": 2 },
            ], "files_summary": { "total": 2, "total_size": 7, "truncated": 0, "left_out": 0, "partial": false } }),
        ];
        assert_eq!(events, expected);
    }

    #[tokio::test]
    async fn large_files_are_truncated_and_marked() {
        let root = tempfile::tempdir().unwrap();
        let watch = WorkspaceWatch::start(place(&root)).await.unwrap();
        // The limit falls within a two-byte character.
        let text = format!("a{}", "ü".repeat(FILE_BYTES / 2 + 10));
        for name in ["a", "b", "c"] {
            std::fs::write(root.path().join(name), &text).unwrap();
        }
        let events = watch.written().await.events();
        let batch = events.last().unwrap();
        assert_eq!(batch["files"][0]["encoding"], "text");
        assert_eq!(batch["files"][0]["truncated"], true);
        assert_eq!(batch["files"][0]["content"].as_str().unwrap().len(), FILE_BYTES - 1);
        assert_eq!(batch["files_summary"]["truncated"], 3);
        assert!(batch["files"][2]["content"].as_str().unwrap().len() < 10);
    }
}
