//! The files that a turn wrote, as events for callers that asked for them.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

use super::folder::{Snapshot, look, read};
use super::wire::event;

/// So much of one file is sent.
const FILE_BYTES: usize = 10 << 20;
/// So much of all files of a turn: they are in memory together.
const ALL_BYTES: usize = 20 << 20;
/// So many files are named.
const MAX_FILES: usize = 1000;

/// A workspace and what was in it before the turn.
pub(super) struct Watch {
    root: PathBuf,
    before: Snapshot,
}

/// What was written since.
struct Written {
    path: PathBuf,
    size: u64,
    is_new: bool,
}

impl Watch {
    /// Remembers what is there now.
    pub(super) async fn start(root: PathBuf) -> io::Result<Self> {
        off_runtime(move || {
            let before = look(&root)?;
            Ok(Self { root, before })
        })
        .await
    }

    /// Remembers what is there now instead. Keeps what it had if it cannot look.
    pub(super) async fn look_again(&mut self) {
        let root = self.root.clone();
        if let Ok(now) = off_runtime(move || look(&root)).await {
            self.before = now;
        }
    }

    /// One event for each file written since, then one with all of them. Never fails: an answer is not lost because
    /// its files cannot be read.
    pub(super) async fn events(self) -> Bytes {
        let events = off_runtime(move || Ok(events(&self.root, &self.before))).await;
        events.unwrap_or_else(|_| {
            let message = "the files of this turn could not be read";
            event(&json!({ "type": "pilotlight", "subtype": "files_unavailable", "message": message }))
        })
    }
}

fn events(root: &Path, before: &Snapshot) -> Bytes {
    let after = look(root).unwrap_or_default();
    let mut written: Vec<Written> = after
        .files
        .iter()
        .filter(|(path, stamp)| before.files.get(*path) != Some(stamp))
        .map(|(path, stamp)| Written {
            path: path.clone(),
            size: stamp.size,
            is_new: !before.files.contains_key(path),
        })
        .collect();
    let total = written.len();
    let total_size: u64 = written.iter().map(|file| file.size).sum();
    written.truncate(MAX_FILES);

    let mut all = BytesMut::new();
    let mut room = ALL_BYTES;
    let mut files = Vec::with_capacity(written.len());
    for file in written {
        let path = file.path.to_string_lossy().into_owned();
        let change = if file.is_new { "created" } else { "changed" };
        all.extend_from_slice(&event(
            &json!({ "type": "file_created", "path": path, "size": file.size, "change": change }),
        ));
        // Gone again or unreadable: named above, without content below.
        if let Ok(content) = read(root, &file.path, FILE_BYTES.min(room) as u64) {
            room -= content.len();
            files.push(entry(path, file.size, content));
        }
    }
    let summary = json!({
        "total": total,
        "total_size": total_size,
        "truncated": files.iter().filter(|file| file["truncated"] == true).count(),
        "left_out": total - files.len(),
        "partial": before.partial || after.partial,
    });
    let batch = json!({ "type": "files_batch", "files": files, "files_summary": summary });
    all.extend_from_slice(&event(&batch));
    all.freeze()
}

/// Text if it is text, else base64. `truncated` where `content` is only its beginning.
fn entry(path: String, size: u64, content: Vec<u8>) -> Value {
    let truncated = (content.len() as u64) < size;
    let (content, encoding) = match String::from_utf8(content) {
        Ok(text) => (text, "text"),
        Err(error) => {
            // A cut within the last character does not make it another kind of file.
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

async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(events: &Bytes) -> Vec<Value> {
        let text = std::str::from_utf8(events).unwrap();
        let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
        events.map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_was_written_since_is_told() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("old"), "old").unwrap();
        std::fs::write(at("edited"), "before").unwrap();
        let watch = Watch::start(root.path().to_owned()).await.unwrap();
        std::fs::write(at("edited"), "after").unwrap();
        std::fs::write(at("picture"), b"\xff\x00").unwrap();
        std::fs::write(at(".credentials.json"), "secret").unwrap();
        let events = parsed(&watch.events().await);
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
    async fn large_files_are_cut_and_it_is_said() {
        let root = tempfile::tempdir().unwrap();
        let watch = Watch::start(root.path().to_owned()).await.unwrap();
        // The limit falls within a character of two bytes.
        let text = format!("a{}", "ü".repeat(FILE_BYTES / 2 + 10));
        for name in ["a", "b", "c"] {
            std::fs::write(root.path().join(name), &text).unwrap();
        }
        let events = parsed(&watch.events().await);
        let batch = events.last().unwrap();
        assert_eq!(batch["files"][0]["encoding"], "text");
        assert_eq!(batch["files"][0]["truncated"], true);
        assert_eq!(batch["files"][0]["content"].as_str().unwrap().len(), FILE_BYTES - 1);
        assert_eq!(batch["files_summary"]["truncated"], 3);
        assert!(batch["files"][2]["content"].as_str().unwrap().len() < 10);
    }
}
