//! From the format of the first release, which had no number: each session's record lay in the session's own directory,
//! `sessions/<hash>/`, where its child could write it, and the server's other files beside `sessions/`.
//!
//! The steps are found by looking, and each can be done again: a program that is killed in the middle goes on at its
//! next start. The format file is written last, by the caller. A session keeps its directory, for the CLI files its
//! transcripts by it. Everything here blocks.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::beneath::Beneath;
use super::data_dir::{bar, records_dir, sessions_dir};
use super::{DirectoryName, RecordDir};
use crate::model::ids::SessionHash;
use crate::model::is_model_name;
use crate::session::Record;
use crate::support::atomic_file::{self, Durability};

/// The server's other files of the first release.
const BESIDE: [&str; 3] = ["users", "identities", "conversations"];
/// Longest record taken over: one has some kilobytes, with a long system prompt some hundred.
const MAX_RECORD_BYTES: u64 = super::MAX_RECORD_BYTES;

/// One thing to do. Can be repeated.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Keeps the first release out from here on.
    Bar,
    /// A directory of the server's own takes its place.
    Rename(PathBuf, PathBuf),
    /// The files about a session are copied to its record.
    Record(SessionHash),
    /// All copies are on the disk before the first original is removed.
    Sync,
    /// What was copied is removed from the session's directory.
    Clean(SessionHash),
}

/// Brings a data directory into the present format, but for the format file.
pub(super) fn run(data_dir: &Path) -> io::Result<()> {
    let steps = plan(data_dir)?;
    let sessions = steps.iter().filter(|step| matches!(step, Step::Record(_))).count();
    for step in &steps {
        apply(data_dir, step)?;
    }
    if sessions > 0 {
        tracing::info!(sessions, "the data directory was brought into the present format");
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
/// What the first release kept in a session's directory. The record goes last, for it is what tells that there is
/// something to take over.
const OLD_FILES: [&str; 3] = ["mcp.json", PROGRESS, RECORD];

fn apply(data_dir: &Path, step: &Step) -> io::Result<()> {
    match step {
        Step::Bar => {
            // Left by a first release that was killed at its start.
            if bar(data_dir).is_file() {
                fs::remove_file(bar(data_dir))?;
            }
            let create = |directory: &Path| DirBuilder::new().recursive(true).mode(0o700).create(directory);
            let made = create(&bar(data_dir)).and_then(|()| create(&records_dir(data_dir)));
            // An empty directory on a full disk has nothing to be taken over.
            made.or_else(|error| if data_dir.join("sessions").exists() { Err(error) } else { Ok(()) })
        }
        Step::Rename(from, to) => fs::rename(from, to),
        Step::Record(hash) => take_over(data_dir, hash),
        Step::Sync => Ok(rustix::fs::syncfs(fs::File::open(data_dir)?)?),
        Step::Clean(hash) => {
            let own = Beneath::open(&sessions_dir(data_dir), Path::new(hash.as_str()))?;
            for name in OLD_FILES {
                match own.unlink(Path::new(name)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // A directory that the child put there; nobody looks for it any more.
                    Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                    unlinked => unlinked?,
                }
            }
            Ok(())
        }
    }
}

/// Copies what is known of a session. A child could write these files: what is no record becomes one that cannot be
/// read, and is treated as such when the session is used. One that is there already stays: the format is written last,
/// and a start that came so far may have been followed by turns.
fn take_over(data_dir: &Path, hash: &SessionHash) -> io::Result<()> {
    if Record::read(data_dir, hash).is_some() {
        return Ok(());
    }
    let own = Beneath::open(&sessions_dir(data_dir), Path::new(hash.as_str()))?;
    let record = RecordDir::of(data_dir, hash);
    record.create()?;
    record.write_directory(&DirectoryName::of_hash(hash))?;
    match own.read(Path::new(PROGRESS), MAX_RECORD_BYTES) {
        Ok(progress) => atomic_file::replace(&record.progress_file(), &progress, Durability::Kernel)?,
        Err(refused) if refused.is_shortage() => return Err(refused.into()),
        Err(_) => {}
    }
    let content = match own.read(Path::new(RECORD), MAX_RECORD_BYTES) {
        // Only its servers were written when it was killed.
        Err(refused) if refused.is_absent() => return Ok(()),
        Err(refused) if refused.is_shortage() => return Err(refused.into()),
        Err(refused) => {
            tracing::warn!(session = %hash, %refused, "the record of a session cannot be taken over");
            Vec::new()
        }
        Ok(content) => content,
    };
    atomic_file::replace(&record.session_file(), &of_first_release(content), Durability::Kernel)
}

/// What a record of the first release could hold.
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
/// MCP servers are not among what is taken over: a definition names a program, and who has sent it is not known.
const BOUND: [&str; 2] = ["system_prompt", "fallback_model"];

/// The record without what the first release would not have written: later fields are believed by this program, and its
/// child could write the file. What is no record stays as it is.
fn of_first_release(content: Vec<u8>) -> Vec<u8> {
    let Ok(Value::Object(mut record)) = serde_json::from_slice(&content) else { return content };
    record.retain(|name, _| FIELDS.contains(&name.as_str()));
    if let Some(Value::Object(bound)) = record.get_mut("bound") {
        bound.retain(|name, _| BOUND.contains(&name.as_str()));
        without_no_name(bound, "fallback_model");
    }
    without_no_name(&mut record, "model");
    serde_json::to_vec_pretty(&record).unwrap_or(content)
}

/// Becomes an argument of the CLI.
fn without_no_name(record: &mut Map<String, Value>, field: &str) {
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

    /// A data directory as the first release made it (with the simulated CLI).
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

    /// Everything below a directory: files with their content, directories with none.
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
    fn the_first_releases_layout_is_taken_over() {
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
            let (key, record) = Record::read(data.path(), &hash).expect("a record");
            assert!(record.turns > 0 && record.checkpoint.is_some(), "with its progress");
            let workspace = record.workspace(data.path(), &key.hash());
            assert!(
                workspace.dirs().work.ends_with(Path::new(hash.as_str()).join("work")),
                "its directory stays"
            );
            let own = sessions_dir(data.path()).join(hash.as_str());
            assert!(OLD_FILES.iter().all(|name| !own.join(name).exists()));
        }
    }

    #[test]
    fn a_program_killed_after_any_step_goes_on_at_its_next_start() {
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
            assert_eq!(plan(data.path()).unwrap(), [Step::Bar, Step::Sync], "nothing is left to do");
        }
    }

    #[test]
    fn planted_fields_are_not_taken_over() {
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
        let (_, taken) = Record::read(data.path(), &hash).unwrap();
        assert_eq!(taken.settings.system_prompt.as_deref(), Some("brief"));
        let bound = &taken.settings;
        assert!(bound.mcp_servers.is_none() && bound.model.is_none() && bound.fallback_model.is_none());
        assert!(taken.chosen_model.is_none());
        assert!(taken.workspace(data.path(), &hash).dirs().work.to_str().unwrap().contains(hash.as_str()));
    }

    /// The disk was full when the format was to be written: the next start migrates again.
    #[test]
    fn record_that_is_there_is_not_overwritten() {
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
    fn what_a_child_planted_becomes_a_broken_record() {
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
            assert_eq!(fs::read(record).unwrap(), b"", "it is moved aside when the session is used");
        }
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }
}
