//! Migration of a data directory from format 1, which had no `format` file.
//!
//! Format 1 kept each session's record in the session directory `sessions/<hash>/`, where its child could write it, and
//! the server's other files beside `sessions/`. Steps are planned from the present state and can be repeated: a killed
//! process continues at its next start. The caller writes the format file last. A session keeps its directory, because
//! the CLI names its transcripts by it. Blocking.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::beneath::Beneath;
use super::data_dir::{bar, identities_dir, records_dir, sessions_dir};
use super::own::read_own;
use super::record_dir::{DirectoryName, MAX_RECORD_BYTES, RecordDir};
use super::token_index::TokenIndex;
use crate::model::ids::{SessionHash, UserId};
use crate::model::is_model_name;
use crate::support::atomic_file::{self, Durability};
use crate::support::hex;

/// Longest file of a user's tokens in format 1.
const MAX_TOKENS_BYTES: u64 = 4096;
/// The server's other directories in format 1.
const BESIDE: [&str; 3] = ["users", "identities", "conversations"];

/// One repeatable step.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Keeps the first release from starting here ([`bar`]).
    Bar,
    /// Moves one of the server's directories below `records/`.
    Rename(PathBuf, PathBuf),
    /// Enters the tokens of each user in the index.
    Tokens,
    /// Copies a session's record from its session directory.
    Record(SessionHash),
    /// Syncs all copies to the disk, before any original is removed.
    Sync,
    /// Removes the copied files from a session directory.
    Clean(SessionHash),
}

/// Converts a data directory to the present format, except for the format file.
pub(super) fn run(data_dir: &Path) -> io::Result<()> {
    let steps = plan(data_dir)?;
    let sessions = steps.iter().filter(|step| matches!(step, Step::Record(_))).count();
    for step in &steps {
        apply(data_dir, step)?;
    }
    if sessions > 0 {
        tracing::info!(sessions, "converted the data directory to the present format");
    }
    Ok(())
}

fn plan(data_dir: &Path) -> io::Result<Vec<Step>> {
    let mut steps = vec![Step::Bar];
    for name in BESIDE {
        let (from, to) = (data_dir.join(name), records_dir(data_dir).join(name));
        if from.is_dir() && !to.exists() {
            steps.push(Step::Rename(from, to));
        }
    }
    steps.push(Step::Tokens);
    let entries = match fs::read_dir(sessions_dir(data_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(steps),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(hash) = name.to_str().and_then(SessionHash::parse) else { continue };
        let holds = |name: &str| fs::symlink_metadata(sessions_dir(data_dir).join(hash.as_str()).join(name));
        if OLD_FILES.iter().any(|name| holds(name).is_ok()) {
            found.push(hash);
        }
    }
    steps.extend(found.iter().cloned().map(Step::Record));
    steps.push(Step::Sync);
    steps.extend(found.into_iter().map(Step::Clean));
    Ok(steps)
}

const RECORD: &str = "session.json";
const PROGRESS: &str = "progress.json";
/// The server's files in a session directory of format 1. The record is removed last: it marks a session to convert.
const OLD_FILES: [&str; 3] = ["mcp.json", PROGRESS, RECORD];

fn apply(data_dir: &Path, step: &Step) -> io::Result<()> {
    match step {
        Step::Bar => {
            // A first release that was killed at its start leaves a file.
            if bar(data_dir).is_file() {
                fs::remove_file(bar(data_dir))?;
            }
            let create = |directory: &Path| DirBuilder::new().recursive(true).mode(0o700).create(directory);
            let made = create(&bar(data_dir)).and_then(|()| create(&records_dir(data_dir)));
            // A data directory without sessions has nothing to convert.
            made.or_else(|error| if data_dir.join("sessions").exists() { Err(error) } else { Ok(()) })
        }
        Step::Rename(from, to) => fs::rename(from, to),
        Step::Tokens => enter_tokens(data_dir),
        Step::Record(hash) => copy_record(data_dir, hash),
        Step::Sync => Ok(rustix::fs::syncfs(fs::File::open(data_dir)?)?),
        Step::Clean(hash) => {
            let own = Beneath::open(&sessions_dir(data_dir), Path::new(hash.as_str()))?;
            for name in OLD_FILES {
                match own.unlink(Path::new(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // The child made a directory of this name, which nothing reads.
                    Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                    unlinked => unlinked?,
                }
            }
            Ok(())
        }
    }
}

/// The tokens of a user in format 1: digests in hexadecimal, as the user.
#[derive(Deserialize)]
struct Tokens {
    user: String,
    tokens: Vec<String>,
}

/// Enters the tokens of all users in the index, and removes their old files. Damaged files are left out.
fn enter_tokens(data_dir: &Path) -> io::Result<()> {
    let index = TokenIndex::of(data_dir);
    let entries = fs::read_dir(identities_dir(data_dir)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
        let content = read_own(&entry.path(), MAX_TOKENS_BYTES).unwrap_or_default();
        let is_digest = |token: &String| token.len() == 64 && token.bytes().all(|it| it.is_ascii_hexdigit());
        if let Ok(mut old) = serde_json::from_slice::<Tokens>(&content)
            && let Some(Ok(user)) = hex::decode(&old.user).map(UserId::new)
        {
            old.tokens.retain(is_digest);
            index.learn(&user, &old.tokens, Durability::Disk)?;
        }
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

/// Copies a session's record and progress. A child could write the originals: anything else becomes an unreadable record,
/// which the session handles at its next use. An existing record stays: an earlier start without a format file may have
/// run turns.
fn copy_record(data_dir: &Path, hash: &SessionHash) -> io::Result<()> {
    let record = RecordDir::of(data_dir, hash);
    if has_record(&record) {
        return Ok(());
    }
    let own = Beneath::open(&sessions_dir(data_dir), Path::new(hash.as_str()))?;
    record.create()?;
    record.write_directory(&DirectoryName::of_hash(hash))?;
    match own.read(Path::new(PROGRESS), MAX_RECORD_BYTES) {
        Ok(progress) => atomic_file::replace(&record.progress_file(), &progress, Durability::Kernel)?,
        Err(error) if error.is_shortage() => return Err(error.into()),
        Err(_) => {}
    }
    let content = match own.read(Path::new(RECORD), MAX_RECORD_BYTES) {
        // Format 1 was killed before it wrote the record.
        Err(error) if error.is_absent() => return Ok(()),
        Err(error) if error.is_shortage() => return Err(error.into()),
        Err(error) => {
            tracing::warn!(session = %hash, %error, "cannot convert the record of a session");
            Vec::new()
        }
        Ok(content) => content,
    };
    atomic_file::replace(&record.session_file(), &only_old_fields(content), Durability::Kernel)
}

/// Whether a record was copied already.
fn has_record(record: &RecordDir) -> bool {
    let content = read_own(&record.session_file(), MAX_RECORD_BYTES).unwrap_or_default();
    serde_json::from_slice::<Map<String, Value>>(&content).is_ok_and(|fields| fields.contains_key("user"))
}

/// Fields of a record in format 1.
const FIELDS: [&str; 17] = [
    "version",
    "user",
    "conversation",
    "cli_session_id",
    "work",
    "home",
    "generation",
    "turns",
    "context_turns",
    "restarts",
    "cost_usd",
    "created",
    "last_used",
    "checkpoint",
    "untold_loss",
    "model",
    "bound",
];
/// Launch settings that are copied. MCP servers are not: a definition names a program, and its sender is unknown.
const SETTINGS: [&str; 2] = ["system_prompt", "fallback_model"];

/// The record without fields of later formats: this program trusts them, and a child could write them. Other content
/// stays unchanged.
fn only_old_fields(content: Vec<u8>) -> Vec<u8> {
    let Ok(Value::Object(mut record)) = serde_json::from_slice(&content) else { return content };
    record.retain(|name, _| FIELDS.contains(&name.as_str()));
    if let Some(Value::Object(settings)) = record.get_mut("bound") {
        settings.retain(|name, _| SETTINGS.contains(&name.as_str()));
        remove_invalid_model(settings, "fallback_model");
    }
    remove_invalid_model(&mut record, "model");
    serde_json::to_vec_pretty(&record).unwrap_or(content)
}

/// Removes a model name that is unsafe as an argument of the CLI.
fn remove_invalid_model(record: &mut Map<String, Value>, field: &str) {
    if let Some(model) = record.get_mut(field)
        && !model.as_str().is_some_and(is_model_name)
    {
        *model = Value::Null;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::super::data_dir::open;
    use serde_json::json;

    use super::*;

    /// A data directory of format 1, written by the first release with the simulated CLI.
    fn first_release() -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-1")), data.path());
        data
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    /// All paths below a directory: files with their content, directories without.
    fn tree(directory: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut left = vec![directory.to_owned()];
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(next).unwrap().flatten() {
                let path = entry.path();
                let name = path.strip_prefix(directory).unwrap().to_owned();
                if path.is_dir() {
                    found.insert(name, None);
                    left.push(path);
                } else {
                    found.insert(name, Some(fs::read(path).unwrap()));
                }
            }
        }
        found
    }

    #[test]
    fn format_1_is_converted() {
        let data = first_release();
        drop(open(data.path()).unwrap());
        let now = tree(data.path());
        assert!(now.contains_key(Path::new("format")));
        for name in BESIDE.into_iter().filter(|name| *name != "identities") {
            assert!(now.contains_key(&Path::new("records").join(name)) && !now.contains_key(Path::new(name)));
        }
        let sessions =
            fs::read_dir(sessions_dir(data.path())).unwrap().flatten().map(|entry| entry.file_name());
        let hashes: Vec<_> = sessions.filter_map(|name| SessionHash::parse(name.to_str().unwrap())).collect();
        assert_eq!(hashes.len(), 3);
        for hash in hashes {
            let record = RecordDir::of(data.path(), &hash);
            assert!(has_record(&record) && record.progress_file().exists());
            assert_eq!(record.directory(), Some(DirectoryName::of_hash(&hash)), "its directory stays");
            let own = sessions_dir(data.path()).join(hash.as_str());
            assert!(OLD_FILES.iter().all(|name| !own.join(name).exists()));
        }
    }

    #[test]
    fn tokens_of_format_1_are_indexed() {
        let data = first_release();
        let old = data.path().join("identities");
        fs::create_dir(&old).unwrap();
        let (user, token) = (UserId::new("alice").unwrap(), "ab".repeat(32));
        let text = json!({ "user": hex::encode(user.as_bytes()), "tokens": [token, "../x"] }).to_string();
        fs::write(old.join("cd".repeat(32)), text).unwrap();
        fs::write(old.join("damaged"), "{").unwrap();
        drop(open(data.path()).unwrap());
        assert_eq!(TokenIndex::of(data.path()).owner(&token), Some(user));
        let left = fs::read_dir(identities_dir(data.path())).unwrap().flatten();
        let mut left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["tokens", "users"]);
    }

    #[test]
    fn migration_killed_after_any_step_continues() {
        let whole = first_release();
        drop(open(whole.path()).unwrap());
        let expected = tree(whole.path());
        let count = plan(first_release().path()).unwrap().len();
        assert!(count > 8, "{count}");
        for killed_after in 0..count {
            let data = first_release();
            for step in plan(data.path()).unwrap().iter().take(killed_after) {
                apply(data.path(), step).unwrap();
                apply(data.path(), step).or_else(|_| fs::metadata(data.path()).map(drop)).unwrap();
            }
            drop(open(data.path()).unwrap());
            assert_eq!(tree(data.path()), expected, "killed after {killed_after}");
            assert_eq!(
                plan(data.path()).unwrap(),
                [Step::Bar, Step::Tokens, Step::Sync],
                "the migration is complete"
            );
        }
    }

    #[test]
    fn planted_fields_are_not_copied() {
        let data = first_release();
        let hash = |entry: fs::DirEntry| SessionHash::parse(entry.file_name().to_str().unwrap());
        let hash = fs::read_dir(sessions_dir(data.path())).unwrap().flatten().find_map(hash).unwrap();
        let file = sessions_dir(data.path()).join(hash.as_str()).join(RECORD);
        let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        record["directory"] = json!("0".repeat(32));
        record["chosen_model"] = json!("--settings=x");
        record["model"] = json!("--settings=x");
        record["bound"] = json!({ "mcp": { "defined": { "m": { "command": "x" } } }, "model": "--x",
            "system_prompt": "brief", "fallback_model": "-x" });
        fs::write(&file, record.to_string()).unwrap();
        drop(open(data.path()).unwrap());
        let record = RecordDir::of(data.path(), &hash);
        let copied: Value = serde_json::from_slice(&fs::read(record.session_file()).unwrap()).unwrap();
        assert_eq!(copied["bound"], json!({ "system_prompt": "brief", "fallback_model": null }));
        assert_eq!(copied["model"], Value::Null);
        assert!(copied.get("chosen_model").is_none() && copied.get("directory").is_none());
        assert_eq!(record.directory(), Some(DirectoryName::of_hash(&hash)));
    }

    /// The disk was full when the format file was written: the next start migrates again.
    #[test]
    fn existing_record_is_not_overwritten() {
        let data = first_release();
        let own: Vec<_> = fs::read_dir(sessions_dir(data.path())).unwrap().flatten().collect();
        let before = own.iter().map(|entry| fs::read(entry.path().join(RECORD)).unwrap()).collect::<Vec<_>>();
        drop(open(data.path()).unwrap());
        fs::remove_file(data.path().join("format")).unwrap();
        let records = tree(&records_dir(data.path()));
        for (entry, before) in own.iter().zip(before) {
            let planted = String::from_utf8(before).unwrap().replace("\"turns\": ", "\"turns\": 9");
            fs::write(entry.path().join(RECORD), planted).unwrap();
        }
        drop(open(data.path()).unwrap());
        assert_eq!(tree(&records_dir(data.path())), records);
    }

    #[test]
    fn planted_file_becomes_an_unreadable_record() {
        let data = first_release();
        let own: Vec<_> = fs::read_dir(sessions_dir(data.path())).unwrap().flatten().collect();
        let secret = data.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let session = |at: usize| own.get(at).unwrap().path().join(RECORD);
        for at in 0..3 {
            fs::remove_file(session(at)).unwrap();
        }
        symlink(&secret, session(0)).unwrap();
        fs::create_dir(session(1)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            session(2),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        drop(open(data.path()).unwrap());
        for entry in &own {
            let record = records_dir(data.path()).join(entry.file_name()).join(RECORD);
            assert_eq!(fs::read(record).unwrap(), b"", "empty");
        }
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }
}
