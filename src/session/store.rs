//! What outlives the process: one `session.json` per session, in a directory that no child can write.
//!
//! Everything here blocks; async callers go through [`tokio::task::spawn_blocking`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::config::CliConfig;
use crate::journal::{self, Mark};
use crate::model::CallerTool;
use crate::model::ids::{Generation, SessionHash, SessionKey, UserId};
use crate::support::atomic_file::{Durability, Staged, put_in_place};
use crate::support::hex;
use crate::telemetry::metrics::ContextLost;
use crate::turn::{McpServers, Restrictions};
use crate::workspace::{
    DirectoryName, MAX_RECORD_BYTES, RecordDir, Workspace, beneath::ReadError, open_to_read, read_own,
};

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
    /// Where the session's files are; not there in a record of the first release.
    #[serde(default)]
    directory: Option<DirectoryName>,
    /// The paths that the CLI was given. Not read here: the first release requires them.
    work: std::path::PathBuf,
    home: std::path::PathBuf,
    pub(crate) generation: u64,
    pub(crate) turns: u64,
    /// Turns that the CLI's conversation should hold: all of them, or those since it was lost.
    #[serde(default)]
    pub(crate) context_turns: u64,
    /// A turn was answered without an error. Records of earlier releases do not say so, and may hold answers.
    #[serde(default = "may_be_answered")]
    pub(crate) answered: bool,
    /// As `answered`, in the present conversation.
    #[serde(default = "may_be_answered")]
    pub(crate) context_answered: bool,
    pub(crate) restarts: u64,
    pub(crate) cost_usd: f64,
    /// Tokens of all turns; those that came from or went into the cache count as input.
    #[serde(default)]
    pub(crate) input_tokens: u64,
    /// As above.
    #[serde(default)]
    pub(crate) output_tokens: u64,
    /// The first words of the conversation, for lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    pub(crate) created: SystemTime,
    pub(crate) last_used: SystemTime,
    /// The last message of a turn that was answered: it must be in the transcript, if nothing was lost.
    pub(crate) checkpoint: Option<String>,
    /// The last message since then, of a turn that was not answered.
    #[serde(default)]
    pub(crate) unanswered: Option<String>,
    /// A gap in the transcript that has been found before: it stays there.
    #[serde(default)]
    pub(crate) known_gap: Option<String>,
    /// What is missing of the conversation, until a turn that reported it has ended.
    #[serde(default, rename = "untold_loss")]
    pub(crate) unreported_context_loss: Option<ContextLost>,
    /// Where the first release keeps what is `settings.model` now: written for the way back to it.
    #[serde(default)]
    model: Option<String>,
    /// The model that the CLI chose by itself when the conversation began: its window and its prompt depend on it.
    #[serde(default)]
    pub(crate) chosen_model: Option<String>,
    /// A caller has brought OAuth credentials for this session: every child that is started for a turn from now on uses
    /// them.
    #[serde(default)]
    pub(crate) own_credentials: bool,
    /// The settings that children are started with.
    #[serde(rename = "bound")]
    pub(crate) settings: SettingsRecord,
}

/// What the session's children are started with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SettingsRecord {
    #[serde(default)]
    pub(crate) model: Option<String>,
    pub(crate) system_prompt: Option<String>,
    pub(crate) fallback_model: Option<String>,
    // Formerly `mcp_servers`, without the sender: those definitions are not taken over.
    #[serde(default, rename = "mcp")]
    pub(crate) mcp_servers: Option<McpServers>,
    /// The session's own OAuth credentials are used, and none of the operator's.
    #[serde(default)]
    pub(crate) own_credentials: bool,
    /// Those of the turn that a child is started for.
    #[serde(default, skip_serializing_if = "Restrictions::is_none")]
    pub(crate) restrictions: Restrictions,
    /// Those of the turn that a child is started for.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub(crate) caller_tools: Arc<[CallerTool]>,
    /// That of the turn that a child is started for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output_schema: Option<serde_json::Value>,
}

fn is_empty(tools: &Arc<[CallerTool]>) -> bool {
    tools.is_empty()
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// It was damaged, and no later try will understand it.
    #[error("{0}")]
    Broken(String),
    /// The host cannot read it now.
    #[error(transparent)]
    System(#[from] io::Error),
}

fn may_be_answered() -> bool {
    true
}

impl Record {
    /// A conversation that begins now.
    pub(crate) fn new(key: &SessionKey, workspace: &Workspace) -> Self {
        let now = SystemTime::now();
        Self {
            version: VERSION,
            user: hex::encode(key.user().as_bytes()),
            conversation: key.conversation().to_owned(),
            cli_session_id: new_cli_session_id(),
            directory: Some(workspace.name().clone()),
            work: workspace.dirs().work.clone(),
            home: workspace.dirs().home.clone(),
            generation: 0,
            turns: 0,
            context_turns: 0,
            answered: false,
            context_answered: false,
            restarts: 0,
            cost_usd: 0.0,
            input_tokens: 0,
            output_tokens: 0,
            title: None,
            created: now,
            last_used: now,
            checkpoint: None,
            unanswered: None,
            known_gap: None,
            unreported_context_loss: None,
            model: None,
            chosen_model: None,
            own_credentials: false,
            settings: SettingsRecord::default(),
        }
    }

    /// Reads the session's file; `None` if there is none.
    pub(crate) fn load(data_dir: &Path, key: &SessionKey) -> Result<Option<Self>, Unreadable> {
        let hash = key.hash();
        let files = RecordDir::of(data_dir, &hash);
        let Some(content) = read(&files)? else { return Ok(None) };
        let record = Self::parse(&content).map_err(Unreadable::Broken)?;
        if record.key().is_none_or(|own| own != *key) {
            return Err(Unreadable::Broken("it is another session's".to_owned()));
        }
        Ok(Some(record.with_progress(&files)))
    }

    /// The record that lies under this hash, if it can be read.
    pub(crate) fn read(data_dir: &Path, hash: &SessionHash) -> Option<(SessionKey, Self)> {
        let files = RecordDir::of(data_dir, hash);
        let record = Self::parse(&read(&files).ok()??).ok()?;
        let key = record.key().filter(|key| key.hash() == *hash)?;
        Some((key, record.with_progress(&files)))
    }

    fn key(&self) -> Option<SessionKey> {
        let user = UserId::new(hex::decode(&self.user)?).ok()?;
        SessionKey::new(user, &self.conversation).ok()
    }

    /// The session's files.
    pub(crate) fn workspace(&self, data_dir: &Path, hash: &SessionHash) -> Workspace {
        let named = self.directory.clone().or_else(|| RecordDir::of(data_dir, hash).directory());
        Workspace::of(data_dir, hash, &named.unwrap_or_else(|| DirectoryName::of_hash(hash)))
    }

    fn parse(content: &[u8]) -> Result<Self, String> {
        let mut record: Self = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("written in form {}, this program knows {VERSION}", record.version));
        }
        if Uuid::try_parse(&record.cli_session_id).is_err() {
            return Err("cli_session_id is no UUID".to_owned());
        }
        record.settings.model = record.settings.model.or(record.model.take());
        Ok(record)
    }

    /// With the turns that were noted after it was saved.
    fn with_progress(mut self, files: &RecordDir) -> Self {
        if let Some(mark) = last_mark(files).filter(|mark| mark.turns > self.turns) {
            self.context_turns = self.context_turns.saturating_add(mark.turns - self.turns);
            self.turns = mark.turns;
            // The journal does not say. A killed server had no time to save the record.
            (self.answered, self.context_answered) = (true, true);
            (self.checkpoint, self.unanswered) = (mark.checkpoint, mark.unanswered);
            if Uuid::try_parse(&mark.conversation).is_ok() {
                self.cli_session_id = mark.conversation;
            }
        }
        self
    }

    /// Goes on with the conversation that the session's journal names; whether it names one. The record itself is lost.
    pub(crate) fn take_from_journal(&mut self, files: &RecordDir) -> bool {
        let named = last_mark(files).filter(|mark| Uuid::try_parse(&mark.conversation).is_ok());
        let Some(Mark { turns, checkpoint, unanswered, conversation, .. }) = named else { return false };
        (self.turns, self.context_turns) = (turns, turns);
        // The journal does not say.
        (self.answered, self.context_answered) = (turns > 0, turns > 0);
        // Without a checkpoint only the record knew whether anything was answered: it may have been.
        (self.checkpoint, self.unanswered) = match checkpoint {
            Some(checkpoint) => (Some(checkpoint), unanswered),
            None => (unanswered, None),
        };
        self.cli_session_id = conversation;
        true
    }

    /// Writes the session's file, whole or not at all.
    pub(crate) fn save(&self, workspace: &Workspace, durability: Durability) -> io::Result<()> {
        put_in_place(&mut [self.stage(workspace, durability)?]).pop().unwrap_or(Ok(()))
    }

    /// Writes what is to be the session's file.
    pub(super) fn stage(&self, workspace: &Workspace, durability: Durability) -> io::Result<Staged> {
        let kept = Self { model: self.settings.model.clone(), ..self.clone() };
        let content = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
        let file = workspace.record().session_file();
        let stage = || Staged::write(&file, &content, durability, |_| Ok(()));
        match stage() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                workspace.record().create()?;
                stage()
            }
            staged => staged,
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// What a child of this conversation works with that has no model of its own: the configured one, else what the CLI
    /// chose when the conversation began, to go on with the same window and system prompt.
    pub(crate) fn model_without<'a>(&'a self, cli: &'a CliConfig) -> Option<&'a str> {
        cli.model.as_deref().or(self.chosen_model.as_deref())
    }
}

/// The content of a session's file; `None` if there is none. A disk may fail, an operator err, a child of the server's
/// own user plant something: what is there need be neither a file nor a short one.
fn read(files: &RecordDir) -> Result<Option<Vec<u8>>, Unreadable> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    let read = || read_own(&files.session_file(), MAX_RECORD_BYTES);
    let content = read().or_else(|refused| match refused {
        ReadError::Io(error) if error.kind() == PermissionDenied => {
            files.restore_access()?;
            read()
        }
        refused => Err(refused),
    });
    match content {
        Ok(content) => Ok(Some(content)),
        Err(ReadError::Io(error)) => match error.kind() {
            NotFound => Ok(None),
            IsADirectory | NotADirectory | PermissionDenied => Err(Unreadable::Broken(error.to_string())),
            _ if error.raw_os_error() == Some(libc::ELOOP) => Err(Unreadable::Broken(error.to_string())),
            _ => Err(Unreadable::System(error)),
        },
        Err(refused) => Err(Unreadable::Broken(refused.to_string())),
    }
}

/// Longest file of progress that is read: it has 128 bytes, and more only with a long checkpoint.
const MAX_PROGRESS_BYTES: u64 = 64 << 10;

/// What an earlier program noted of the last turn.
#[derive(Deserialize)]
struct Progress {
    turns: u64,
    checkpoint: Option<String>,
}

/// How far the conversation has come: the last mark of its journal.
fn last_mark(files: &RecordDir) -> Option<Mark> {
    let journal = open_to_read(&files.journal_file()).ok().and_then(|file| journal::load(&file).ok());
    let (mark, _) = journal.flatten().or_else(|| {
        // Without a readable one only the record counts.
        let content = read_own(&files.progress_file(), MAX_PROGRESS_BYTES).ok()?;
        let Progress { turns, checkpoint } = serde_json::from_slice(&content).ok()?;
        Some((Mark { turns, checkpoint, ..Mark::default() }, false))
    })?;
    Some(mark)
}

pub(crate) fn new_cli_session_id() -> String {
    Uuid::new_v4().to_string()
}

impl SettingsRecord {
    /// A number that is the same for the same settings, also in another run.
    pub(crate) fn hash(&self) -> u64 {
        // Keys of JSON objects are sorted: equal settings have equal text.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(text);
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// These settings, changed by those of a turn. `model_without` is what a child works with that is bound to no
    /// model: to ask for that one changes nothing.
    pub(crate) fn with(&self, wanted: &Self, model_without: Option<&str>) -> Self {
        let text = |wanted: &Option<String>, own: &Option<String>| match wanted.as_deref() {
            Some("") => None,
            Some(_) => wanted.clone(),
            None => own.clone(),
        };
        Self {
            model: match wanted.model.as_deref() {
                Some(model) if self.model.is_none() && model_without == Some(model) => None,
                Some(_) => wanted.model.clone(),
                None => self.model.clone(),
            },
            system_prompt: text(&wanted.system_prompt, &self.system_prompt),
            fallback_model: text(&wanted.fallback_model, &self.fallback_model),
            mcp_servers: match &wanted.mcp_servers {
                Some(servers) if servers.is_empty() => None,
                Some(_) => wanted.mcp_servers.clone(),
                None => self.mcp_servers.clone(),
            },
            own_credentials: self.own_credentials || wanted.own_credentials,
            // Never kept: they belong to the caller of each turn.
            restrictions: wanted.restrictions.clone(),
            caller_tools: wanted.caller_tools.clone(),
            output_schema: wanted.output_schema.clone(),
        }
    }

    /// Whether a turn that asks for nothing needs another child than one with these.
    pub(crate) fn belong_to_a_turn(&self) -> bool {
        !self.restrictions.is_none() || !self.caller_tools.is_empty() || self.output_schema.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{TRAPS, remove_any};

    fn session(data_dir: &Path) -> (SessionKey, Workspace) {
        let key = SessionKey::new(UserId::new([0, 0xff]).unwrap(), "default").unwrap();
        let workspace = Workspace::of(data_dir, &key.hash(), &DirectoryName::random());
        (key, workspace)
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        assert_eq!(Record::load(data.path(), &key).unwrap(), None);
        let mut record = Record::new(&key, &workspace);
        record.turns = 3;
        record.checkpoint = Some("abc".into());
        record.settings.model = Some("haiku".into());
        record.save(&workspace, Durability::Disk).unwrap();
        let loaded = Record::load(data.path(), &key).unwrap().unwrap();
        assert_eq!(loaded, record);
        assert_eq!(loaded.workspace(data.path(), &key.hash()), workspace);
        assert_eq!(Record::read(data.path(), &key.hash()), Some((key, record)));
    }

    #[test]
    fn asking_for_the_model_at_work_changes_nothing() {
        let settings =
            |model: Option<&str>| SettingsRecord { model: model.map(str::to_owned), ..Default::default() };
        // Bound so far, asked for, at work if nothing is bound: bound from then on.
        let cases = [
            (None, None, Some("a"), None),
            (None, Some("a"), None, Some("a")),
            (None, Some("a"), Some("a"), None),
            (None, Some("b"), Some("a"), Some("b")),
            (Some("a"), None, Some("b"), Some("a")),
            (Some("a"), Some("a"), Some("a"), Some("a")),
            (Some("a"), Some("b"), Some("b"), Some("b")),
        ];
        for (own, wanted, without, expected) in cases {
            let next = settings(own).with(&settings(wanted), without);
            assert_eq!(next, settings(expected), "{own:?} {wanted:?} {without:?}");
        }
        let (key, workspace) = session(Path::new("/nowhere"));
        let mut record = Record::new(&key, &workspace);
        let mut cli = CliConfig::default();
        assert_eq!(record.model_without(&cli), None);
        record.chosen_model = Some("chosen".into());
        assert_eq!(record.model_without(&cli), Some("chosen"));
        cli.model = Some("configured".into());
        assert_eq!(record.model_without(&cli), Some("configured"));
    }

    #[test]
    fn progress_is_read_only_if_ahead_of_the_record() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let mut record = Record::new(&key, &workspace);
        record.turns = 3;
        record.context_turns = 2;
        record.checkpoint = Some("third".into());
        record.save(&workspace, Durability::Disk).unwrap();
        for (turns, checkpoint) in [(100, "a long one that a short one follows"), (5, "fifth")] {
            mark(&workspace, turns, Some(checkpoint));
        }
        let loaded = Record::load(data.path(), &key).unwrap().unwrap();
        assert_eq!((loaded.turns, loaded.context_turns, loaded.checkpoint.as_deref()), (5, 4, Some("fifth")));
        mark(&workspace, 2, None);
        assert_eq!(Record::load(data.path(), &key).unwrap(), Some(record.clone()));
        let marked = |checkpoint: Option<&str>| {
            let (checkpoint, unanswered) = (checkpoint.map(str::to_owned), Some("sixth".to_owned()));
            let mark = Mark { turns: 6, checkpoint, unanswered, ..Mark::default() };
            let mark = Mark { conversation: record.cli_session_id.clone(), ..mark };
            journal::write(&workspace.record().journal_file(), &mark, &[], Durability::Kernel).unwrap();
            let mut other = Record::new(&key, &workspace);
            assert!(other.take_from_journal(workspace.record()));
            let loaded = Record::load(data.path(), &key).unwrap().unwrap();
            [loaded, other].map(|it| (it.checkpoint, it.unanswered))
        };
        let (fifth, sixth) = (Some("fifth".to_owned()), Some("sixth".to_owned()));
        let both = (fifth, sixth.clone());
        assert_eq!(marked(Some("fifth")), [both.clone(), both]);
        // Whether anything was answered is not known without the record.
        assert_eq!(marked(None), [(None, sixth.clone()), (sixth, None)]);
        // What an earlier program has noted counts until there is a journal.
        remove_any(&workspace.record().journal_file()).unwrap();
        std::fs::write(workspace.record().progress_file(), r#"{"turns":4,"checkpoint":"fourth"} "#).unwrap();
        let loaded = Record::load(data.path(), &key).unwrap().unwrap();
        assert_eq!((loaded.turns, loaded.checkpoint.as_deref()), (4, Some("fourth")));
    }

    fn mark(workspace: &Workspace, turns: u64, checkpoint: Option<&str>) {
        let mark = Mark { turns, checkpoint: checkpoint.map(str::to_owned), ..Mark::default() };
        journal::write(&workspace.record().journal_file(), &mark, &[], Durability::Kernel).unwrap();
    }

    fn is_broken(data_dir: &Path, key: &SessionKey) -> bool {
        matches!(Record::load(data_dir, key), Err(Unreadable::Broken(_)))
    }

    #[test]
    fn another_sessions_record_is_not_taken() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let other = SessionKey::new(UserId::new("other").unwrap(), "default").unwrap();
        Record::new(&other, &workspace).save(&workspace, Durability::Disk).unwrap();
        assert!(is_broken(data.path(), &key));
        for damage in [
            |record: &mut Record| record.cli_session_id = "--help".into(),
            |record: &mut Record| {
                record.version = VERSION + 1;
            },
        ] {
            let mut record = Record::new(&key, &workspace);
            damage(&mut record);
            record.save(&workspace, Durability::Disk).unwrap();
            assert!(is_broken(data.path(), &key));
        }
    }

    #[test]
    fn definition_of_an_older_record_is_not_taken_over() {
        let old = serde_json::json!({ "system_prompt": "brief", "fallback_model": null,
            "mcp_servers": { "m": { "type": "stdio", "command": "x" } } });
        let settings: SettingsRecord = serde_json::from_value(old).unwrap();
        assert_eq!((settings.system_prompt.as_deref(), settings.mcp_servers), (Some("brief"), None));
    }

    /// A child that runs as the server's own user may plant anything: what waits, or never ends, holds up nobody.
    #[test]
    fn planted_records_are_broken_without_a_wait() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let record = Record::new(&key, &workspace);
        for set in TRAPS {
            let files = workspace.record();
            remove_any(&files.session_file()).unwrap();
            files.create().unwrap();
            set(&files.session_file());
            assert!(is_broken(data.path(), &key));
            record
                .save(&workspace, Durability::Kernel)
                .or_else(|_| remove_any(&files.session_file()))
                .unwrap();
            record.save(&workspace, Durability::Kernel).unwrap();
            for path in [
                files.journal_file(),
                files.progress_file(),
                data.path().join("records").join(key.hash().as_str()).join("directory"),
            ] {
                remove_any(&path).unwrap();
                set(&path);
            }
            let loaded = Record::load(data.path(), &key).unwrap().unwrap();
            assert_eq!(loaded.workspace(data.path(), &key.hash()), workspace);
            remove_any(&files.journal_file()).unwrap();
            mark(&workspace, 7, None);
            assert_eq!(Record::load(data.path(), &key).unwrap().unwrap().turns, 7);
        }
    }

    #[test]
    fn what_is_not_understood_is_broken() {
        let data = tempfile::tempdir().unwrap();
        let (key, workspace) = session(data.path());
        let record = Record::new(&key, &workspace);
        record.save(&workspace, Durability::Disk).unwrap();
        let file = workspace.record().session_file();
        let whole = std::fs::read(&file).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&file, whole.get(..length).unwrap()).unwrap();
            assert!(is_broken(data.path(), &key), "cut to {length}");
        }
        // A flipped bit may hit a number; it is read, or broken, and nothing panics.
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, flipped).unwrap();
            assert!(is_broken(data.path(), &key) || Record::load(data.path(), &key).unwrap().is_some());
        }
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(is_broken(data.path(), &key));
        std::fs::remove_dir(&file).unwrap();
        std::os::unix::fs::symlink(&file, &file).unwrap();
        assert!(is_broken(data.path(), &key));
    }
}
