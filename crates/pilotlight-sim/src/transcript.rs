//! Transcript files: where they are, how they are read, and the writer that is always a little late.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::clock;
use super::input::text_of;

/// The real CLI gathers lines this long before it writes them: what was not written is lost with SIGKILL.
const LATENESS: Duration = Duration::from_millis(100);
/// Longer names of project folders are cut and a hash makes them unique again.
const MAX_FOLDER_NAME: usize = 200;

/// How the note begins that follows an interrupted answer.
pub(crate) const INTERRUPTED: &str = "[Request interrupted by user";

/// The folder of all conversations that were started in `cwd`.
pub(crate) fn project_dir(cwd: &str) -> PathBuf {
    let root = match std::env::var_os("CLAUDE_CONFIG_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        // Without HOME the real one asks the user database; a simulation may be homeless.
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".claude"),
    };
    root.join("projects").join(folder_name(cwd))
}

/// Everything but letters and digits becomes a dash: two working directories may share a folder, as in the real one.
/// (Its hash for names above the limit is another one.)
fn folder_name(cwd: &str) -> String {
    let dashed = |character: char| {
        // A character outside the basic plane is two units to JavaScript, thus two dashes.
        let dashes = if character.len_utf16() == 2 { "--" } else { "-" };
        if character.is_ascii_alphanumeric() { character.to_string() } else { dashes.to_owned() }
    };
    let name: String = cwd.chars().map(dashed).collect();
    if name.len() <= MAX_FOLDER_NAME {
        return name;
    }
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in cwd.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let cut: String = name.chars().take(MAX_FOLDER_NAME).collect();
    format!("{cut}-{hash:x}")
}

/// One thing the user said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) text: String,
    /// False for what was said into a running turn.
    pub(crate) own_turn: bool,
}

/// What a transcript tells of its conversation.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) said: Vec<Said>,
    /// Message ids that must not be answered again.
    pub(crate) seen: HashSet<String>,
    /// The last entry, parent of the next.
    pub(crate) leaf: Option<String>,
    pub(crate) model: Option<String>,
}

/// Reads a transcript; nothing if there is no conversation in it. Lines that cannot be read are skipped: the last one
/// of a killed process may be cut.
pub(crate) fn read(path: &Path) -> Option<History> {
    let bytes = std::fs::read(path).ok()?;
    history(&entries(&bytes))
}

/// The messages in a transcript: role and content of each.
pub(crate) fn messages(path: &Path) -> Value {
    let entries = std::fs::read(path).map(|bytes| entries(&bytes)).unwrap_or_default();
    let branch = branch(&entries).map(|(_, branch)| branch).unwrap_or_default();
    let messages = branch.iter().filter_map(|entry| entry.get("message"));
    let plain = messages.map(|message| {
        let part = |key: &str| message.get(key).cloned().unwrap_or_default();
        serde_json::json!({ "role": part("role"), "content": part("content") })
    });
    plain.collect()
}

fn entries(bytes: &[u8]) -> Vec<Value> {
    bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn text(entry: &Value, key: &str) -> Option<String> {
    entry.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// The last entry, and all that lead to it, oldest first.
fn branch(entries: &[Value]) -> Option<(String, Vec<&Value>)> {
    let by_id: HashMap<String, &Value> =
        entries.iter().filter_map(|entry| text(entry, "uuid").map(|id| (id, entry))).collect();
    // Two processes that wrote at once made a tree: only the branch of the last entry is the conversation.
    let leaf = entries.iter().rev().find_map(|entry| text(entry, "uuid"))?;
    let mut branch = Vec::new();
    let mut next = Some(leaf.clone());
    while let Some(entry) = next.as_ref().and_then(|id| by_id.get(id)) {
        branch.push(*entry);
        next = text(entry, "parentUuid");
        if branch.len() > entries.len() {
            // A circle: the file is no transcript.
            return None;
        }
    }
    branch.reverse();
    Some((leaf, branch))
}

fn history(entries: &[Value]) -> Option<History> {
    let (leaf, branch) = branch(entries)?;
    let mut history = History { leaf: Some(leaf), ..History::default() };
    history.seen = entries
        .iter()
        .filter(|entry| matches!(text(entry, "type").as_deref(), Some("user" | "attachment")))
        .filter_map(|entry| text(entry, "uuid"))
        .collect();
    for entry in branch {
        let message = entry.get("message").unwrap_or(&Value::Null);
        match text(entry, "type").as_deref() {
            Some("user") => history.said.extend(said(entry, message)),
            Some("attachment") => {
                let prompt = entry.pointer("/attachment/prompt").and_then(Value::as_str);
                history.said.extend(prompt.map(|text| Said { text: text.to_owned(), own_turn: false }));
            }
            Some("assistant") => {
                let model = message.get("model").and_then(Value::as_str);
                history.model = model.filter(|m| *m != "<synthetic>").map(str::to_owned).or(history.model);
            }
            _ => {}
        }
    }
    Some(history)
}

/// What the user said in an entry; tool results and notes of the program itself are none of it.
fn said(entry: &Value, message: &Value) -> Option<Said> {
    if ["isMeta", "isSynthetic", "isCompactSummary"].iter().any(|flag| entry.get(*flag).is_some()) {
        return None;
    }
    let text = match message.get("content")? {
        Value::String(text) => text.clone(),
        Value::Array(blocks) if blocks.iter().any(|block| block.get("tool_use_id").is_some()) => return None,
        Value::Array(blocks) => text_of(blocks),
        _ => return None,
    };
    if text.starts_with(INTERRUPTED) {
        return None;
    }
    Some(Said { text, own_turn: true })
}

/// Copies a conversation into the file of another session.
pub(crate) fn copy(from: &Path, session_id: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for line in std::fs::read(from).unwrap_or_default().split(|&byte| byte == b'\n') {
        let Ok(Value::Object(mut entry)) = serde_json::from_slice(line) else { continue };
        entry.insert("sessionId".into(), session_id.into());
        out.extend_from_slice(Value::Object(entry).to_string().as_bytes());
        out.push(b'\n');
    }
    out
}

/// The newest conversation of a folder.
pub(crate) fn newest(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    let transcripts = files.filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    transcripts.max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
}

#[derive(Default)]
struct Pending {
    file: Option<PathBuf>,
    lines: Vec<u8>,
    due: Option<Instant>,
    has_thread: bool,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends lines to a transcript, [`LATENESS`] later and from another thread.
#[derive(Clone, Default)]
pub(crate) struct Writer(Arc<Shared>);

impl Writer {
    /// Lines go to this file from now on; nothing means nowhere.
    pub(crate) fn set_file(&self, file: Option<PathBuf>) {
        let mut pending = self.0.lock();
        pending.write();
        pending.file = file;
    }

    /// Takes whole lines.
    pub(crate) fn append(&self, lines: &[u8]) {
        let mut pending = self.0.lock();
        if pending.file.is_none() {
            return;
        }
        pending.lines.extend_from_slice(lines);
        if pending.due.is_none() {
            pending.due = Some(clock::now() + LATENESS);
            self.0.changed.notify_one();
        }
        if !pending.has_thread {
            pending.has_thread = true;
            let shared = Arc::clone(&self.0);
            let writer = std::thread::Builder::new().name("transcript".into()).stack_size(128 * 1024);
            drop(writer.spawn(move || write_late(&shared)));
        }
    }

    /// Writes what waits, at once.
    pub(crate) fn flush(&self) {
        self.0.lock().write();
    }
}

fn write_late(shared: &Shared) {
    let mut pending = shared.lock();
    loop {
        let left = pending.due.map(|due| due.saturating_duration_since(clock::now()));
        pending = match left {
            None => shared.changed.wait(pending).unwrap_or_else(PoisonError::into_inner),
            Some(Duration::ZERO) => {
                pending.write();
                pending
            }
            Some(left) => {
                let waited = shared.changed.wait_timeout(pending, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
}

impl Pending {
    /// A disk that is full or a folder that is closed is not mentioned anywhere, as in the real one.
    fn write(&mut self) {
        self.due = None;
        let lines = std::mem::take(&mut self.lines);
        let Some(file) = &self.file else { return };
        if lines.is_empty() {
            return;
        }
        if let Some(dir) = file.parent()
            && std::fs::create_dir_all(dir).is_err()
        {
            return;
        }
        if let Ok(mut file) = OpenOptions::new().append(true).create(true).mode(0o600).open(file) {
            drop(file.write_all(&lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{folder_name, history};

    #[test]
    fn folders_are_named_as_the_real_one_does() {
        assert_eq!(folder_name("/a/b_c.d"), "-a-b-c-d");
        assert_eq!(folder_name("/ü😀"), "----");
        let (one, other) =
            (folder_name(&format!("/{}", "x".repeat(300))), folder_name(&format!("/{}", "x".repeat(301))));
        assert!(one != other && one.len() < 230);
    }

    fn entry(id: &str, parent: Option<&str>, text: &str) -> Value {
        json!({"type":"user","uuid":id,"parentUuid":parent,"message":{"role":"user","content":text}})
    }

    #[test]
    fn only_one_branch_of_a_tree_is_remembered() {
        let entries = [entry("1", None, "a"), entry("2", Some("1"), "left"), entry("3", Some("1"), "right")];
        let history = history(&entries).unwrap();
        let said: Vec<_> = history.said.iter().map(|said| said.text.as_str()).collect();
        assert_eq!(said, ["a", "right"]);
        assert_eq!(history.seen.len(), 3);
    }

    #[test]
    fn nonsense_is_no_conversation() {
        assert!(history(&[]).is_none());
        assert!(history(&[json!({"type":"queue-operation"})]).is_none());
        let circle = [entry("1", Some("2"), "a"), entry("2", Some("1"), "b")];
        assert!(history(&circle).is_none());
    }
}
