//! Nodes with files of users, for tests.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use super::apply::{Apply, ApplyError};
use super::collect::{Collected, Collector, Options, Scope, Step, Summary};
use super::delta::{Decoded, Encoded, Header, Kind};
use super::key::ObjectId;
use super::places::UserPlaces;
use super::state::UserState;
use crate::model::ids::{SessionHash, SessionKey, UserId};
use crate::support::hex;
use crate::workspace::{DirectoryName, records_dir, sessions_dir};

/// A node with its data directory.
pub(crate) struct Node {
    pub(crate) data: tempfile::TempDir,
    pub(crate) user: UserId,
}

/// A session of the node's user.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) hash: SessionHash,
    pub(crate) record: PathBuf,
    pub(crate) work: PathBuf,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::of("alice")
    }

    pub(crate) fn of(user: &str) -> Self {
        let node = Self { data: tempfile::tempdir().unwrap(), user: UserId::new(user).unwrap() };
        for directory in [records_dir(node.path()), sessions_dir(node.path())] {
            fs::create_dir(directory).unwrap();
        }
        node
    }

    pub(crate) fn path(&self) -> &Path {
        self.data.path()
    }

    pub(crate) fn places(&self) -> UserPlaces {
        UserPlaces::of(self.path(), &self.user)
    }

    pub(crate) fn hash(&self, conversation: &str) -> SessionHash {
        SessionKey::new(self.user.clone(), conversation).unwrap().hash()
    }

    /// A session that has begun, with everything that one has.
    pub(crate) fn session(&self, conversation: &str) -> Session {
        let hash = self.hash(conversation);
        let name = DirectoryName::random();
        let record = self.places().record(&hash);
        let root = sessions_dir(self.path()).join(name.as_str());
        for directory in
            [&record, &root.join("work"), &root.join("home"), &root.join("tmp"), self.places().list()]
        {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(self.places().list().join(hash.as_str()), "").unwrap();
        fs::write(record.join("directory"), name.as_str()).unwrap();
        let content = json!({
            "version": 1, "user": hex::encode(self.user.as_bytes()), "conversation": conversation, "turns": 1,
            "work": root.join("work"), "home": root.join("home"),
            "bound": { "mcp": { "z": 1, "a": 0.1 }, "system_prompt": null },
        });
        fs::write(record.join("session.json"), serde_json::to_vec_pretty(&content).unwrap()).unwrap();
        fs::write(record.join("journal"), "mark").unwrap();
        fs::write(root.join("home/transcript"), "not replicated").unwrap();
        Session { hash, record, work: root.join("work") }
    }

    pub(crate) fn known(&self, conversation: &str) -> Session {
        let hash = self.hash(conversation);
        let work = self.places().session(&hash).unwrap().join("work");
        Session { record: self.places().record(&hash), work, hash }
    }

    /// Removes a session as a deletion does.
    pub(crate) fn delete(&self, conversation: &str) {
        let session = self.known(conversation);
        fs::remove_dir_all(session.work.parent().unwrap()).unwrap();
        fs::remove_dir_all(&session.record).unwrap();
        fs::remove_file(self.places().list().join(session.hash.as_str())).unwrap();
    }

    /// What the user has beside sessions.
    pub(crate) fn others(&self) {
        let places = self.places();
        fs::create_dir_all(places.responses()).unwrap();
        for file in [places.usage(), places.conversations(), places.responses().join("resp_1")] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, file.as_os_str().as_encoded_bytes().len().to_string()).unwrap();
        }
    }

    /// All that is replicated of the user: kind, mode and content of each path.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        let (places, mut found) = (self.places(), BTreeMap::new());
        for (name, path) in places.others() {
            walk(&path, name, &mut found);
        }
        for session in places.sessions().unwrap() {
            let record = places.record(&session);
            walk(&record, &format!("record {session}"), &mut found);
            if let Some(root) = places.session(&session) {
                walk(&root.join("work"), &format!("work {session}"), &mut found);
            }
        }
        found.retain(|path, _| {
            !path.ends_with("credentials.json") && !matches!(&**path, "list" | "responses")
        });
        found
    }

    /// Everything below the data directory.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        walk(self.path(), "", &mut found);
        found
    }
}

fn walk(path: &Path, name: &str, found: &mut BTreeMap<String, String>) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let mode = metadata.mode() & 0o777;
    if metadata.is_symlink() {
        found.insert(name.to_owned(), format!("link {}", fs::read_link(path).unwrap().display()));
    } else if metadata.is_dir() {
        // Modes of the server's own directories are no data; children's get the owner's bits.
        found.insert(
            name.to_owned(),
            if name.starts_with("work ") && name.contains('/') {
                format!("dir {:o}", mode | 0o700)
            } else {
                "dir".to_owned()
            },
        );
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            walk(&entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()), found);
        }
    } else if metadata.is_file() {
        let content = fs::read(path).unwrap();
        let content = match serde_json::from_slice::<Value>(&content) {
            // The paths are the node's.
            Ok(Value::Object(mut record)) if name.ends_with("session.json") => {
                for key in ["work", "home"] {
                    let path = record.remove(key).unwrap();
                    assert!(path.as_str().unwrap().ends_with(key));
                }
                serde_json::to_string(&record).unwrap()
            }
            _ => format!("{:?}", Bytes::from(content)),
        };
        let meta = if name.starts_with("work ") {
            format!("{:o} {}", mode | 0o600, metadata.mtime())
        } else {
            String::new()
        };
        found.insert(name.to_owned(), format!("file {meta} {content}"));
    }
}

pub(crate) fn bytes(object: &Encoded) -> Bytes {
    object.pieces.iter().flatten().copied().collect::<Vec<_>>().into()
}

/// An object with its parts before it.
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) pieces: Vec<Decoded>,
    pub(crate) summary: Summary,
}

impl Object {
    pub(crate) fn entries(&self) -> Vec<String> {
        let name = |it: &Decoded| {
            it.entries()
                .map(|entry| {
                    let change = format!("{:?}", entry.change);
                    let change = change.split([' ', '(']).next().unwrap().to_owned();
                    format!("{change} {}", String::from_utf8_lossy(entry.path))
                })
                .collect::<Vec<_>>()
        };
        self.pieces.iter().flat_map(name).collect()
    }
}

/// What a call of `replicate` writes, without a store.
pub(crate) fn collect(node: &Node, scope: Scope, state: &mut UserState) -> Object {
    collect_with(node, scope, Options::default(), state)
}

pub(crate) fn collect_with(node: &Node, scope: Scope, options: Options, state: &mut UserState) -> Object {
    try_collect(node, scope, options, state).unwrap()
}

pub(crate) fn try_collect(
    node: &Node,
    scope: Scope,
    options: Options,
    state: &mut UserState,
) -> io::Result<Object> {
    let scope = if state.is_known() || scope.is_snapshot() { scope } else { Scope::Snapshot };
    let kind = if scope.is_snapshot() { Kind::Snapshot } else { Kind::Delta };
    let id = ObjectId { fence: 1, seq: 1 };
    let header = |kind, parts| Header { kind, user: node.places().hash(), id, parts };
    let mut collector = Collector::begin(node.places(), scope, options, std::mem::take(state));
    let (mut pieces, mut parts) = (Vec::new(), Vec::new());
    let last = loop {
        match collector.step() {
            Err(error) => {
                *state = collector.end().state;
                return Err(error);
            }
            Ok(Step::Last(writer)) => break writer.finish(&header(kind, parts)),
            Ok(Step::Part(writer)) => {
                let part = writer.finish(&header(Kind::Part, Vec::new()));
                parts.push(part.digest);
                pieces.push(Decoded::parse(bytes(&part)).unwrap());
            }
        }
    };
    pieces.push(Decoded::parse(bytes(&last)).unwrap());
    let Collected { state: before, changes, summary } = collector.end();
    *state = before;
    let size = state.size();
    state.attempt(id, last.digest, kind == Kind::Snapshot, changes, size);
    assert!(state.written(id, &last.digest));
    Ok(Object { kind, pieces, summary })
}

/// Applies objects to a node.
pub(crate) fn apply(node: &Node, objects: &[Object]) -> Result<UserState, ApplyError> {
    let mut apply = Apply::begin(node.places())?;
    for object in objects {
        for (number, piece) in object.pieces.iter().enumerate() {
            if number == 0 && object.kind == Kind::Snapshot {
                apply.reset()?;
            }
            apply.object(piece)?;
        }
    }
    Ok(apply.finish()?)
}

/// Sets the mode of a file.
pub(crate) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
