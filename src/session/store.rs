//! What outlives the process: one `session.json` per session, and the lock on the data directory.
//!
//! Everything here blocks; async callers go through [`tokio::task::spawn_blocking`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::StartError;
use crate::ids::{Generation, SessionHash, SessionKey, UserId};
use crate::metrics::ContextLost;
use crate::turn::McpServers;
use crate::workspace::{Durability, Workspace, sessions_dir, write_private};

/// The form of the file. Raised when an older program could misread it.
const VERSION: u32 = 1;

/// A session as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// The user's id in hexadecimal: it may be any bytes.
    user: String,
    conversation: String,
    /// The CLI's id of the conversation.
    pub(crate) cli_session_id: String,
    /// The paths that the CLI was given: it files the transcript by them.
    work: std::path::PathBuf,
    home: std::path::PathBuf,
    pub(crate) generation: u64,
    pub(crate) turns: u64,
    /// Turns that the CLI's conversation should hold: all of them, or those since it was lost.
    #[serde(default)]
    pub(crate) context_turns: u64,
    pub(crate) restarts: u64,
    pub(crate) cost_usd: f64,
    pub(crate) created: SystemTime,
    pub(crate) last_used: SystemTime,
    /// The last thing said that must be in the transcript, if nothing was lost.
    pub(crate) checkpoint: Option<String>,
    /// What is missing of the conversation, as long as no turn that was told of it has ended.
    #[serde(default)]
    pub(crate) untold_loss: Option<ContextLost>,
    /// Where earlier versions kept what is `bound.model` now.
    #[serde(default, skip_serializing)]
    model: Option<String>,
    /// The model that the CLI chose by itself when the conversation began: its window and its prompt depend on it.
    #[serde(default)]
    pub(crate) chosen_model: Option<String>,
    /// Bound at start.
    pub(crate) bound: BoundRecord,
}

/// What the session's children are started with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BoundRecord {
    #[serde(default)]
    pub(crate) model: Option<String>,
    pub(crate) system_prompt: Option<String>,
    pub(crate) fallback_model: Option<String>,
    pub(crate) mcp_servers: Option<McpServers>,
}

impl Record {
    /// A conversation that begins now.
    pub(crate) fn new(key: &SessionKey, workspace: &Workspace) -> Self {
        let now = SystemTime::now();
        Self {
            version: VERSION,
            user: hex(key.user().as_bytes()),
            conversation: key.conversation().to_owned(),
            cli_session_id: new_cli_session_id(),
            work: workspace.dirs().work.clone(),
            home: workspace.dirs().home.clone(),
            generation: 0,
            turns: 0,
            context_turns: 0,
            restarts: 0,
            cost_usd: 0.0,
            created: now,
            last_used: now,
            checkpoint: None,
            untold_loss: None,
            model: None,
            chosen_model: None,
            bound: BoundRecord::default(),
        }
    }

    /// Reads the session's file; `None` if there is none. A file that cannot be understood is an error: it is not
    /// written over.
    pub(crate) fn load(workspace: &Workspace, key: &SessionKey) -> io::Result<Option<Self>> {
        let path = workspace.record_file();
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = |problem: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {problem}", path.display()))
        };
        let record = Self::parse(&content).map_err(unreadable)?;
        if record.user != hex(key.user().as_bytes()) || record.conversation != key.conversation() {
            return Err(unreadable("it is another session's".to_owned()));
        }
        Ok(Some(record.with_progress(workspace)))
    }

    /// The record of the session whose directory has this name, if there is one that can be read.
    pub(crate) fn read(data_dir: &Path, hash: &str) -> Option<(SessionKey, Self)> {
        let hash = SessionHash::parse(hash)?;
        let workspace = Workspace::of(data_dir, &hash);
        let record = Self::parse(&fs::read(workspace.record_file()).ok()?).ok()?;
        let user = UserId::new(unhex(&record.user)?).ok()?;
        let key = SessionKey::new(user, &record.conversation).ok()?;
        (key.hash() == hash).then(|| (key, record.with_progress(&workspace)))
    }

    fn parse(content: &[u8]) -> Result<Self, String> {
        let mut record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("written in form {}, this program knows {VERSION}", record.version));
        }
        if Uuid::try_parse(&record.cli_session_id).is_err() {
            return Err("cli_session_id is no UUID".to_owned());
        }
        record.bound.model = record.bound.model.or(record.model.take());
        Ok(record)
    }

    /// With the turns that were noted after it was saved.
    fn with_progress(mut self, workspace: &Workspace) -> Self {
        if let Some(progress) = Progress::load(workspace).filter(|progress| progress.turns > self.turns) {
            self.context_turns = self.context_turns.saturating_add(progress.turns - self.turns);
            self.turns = progress.turns;
            self.checkpoint = progress.checkpoint;
        }
        self
    }

    /// Writes the session's file, whole or not at all.
    pub(crate) fn save(&self, workspace: &Workspace, durability: Durability) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        // The first record is written while the child is still being prepared: whichever comes first.
        workspace.create()?;
        write_private(&workspace.record_file(), &content, durability)
    }

    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation)
    }
}

/// Whose session a file is about.
#[cfg(feature = "server")]
pub(crate) fn owner_on_disk(record: &std::path::Path) -> Option<crate::ids::UserId> {
    #[derive(Deserialize)]
    struct Owner {
        user: String,
    }
    let Owner { user } = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    let (pairs, rest) = user.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty()).and_then(|bytes| crate::ids::UserId::new(bytes).ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// How far the conversation has come, written after every turn and therefore as cheaply as can be: in place, a few
/// bytes, with the kernel. Whoever kills this program together with the CLI takes the last answers away before the CLI
/// has written them down; by this it is known, and said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) turns: u64,
    pub(crate) checkpoint: Option<String>,
}

impl Progress {
    /// Longer than any content, so that a shorter one leaves nothing of a longer one behind.
    const LENGTH: usize = 128;

    fn load(workspace: &Workspace) -> Option<Self> {
        // One that cannot be read tells nothing more than the record.
        serde_json::from_slice(&fs::read(workspace.progress_file()).ok()?).ok()
    }

    fn content(&self) -> io::Result<Vec<u8>> {
        let mut content = serde_json::to_vec(self).map_err(io::Error::other)?;
        content.resize(content.len().max(Self::LENGTH), b' ');
        Ok(content)
    }
}

/// Where the turns of a child are noted as they end. Open as long as there is the child.
#[derive(Debug)]
pub(crate) struct ProgressFile {
    file: File,
    checkpoint: Mutex<Option<String>>,
}

impl ProgressFile {
    /// Blocks.
    pub(crate) fn open(workspace: &Workspace, record: &Record) -> io::Result<Self> {
        let path = workspace.progress_file();
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        Ok(Self { file, checkpoint: Mutex::new(record.checkpoint.clone()) })
    }

    /// Notes that the session has had so many turns, before anybody hears of the last one: who kills this program in the
    /// instant after must not make it forgotten in silence. A few bytes for the kernel: microseconds, unless the machine
    /// drowns in writing.
    pub(crate) fn note(&self, turns: u64, checkpoint: Option<&String>) {
        let mut last = self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if checkpoint.is_some() {
            last.clone_from(&checkpoint.cloned());
        }
        let progress = Progress { turns, checkpoint: last.clone() };
        if let Err(error) = progress.content().and_then(|content| self.file.write_all_at(&content, 0)) {
            tracing::warn!(%error, "the progress of a session was not written");
        }
    }
}

pub(crate) fn new_cli_session_id() -> String {
    Uuid::new_v4().to_string()
}

impl BoundRecord {
    /// A number that is the same for the same settings, also in another run.
    pub(crate) fn fingerprint(&self) -> u64 {
        // Keys of JSON objects are sorted: equal settings have equal text.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(text);
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// These settings, changed by what a turn asks for.
    pub(crate) fn with(&self, wanted: &Self) -> Self {
        let text = |wanted: &Option<String>, own: &Option<String>| match wanted.as_deref() {
            Some("") => None,
            Some(_) => wanted.clone(),
            None => own.clone(),
        };
        Self {
            model: wanted.model.clone().or_else(|| self.model.clone()),
            system_prompt: text(&wanted.system_prompt, &self.system_prompt),
            fallback_model: text(&wanted.fallback_model, &self.fallback_model),
            mcp_servers: match &wanted.mcp_servers {
                Some(servers) if servers.0.is_empty() => None,
                Some(_) => wanted.mcp_servers.clone(),
                None => self.mcp_servers.clone(),
            },
        }
    }
}

/// Writes one session's record, in order: an older state never replaces a newer one.
#[derive(Debug, Default)]
pub(crate) struct RecordWriter {
    written: tokio::sync::Mutex<u64>,
}

impl RecordWriter {
    /// Writes nothing more: the session is about to be deleted. Waits for what is being written.
    pub(crate) async fn close(&self) {
        *self.written.lock().await = u64::MAX;
    }

    /// Writes the `number`th state, unless a later one was written before. Failing to is told and survived: the
    /// session goes on in memory.
    pub(crate) async fn save(
        self: Arc<Self>,
        number: u64,
        record: Record,
        workspace: Workspace,
        durability: Durability,
    ) {
        let mut written = self.written.lock().await;
        if *written > number {
            return;
        }
        *written = number;
        match tokio::task::spawn_blocking(move || record.save(&workspace, durability)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a session's record was not written"),
            Err(error) => tracing::warn!(%error, "a session's record was not written"),
        }
    }
}

/// Held while an instance works in a data directory.
#[derive(Debug)]
pub(crate) struct DataDirLock {
    file: File,
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Closing alone is not enough: a process that is just being forked has the file open until it is another
        // program. If it fails, there was no lock.
        flock(&self.file, FlockOperation::Unlock).ok();
    }
}

/// Creates the data directory if it is missing, proves that it can be written, and locks it.
pub(crate) fn lock(data_dir: &Path) -> Result<DataDirLock, StartError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::DataDir { path, source }
    };
    let sessions = sessions_dir(data_dir);
    DirBuilder::new().recursive(true).mode(0o700).create(&sessions).map_err(failed(&sessions))?;
    let path = data_dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(StartError::DataDirLocked(data_dir.to_owned())),
        Err(errno) => return Err(failed(&path)(errno.into())),
    }
    // Being able to open the lock does not prove that sessions can be written: the disk may be full.
    let probe = sessions.join(".probe");
    write_private(&probe, b"pilotlight\n", Durability::Disk).map_err(failed(&probe))?;
    fs::remove_file(&probe).map_err(failed(&probe))?;
    Ok(DataDirLock { file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(data_dir: &Path) -> (SessionKey, Workspace) {
        let key = SessionKey::new(UserId::new([0, 0xff]).unwrap(), "default").unwrap();
        let workspace = Workspace::of(data_dir, &key.hash());
        workspace.create().unwrap();
        (key, workspace)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        assert_eq!(Record::load(&workspace, &key).unwrap(), None);
        let mut record = Record::new(&key, &workspace);
        record.turns = 3;
        record.checkpoint = Some("abc".into());
        record.save(&workspace, Durability::Disk).unwrap();
        assert_eq!(Record::load(&workspace, &key).unwrap(), Some(record));
    }

    #[test]
    fn progress_is_read_with_the_record_and_only_if_it_is_ahead() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let mut record = Record::new(&key, &workspace);
        record.turns = 3;
        record.context_turns = 2;
        record.checkpoint = Some("third".into());
        record.save(&workspace, Durability::Disk).unwrap();
        for (turns, checkpoint) in [(100, "a long one that a short one follows"), (5, "fifth")] {
            let file = ProgressFile::open(&workspace, &record).unwrap();
            file.note(turns, Some(&checkpoint.to_owned()));
            file.note(turns, None);
        }
        let loaded = Record::load(&workspace, &key).unwrap().unwrap();
        assert_eq!((loaded.turns, loaded.context_turns, loaded.checkpoint.as_deref()), (5, 4, Some("fifth")));
        ProgressFile::open(&workspace, &record).unwrap().note(2, None);
        assert_eq!(Record::load(&workspace, &key).unwrap(), Some(record));
    }

    #[test]
    fn another_sessions_record_is_not_taken() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let other = SessionKey::new(UserId::new("other").unwrap(), "default").unwrap();
        Record::new(&other, &workspace).save(&workspace, Durability::Disk).unwrap();
        assert_eq!(Record::load(&workspace, &key).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut record = Record::new(&key, &workspace);
        record.cli_session_id = "--help".into();
        record.save(&workspace, Durability::Disk).unwrap();
        assert_eq!(Record::load(&workspace, &key).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_stays() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let mut newer = Record::new(&key, &workspace);
        newer.version = VERSION + 1;
        for content in ["", "{", "[]", &serde_json::to_string(&newer).unwrap()] {
            fs::write(workspace.record_file(), content).unwrap();
            assert_eq!(Record::load(&workspace, &key).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(fs::read_to_string(workspace.record_file()).unwrap(), content);
        }
    }

    #[test]
    fn a_data_dir_has_one_instance() {
        let data = tempfile::tempdir().unwrap();
        let first = lock(data.path()).unwrap();
        assert!(matches!(lock(data.path()), Err(StartError::DataDirLocked(_))));
        drop(first);
        lock(data.path()).unwrap();
        let file = data.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(lock(&file), Err(StartError::DataDir { .. })));
    }
}
