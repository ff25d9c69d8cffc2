//! The conversation of this process: its messages, its session id and its transcript entries.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;

use crate::args::Args;
use crate::catalogue::VERSION;
use crate::clock;
use crate::json::{Object, object};
use crate::transcript::{self, UserText};
use crate::transcript_writer::Writer;

/// Reason why a conversation could not be opened.
pub(crate) enum OpenError {
    /// Reported on standard error only.
    InUse(String),
    /// Reported on standard error and in a `result` with this session id.
    NotFound { text: String, session_id: String },
}

/// The conversation.
pub(crate) struct Conversation {
    pub(crate) session_id: String,
    pub(crate) cwd: String,
    pub(crate) dir: PathBuf,
    pub(crate) user_texts: Vec<UserText>,
    pub(crate) writer: Writer,
    /// Model of the last answer in a resumed conversation.
    pub(crate) resumed_model: Option<String>,
    seen: HashSet<String>,
    leaf: Option<String>,
    /// Entries that are to be repeated on the output, as a JSON list without brackets; `None` without a mirror.
    mirror: Option<Vec<u8>>,
}

impl Conversation {
    /// Opens a new conversation, or resumes the one that the arguments name.
    pub(crate) fn open(args: &Args, deny_resume: bool) -> Result<Self, OpenError> {
        let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let cwd = cwd.to_string_lossy().into_owned();
        let dir = transcript::project_dir(&cwd);
        let mut conversation = Self {
            session_id: args.session_id.clone().unwrap_or_else(|| Uuid::new_v4().to_string()),
            cwd,
            dir,
            user_texts: Vec::new(),
            writer: Writer::default(),
            resumed_model: None,
            seen: HashSet::new(),
            leaf: None,
            mirror: args.mirror.then(Vec::new),
        };
        let old = match &args.resume {
            Some(wanted) => Some(conversation.find(wanted, deny_resume)?),
            None => None,
        };
        match old {
            Some(file) => conversation.resume(&file)?,
            None if conversation.file().exists() => {
                let id = &conversation.session_id;
                return Err(OpenError::InUse(format!("Error: Session ID {id} is already in use.")));
            }
            None => {}
        }
        conversation.writer.set_file(conversation.file());
        Ok(conversation)
    }

    fn find(&self, wanted: &str, deny: bool) -> Result<PathBuf, OpenError> {
        if wanted.ends_with(".jsonl") && Path::new(wanted).is_absolute() && !deny {
            return Ok(PathBuf::from(wanted));
        }
        if Uuid::try_parse(wanted).is_err() {
            let text = format!(
                "Error: --resume requires a valid session ID or session title when used with --print. Usage: claude -p --resume <session-id|title>. Provided value \"{wanted}\" is not a UUID and does not match any session title."
            );
            return Err(OpenError::NotFound { text, session_id: self.session_id.clone() });
        }
        let file = self.dir.join(format!("{wanted}.jsonl"));
        if deny || !file.exists() {
            return Err(not_found(wanted));
        }
        Ok(file)
    }

    fn resume(&mut self, file: &Path) -> Result<(), OpenError> {
        let id = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some(history) = transcript::read(file) else { return Err(not_found(&id)) };
        self.user_texts = history.user_texts;
        self.seen = history.seen;
        self.leaf = history.leaf;
        self.resumed_model = history.model;
        self.session_id = id;
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.jsonl", self.session_id))
    }

    /// The transcript's path, for texts that mention it.
    pub(crate) fn file_name(&self) -> String {
        self.file().to_string_lossy().into_owned()
    }

    /// Starts an empty conversation with a new session id; the old one can still be resumed.
    pub(crate) fn clear(&mut self) {
        self.session_id = Uuid::new_v4().to_string();
        self.user_texts.clear();
        self.leaf = None;
        self.writer.set_file(self.file());
    }

    /// All messages, as the API would receive them.
    pub(crate) fn context(&self) -> Value {
        self.writer.flush();
        transcript::messages(&self.file())
    }

    /// Whether this or an earlier process has already received the message.
    pub(crate) fn was_seen(&self, uuid: Option<&str>) -> bool {
        uuid.is_some_and(|uuid| self.seen.contains(uuid))
    }

    /// Number of the user's turns, with the running one.
    pub(crate) fn turns(&self) -> usize {
        self.user_texts.iter().filter(|user| user.own_turn).count()
    }

    /// Adds the message of a turn, with the ids of all messages that were joined.
    pub(crate) fn user(&mut self, text: &str, content: &Value, ids: &[String], mode: &str) {
        self.user_texts.push(UserText { text: text.to_owned(), own_turn: true });
        self.seen.extend(ids.iter().cloned());
        let id = ids.last().cloned().unwrap_or_else(new_id);
        for (operation, content) in [("enqueue", Some(text)), ("dequeue", None)] {
            let mut line = Vec::new();
            object(&mut line, |o| {
                o.str("type", "queue-operation").str("operation", operation);
                o.str("timestamp", &clock::timestamp()).str("sessionId", &self.session_id);
                if let Some(content) = content {
                    o.str("content", content);
                }
            });
            self.append(line);
        }
        self.entry(&id, |o| {
            o.str("type", "user").object("message", |o| {
                o.str("role", "user").value("content", content);
            });
            o.str("permissionMode", mode).str("promptSource", "sdk");
        });
    }

    /// Adds a message that joined a running turn.
    pub(crate) fn user_in_turn(&mut self, text: &str, uuid: &str) {
        self.user_texts.push(UserText { text: text.to_owned(), own_turn: false });
        self.seen.insert(uuid.to_owned());
        self.entry(uuid, |o| {
            o.str("type", "attachment").object("attachment", |o| {
                o.str("type", "queued_command").str("prompt", text).str("commandMode", "prompt");
            });
        });
    }

    /// Adds a line of the assistant; `uuid` is that of the line in the stream.
    pub(crate) fn assistant(&mut self, uuid: &str, message: impl FnOnce(&mut Object<'_>)) {
        self.entry(uuid, |o| {
            o.object("message", message).str("type", "assistant");
        });
    }

    /// Adds a tool result or a note: user messages that no user sent.
    pub(crate) fn note(&mut self, uuid: &str, message: &[u8], result: Option<&[u8]>) {
        self.entry(uuid, |o| {
            o.str("type", "user").raw("message", message);
            if let Some(result) = result {
                o.raw("toolUseResult", result);
            }
        });
    }

    /// Replaces the messages by a summary.
    pub(crate) fn compact(&mut self, boundary: &str, uuid: &str, summary: &str) {
        self.user_texts.clear();
        let former = self.leaf.take();
        self.entry(boundary, |o| {
            o.opt("logicalParentUuid", former.as_deref());
            o.str("type", "system").str("subtype", "compact_boundary");
            o.str("content", "Conversation compacted").bool("isMeta", false);
        });
        self.entry(uuid, |o| {
            o.str("type", "user").bool("isCompactSummary", true).object("message", |o| {
                o.str("role", "user").str("content", summary);
            });
        });
    }

    /// Id of the last entry.
    pub(crate) fn leaf(&self) -> &str {
        self.leaf.as_deref().unwrap_or_default()
    }

    fn entry(&mut self, uuid: &str, fill: impl FnOnce(&mut Object<'_>)) {
        let mut line = Vec::new();
        object(&mut line, |o| {
            o.opt("parentUuid", self.leaf.as_deref()).bool("isSidechain", false);
            fill(o);
            o.str("uuid", uuid).str("timestamp", &clock::timestamp());
            o.str("userType", "external").str("entrypoint", "sdk-cli").str("cwd", &self.cwd);
            o.str("sessionId", &self.session_id).str("version", VERSION).str("gitBranch", "HEAD");
        });
        self.leaf = Some(uuid.to_owned());
        self.append(line);
    }

    fn append(&mut self, mut line: Vec<u8>) {
        if let Some(mirror) = &mut self.mirror {
            if !mirror.is_empty() {
                mirror.push(b',');
            }
            mirror.extend_from_slice(&line);
        }
        line.push(b'\n');
        self.writer.append(&line);
    }

    /// The entries since the last call, in brackets. As in claude, none once the file could not be written.
    pub(crate) fn take_mirrored(&mut self) -> Option<Vec<u8>> {
        let entries = self.mirror.as_mut().map(std::mem::take).filter(|entries| !entries.is_empty())?;
        (!self.writer.has_failed()).then(|| [b"[", entries.as_slice(), b"]"].concat())
    }
}

fn not_found(id: &str) -> OpenError {
    OpenError::NotFound {
        text: format!("No conversation found with session ID: {id}"),
        session_id: id.to_owned(),
    }
}

/// Random id of a line, without a system call.
pub(crate) fn new_id() -> String {
    let mut text = [0; 36];
    line_id(&mut text).to_owned()
}

/// The same into a buffer on the stack.
pub(crate) fn line_id(buffer: &mut [u8; 36]) -> &str {
    let bytes = fastrand::u128(..).to_le_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().encode_lower(buffer)
}
