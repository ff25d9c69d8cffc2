//! The conversation of this process: what was said, under which session id, and its entries in the transcript.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;

use super::args::Args;
use super::catalogue::VERSION;
use super::clock;
use super::json::{Object, object};
use super::transcript::{self, Said, Writer};

/// Why a conversation could not be taken up.
pub(crate) enum Refused {
    /// Only standard error tells.
    InUse(String),
    /// Standard error and a `result` tell, for this session id.
    NotFound { text: String, session_id: String },
}

/// See the module.
pub(crate) struct Conversation {
    pub(crate) session_id: String,
    pub(crate) cwd: String,
    pub(crate) dir: PathBuf,
    pub(crate) said: Vec<Said>,
    pub(crate) writer: Writer,
    /// The model of the last answer, if the conversation was resumed.
    pub(crate) resumed_model: Option<String>,
    seen: HashSet<String>,
    leaf: Option<String>,
    persist: bool,
}

impl Conversation {
    /// A new conversation, or an old one if the arguments name it.
    pub(crate) fn open(args: &Args, deny_resume: bool) -> Result<Self, Refused> {
        let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let cwd = cwd.to_string_lossy().into_owned();
        let dir = transcript::project_dir(&cwd);
        let mut conversation = Self {
            session_id: args.session_id.clone().unwrap_or_else(|| Uuid::new_v4().to_string()),
            cwd,
            dir,
            said: Vec::new(),
            writer: Writer::default(),
            resumed_model: None,
            seen: HashSet::new(),
            leaf: None,
            persist: args.persist,
        };
        let old = match &args.resume {
            Some(wanted) => Some(conversation.find(wanted, deny_resume)?),
            None if args.continue_newest => transcript::newest(&conversation.dir),
            None => None,
        };
        match old {
            Some(file) => conversation.take_up(&file, args)?,
            None if conversation.file().exists() => {
                let id = &conversation.session_id;
                return Err(Refused::InUse(format!("Error: Session ID {id} is already in use.")));
            }
            None => {}
        }
        conversation.writer.set_file(conversation.persist.then(|| conversation.file()));
        Ok(conversation)
    }

    fn find(&self, wanted: &str, deny: bool) -> Result<PathBuf, Refused> {
        if wanted.ends_with(".jsonl") && Path::new(wanted).is_absolute() && !deny {
            return Ok(PathBuf::from(wanted));
        }
        if Uuid::try_parse(wanted).is_err() {
            let text = format!(
                "Error: --resume requires a valid session ID or session title when used with --print. Usage: claude -p --resume <session-id|title>. Provided value \"{wanted}\" is not a UUID and does not match any session title."
            );
            return Err(Refused::NotFound { text, session_id: self.session_id.clone() });
        }
        let file = self.dir.join(format!("{wanted}.jsonl"));
        if deny || !file.exists() {
            return Err(not_found(wanted));
        }
        Ok(file)
    }

    fn take_up(&mut self, file: &Path, args: &Args) -> Result<(), Refused> {
        let id = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Some(history) = transcript::read(file) else { return Err(not_found(&id)) };
        self.said = history.said;
        self.seen = history.seen;
        self.leaf = history.leaf;
        self.resumed_model = history.model;
        if args.fork {
            self.writer.set_file(self.persist.then(|| self.file()));
            self.writer.append(&transcript::copy(file, &self.session_id));
        } else {
            self.session_id = id;
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        self.dir.join(format!("{}.jsonl", self.session_id))
    }

    /// The transcript's path, for texts that name it.
    pub(crate) fn file_name(&self) -> String {
        self.file().to_string_lossy().into_owned()
    }

    /// Forgets everything and goes on under a new session id; the old one can still be resumed.
    pub(crate) fn clear(&mut self) {
        self.session_id = Uuid::new_v4().to_string();
        self.said.clear();
        self.leaf = None;
        self.writer.set_file(self.persist.then(|| self.file()));
    }

    /// All messages of the conversation, as the API would get them.
    pub(crate) fn context(&self) -> Value {
        self.writer.flush();
        transcript::messages(&self.file())
    }

    /// True if this message was taken before, also by an earlier process of the conversation.
    pub(crate) fn was_seen(&self, uuid: Option<&str>) -> bool {
        uuid.is_some_and(|uuid| self.seen.contains(uuid))
    }

    /// How many turns the user has had, with the running one.
    pub(crate) fn turns(&self) -> usize {
        self.said.iter().filter(|said| said.own_turn).count()
    }

    /// Remembers the message of a turn (its ids: those of all messages that were joined).
    pub(crate) fn user(&mut self, text: &str, content: &Value, ids: &[String], mode: &str) {
        self.said.push(Said { text: text.to_owned(), own_turn: true });
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
            line.push(b'\n');
            self.writer.append(&line);
        }
        self.entry(&id, |o| {
            o.str("type", "user").object("message", |o| {
                o.str("role", "user").value("content", content);
            });
            o.str("permissionMode", mode).str("promptSource", "sdk");
        });
    }

    /// Remembers a message that came into a running turn.
    pub(crate) fn user_in_turn(&mut self, text: &str, uuid: &str) {
        self.said.push(Said { text: text.to_owned(), own_turn: false });
        self.seen.insert(uuid.to_owned());
        self.entry(uuid, |o| {
            o.str("type", "attachment").object("attachment", |o| {
                o.str("type", "queued_command").str("prompt", text).str("commandMode", "prompt");
            });
        });
    }

    /// Remembers a line of the assistant; `uuid` is the one of the same line in the stream.
    pub(crate) fn assistant(&mut self, uuid: &str, message: impl FnOnce(&mut Object<'_>)) {
        self.entry(uuid, |o| {
            o.object("message", message).str("type", "assistant");
        });
    }

    /// Remembers a tool result or a note, which are user messages that no user sent.
    pub(crate) fn note(&mut self, uuid: &str, message: &[u8], result: Option<&[u8]>) {
        self.entry(uuid, |o| {
            o.str("type", "user").raw("message", message);
            if let Some(result) = result {
                o.raw("toolUseResult", result);
            }
        });
    }

    /// Replaces the context by a summary.
    pub(crate) fn compact(&mut self, uuid: &str, summary: &str) {
        self.said.clear();
        self.leaf = None;
        self.entry(uuid, |o| {
            o.str("type", "user").bool("isCompactSummary", true).object("message", |o| {
                o.str("role", "user").str("content", summary);
            });
        });
    }

    /// The last entry's id.
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
        line.push(b'\n');
        self.leaf = Some(uuid.to_owned());
        self.writer.append(&line);
    }
}

fn not_found(id: &str) -> Refused {
    Refused::NotFound {
        text: format!("No conversation found with session ID: {id}"),
        session_id: id.to_owned(),
    }
}

/// An id for a line. Random, but without asking the kernel for each of them.
pub(crate) fn new_id() -> String {
    let mut text = [0; 36];
    line_id(&mut text).to_owned()
}

/// The same into a buffer on the stack.
pub(crate) fn line_id(buffer: &mut [u8; 36]) -> &str {
    let bytes = fastrand::u128(..).to_le_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().hyphenated().encode_lower(buffer)
}
