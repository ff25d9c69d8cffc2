//! The files of a session: its record, which is the server's own, and the directories that its child writes.
//!
//! Paths of a child come from [`Workspace`] alone, for the CLI files its transcripts by the directory it was started in.
//! Everything here blocks; async callers go through [`tokio::task::spawn_blocking`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::adapter::{Adapter, Dirs};
use crate::config::CliConfig;
use crate::model::OauthCredentials;
use crate::model::ids::SessionHash;
use crate::support::atomic_file::{self, Durability};

pub(crate) mod beneath;
mod data_dir;
mod migration;
mod own;
mod remove;
mod sweep;
pub(crate) mod user_env;

use beneath::Beneath;
#[cfg(feature = "server")]
use beneath::Place;
use data_dir::sessions_dir;
pub(crate) use data_dir::{DataDirLock, is_full, open, records_dir, try_writing, users_dir};
#[cfg(feature = "server")]
pub(crate) use data_dir::{conversations_dir, identities_dir};
#[cfg(test)]
pub(crate) use own::tests::TRAPS;
pub(crate) use own::{open_own, read_own};
pub(crate) use remove::Amount;
use remove::{remove_tree, remove_where};

/// A credentials file has some hundred bytes.
const MAX_CREDENTIALS_BYTES: u64 = 64 << 10;
/// The name of a session's directory has 32.
const MAX_DIRECTORY_BYTES: u64 = 64;
/// A record has some kilobytes; a system prompt and MCP servers are as long as their limits allow.
pub(crate) const MAX_RECORD_BYTES: u64 = 64 << 20;

/// The name of a session's directory below `sessions/`: 32 hexadecimal digits. Random, and never changed: a child may
/// be started in it before its session is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DirectoryName(SessionHash);

impl DirectoryName {
    pub(crate) fn random() -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        // 32 digits, as the type wants.
        SessionHash::parse(&name).map_or_else(Self::random, Self)
    }

    /// The first release named a session's directory by the hash of its key.
    pub(crate) fn of_hash(hash: &SessionHash) -> Self {
        Self(hash.clone())
    }

    fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl TryFrom<String> for DirectoryName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        SessionHash::parse(&name).map(Self).ok_or("it is no name of a session's directory")
    }
}

impl From<DirectoryName> for String {
    fn from(name: DirectoryName) -> Self {
        name.as_str().to_owned()
    }
}

/// What the server keeps about one session, out of its child's reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordDir(PathBuf);

impl RecordDir {
    pub(crate) fn of(data_dir: &Path, session: &SessionHash) -> Self {
        Self(records_dir(data_dir).join(session.as_str()))
    }

    pub(crate) fn session_file(&self) -> PathBuf {
        self.0.join("session.json")
    }

    pub(crate) fn progress_file(&self) -> PathBuf {
        self.0.join("progress")
    }

    /// Where a record that cannot be understood is kept for the operator: the last one.
    pub(crate) fn broken_file(&self) -> PathBuf {
        self.0.join("session.json.broken")
    }

    /// The directory's name once more: a record that cannot be understood must not cost the user's files.
    fn directory_file(&self) -> PathBuf {
        self.0.join("directory")
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    pub(crate) fn write_directory(&self, name: &DirectoryName) -> io::Result<()> {
        atomic_file::replace(&self.directory_file(), name.as_str().as_bytes(), Durability::Kernel)
    }

    /// The directory that the session had when its record was begun, if that is known.
    pub(crate) fn directory(&self) -> Option<DirectoryName> {
        let name = read_own(&self.directory_file(), MAX_DIRECTORY_BYTES).ok()?;
        String::from_utf8(name).ok()?.try_into().ok()
    }

    /// Gives the owner its rights back on a record that was closed to it.
    pub(crate) fn let_in(&self) -> io::Result<()> {
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))?;
        match fs::set_permissions(self.session_file(), fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            set => set,
        }
    }
}

/// The record and the directories of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workspace {
    record: RecordDir,
    sessions: PathBuf,
    name: DirectoryName,
    dirs: Dirs,
}

impl Workspace {
    /// Nothing is created.
    pub(crate) fn of(data_dir: &Path, session: &SessionHash, directory: &DirectoryName) -> Self {
        let sessions = sessions_dir(data_dir);
        let root = sessions.join(directory.as_str());
        let dirs = Dirs { work: root.join("work"), home: root.join("home"), tmp: root.join("tmp") };
        Self { record: RecordDir::of(data_dir, session), sessions, name: directory.clone(), dirs }
    }

    /// Those of all sessions on disk, with the hash of each session's key.
    #[cfg(feature = "server")]
    pub(crate) fn all(data_dir: &Path) -> impl Iterator<Item = (SessionHash, Self)> {
        let data_dir = data_dir.to_owned();
        let entries = fs::read_dir(records_dir(&data_dir)).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let session = SessionHash::parse(entry.file_name().to_str()?)?;
            let directory = RecordDir(entry.path()).directory()?;
            let workspace = Self::of(&data_dir, &session, &directory);
            Some((session, workspace))
        })
    }

    /// The files of a session that begins: those in the directory that is there already, if there is one.
    pub(crate) fn begin(data_dir: &Path, session: &SessionHash) -> Self {
        let named = RecordDir::of(data_dir, session).directory();
        // Made by the first release for a session of which no record was written.
        let old = || {
            let name = DirectoryName::of_hash(session);
            let is_there = sessions_dir(data_dir).join(name.as_str()).is_dir();
            // Not the rest of a session that was deleted: the next start removes it.
            (is_there && !unfinished(data_dir).any(|(_, doomed)| doomed.as_ref() == Some(&name)))
                .then_some(name)
        };
        let name = named.or_else(old).unwrap_or_else(DirectoryName::random);
        Self::of(data_dir, session, &name)
    }

    pub(crate) fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    pub(crate) fn name(&self) -> &DirectoryName {
        &self.name
    }

    pub(crate) fn record(&self) -> &RecordDir {
        &self.record
    }

    /// Creates what is missing, for the owner alone. What a child put in the place of one of its directories is removed.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.record.create()?;
        let own = Beneath::open(&self.sessions, Path::new(""))?.make_dir(Path::new(self.name.as_str()))?;
        for name in ["work", "home", "tmp"] {
            own.make_dir(Path::new(name))?;
        }
        Ok(())
    }

    /// The session's directory, to reach what is in it without following links. Everything in it may be written by the
    /// child.
    pub(crate) fn beneath(&self) -> io::Result<Beneath> {
        Beneath::open(&self.sessions, Path::new(self.name.as_str()))
    }

    /// The working directory, to reach what is in it.
    #[cfg(feature = "server")]
    pub(crate) fn work(&self) -> Place {
        Place { trusted: self.sessions.clone(), inner: Path::new(self.name.as_str()).join("work") }
    }

    /// A file of the CLI's own: the directory to start from, and the path from there. The configuration may have moved
    /// the CLI's files out of the session; then their directory is the operator's choice and what is in it is not.
    pub(crate) fn cli_file(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        file: &Path,
    ) -> io::Result<(Beneath, PathBuf)> {
        if let Ok(inner) = file.strip_prefix(self.sessions.join(self.name.as_str())) {
            return Ok((self.beneath()?, inner.to_owned()));
        }
        let base = adapter.config_dir(&self.dirs, cli);
        // As the CLI would.
        DirBuilder::new().recursive(true).mode(0o700).create(&base)?;
        let inner = file.strip_prefix(&base).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok((Beneath::open(&base, Path::new(""))?, inner.to_owned()))
    }

    /// Removes a file of the CLI's own.
    pub(crate) fn remove_cli_file(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        file: &Path,
    ) -> io::Result<()> {
        let (own, path) = self.cli_file(adapter, cli, file)?;
        own.unlink(&path)
    }

    /// The file in which the CLI of this session alone keeps its tokens.
    #[cfg(feature = "server")]
    pub(crate) fn own_credentials(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
    ) -> Option<(Beneath, PathBuf)> {
        let file = adapter.credentials_file(&self.dirs, cli);
        let inner = file.strip_prefix(self.sessions.join(self.name.as_str())).ok()?;
        Some((self.beneath().ok()?, inner.to_owned()))
    }

    /// The tokens that the CLI of this session keeps now; none if there is no such file.
    pub(crate) fn tokens(&self, adapter: &dyn Adapter, cli: &CliConfig) -> Vec<String> {
        let file = self.cli_file(adapter, cli, &adapter.credentials_file(&self.dirs, cli));
        let held = file.ok().and_then(|(own, path)| credentials_in(&own, &path));
        let token = |name: &str| Some(held.as_ref()?.get(name)?.as_str()?.to_owned());
        ["accessToken", "refreshToken"].into_iter().filter_map(token).collect()
    }

    /// Removes what was half written when this program was killed.
    pub(crate) fn sweep(&self, adapter: &dyn Adapter, cli: &CliConfig) {
        let credentials = adapter.credentials_file(&self.dirs, cli);
        let in_home = self.cli_file(adapter, cli, &credentials);
        let in_home = in_home.and_then(|(own, path)| own.dir(path.parent().unwrap_or(Path::new(""))));
        let in_record = Beneath::open(&self.record.0, Path::new(""));
        // What is not there needs no sweeping.
        for directory in [in_home, in_record].into_iter().flatten() {
            sweep::remove_abandoned(&directory);
        }
    }

    /// Removes what the children before left in HOME that the next one would obey.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::TimedOut`] if there is more than `most`; another try goes on.
    pub(crate) fn clear_own_files(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        most: Amount,
    ) -> io::Result<()> {
        let Some(own_files) = adapter.own_files(cli) else { return Ok(()) };
        let mut budget = most.budget();
        let home = self.beneath()?.dir(Path::new("home"))?;
        remove_where(&home, &mut budget, |name| name.starts_with(own_files.removed.as_bytes()))?;
        let directory = Path::new(own_files.directory);
        let own = match home.dir(directory) {
            // Nothing to clear, and a home that cannot be written needs no directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A link in its place is removed as well.
            Err(_) => home.make_dir(directory)?,
            Ok(own) => own,
        };
        remove_where(&own, &mut budget, |name| !own_files.kept.iter().any(|kept| kept.as_bytes() == name))
    }

    /// Deletes record and directories. The session is gone at once; what cannot be removed of its directories is tried
    /// again at the next start.
    pub(crate) fn delete(&self) -> io::Result<()> {
        let records = self.record.0.parent().unwrap_or(Path::new("/"));
        let doomed = format!("{DELETED}{}", uuid::Uuid::new_v4().simple());
        let record = match fs::rename(&self.record.0, records.join(&doomed)) {
            Ok(()) => OsStr::new(&doomed),
            // On a full disk there may be no room for a name; then what is deleted first makes room.
            Err(error) if error.kind() == io::ErrorKind::NotFound || is_full(&error) => {
                self.record.0.file_name().unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
        remove_tree(&self.sessions, OsStr::new(self.name.as_str()))?;
        remove_tree(records, record)
    }

    /// Writes OAuth credentials for the CLI, unless those there are valid for longer: the CLI itself may have renewed
    /// them, and the client may not know. Returns whether they were written.
    pub(crate) fn write_credentials(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        given: &OauthCredentials,
    ) -> io::Result<bool> {
        let (own, path) = self.cli_file(adapter, cli, &adapter.credentials_file(&self.dirs, cli))?;
        let on_disk = credentials_in(&own, &path);
        let expires_at = on_disk.and_then(|held| held.get("expiresAt")?.as_i64());
        if expires_at.is_some_and(|expires_at| expires_at > given.expires_at) {
            return Ok(false);
        }
        let content = json!({ "claudeAiOauth": {
            "accessToken": given.access_token,
            "refreshToken": given.refresh_token,
            "expiresAt": given.expires_at,
            "scopes": given.scopes,
            "subscriptionType": given.subscription_type,
        }});
        replace(&own, &path, content.to_string().as_bytes(), Durability::Disk)?;
        Ok(true)
    }

    /// Writes a file that the CLI reads at its start, in place of whatever is there. Lost only with the machine.
    pub(crate) fn write_cli_file(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        file: &Path,
        content: &[u8],
    ) -> io::Result<()> {
        let (own, path) = self.cli_file(adapter, cli, file)?;
        replace(&own, &path, content, Durability::Kernel)
    }
}

/// Replaces a file, whose directory is made where it is missing.
fn replace(own: &Beneath, path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let directory = own.make_dir(path.parent().unwrap_or(Path::new("")))?;
    directory.replace(Path::new(path.file_name().unwrap_or_default()), content, durability)
}

/// Removes whatever is at a path outside of every child's reach.
pub(crate) fn remove_any(path: &Path) -> io::Result<()> {
    remove_tree(path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default())
}

/// How the name of a record begins whose session is deleted.
const DELETED: &str = ".deleted-";

/// Deletions that a killed program, or a failure, left undone: the record's name, and the session's directory.
fn unfinished(data_dir: &Path) -> impl Iterator<Item = (OsString, Option<DirectoryName>)> {
    let entries = fs::read_dir(records_dir(data_dir)).into_iter().flatten().flatten();
    let deleted =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(DELETED.as_bytes()));
    deleted.map(|entry| (entry.file_name(), RecordDir(entry.path()).directory()))
}

/// Finishes deletions. Nothing of a former instance may run any more: it could go on filling what is removed.
pub(crate) fn finish_deletions(data_dir: &Path) {
    let records = records_dir(data_dir);
    for (name, directory) in unfinished(data_dir) {
        let files =
            directory.map_or(Ok(()), |it| remove_tree(&sessions_dir(data_dir), OsStr::new(it.as_str())));
        if let Err(error) = files.and_then(|()| remove_tree(&records, &name)) {
            tracing::warn!(%error, "the files of a deleted session cannot be removed");
        }
    }
}

/// The credentials in a file that the CLI writes. One that cannot be understood holds none.
pub(crate) fn credentials_in(own: &Beneath, path: &Path) -> Option<serde_json::Value> {
    let content = own.read(path, MAX_CREDENTIALS_BYTES).ok()?;
    serde_json::from_slice::<serde_json::Value>(&content).ok()?.get_mut("claudeAiOauth").map(std::mem::take)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::claude::CLAUDE;
    use crate::model::ids::{SessionKey, UserId};

    fn workspace(data_dir: &Path) -> Workspace {
        let key = SessionKey::new(UserId::new("../../etc/passwd").unwrap(), "default").unwrap();
        data_dir::create_layout(data_dir).unwrap();
        let workspace = Workspace::of(data_dir, &key.hash(), &DirectoryName::random());
        workspace.create().unwrap();
        workspace
    }

    #[test]
    fn a_workspace_lies_below_the_data_dir_and_is_the_owners_alone() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let dirs = workspace.dirs();
        for dir in [&dirs.work, &dirs.home, &dirs.tmp, &workspace.record.0] {
            assert!(dir.canonicalize().unwrap().starts_with(data.path().canonicalize().unwrap()));
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert!(!workspace.record.0.starts_with(&workspace.sessions));
    }

    /// A child may have put links in the place of what is removed: what they lead to is not the session's.
    #[test]
    fn clearing_own_files_follows_no_link() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let (home, own) = (&workspace.dirs.home, workspace.dirs.home.join(".claude"));
        let elsewhere = tempfile::tempdir().unwrap();
        let theirs = elsewhere.path().join("remote-settings.json");
        fs::write(&theirs, "{}").unwrap();
        let link = |to: &Path, from: PathBuf| std::os::unix::fs::symlink(to, from).unwrap();
        link(elsewhere.path(), own.clone());
        link(&theirs, home.join(".claude.json"));
        let clear = || workspace.clear_own_files(&CLAUDE, &CliConfig::default(), Amount::OF_TREE).unwrap();
        clear();
        assert!(theirs.exists());
        assert!(fs::symlink_metadata(&own).unwrap().is_dir());
        assert!(fs::symlink_metadata(home.join(".claude.json")).is_err());
        link(elsewhere.path(), own.join("plugins"));
        fs::create_dir_all(own.join("projects/p")).unwrap();
        fs::create_dir_all(own.join("skills/s")).unwrap();
        for file in [".credentials.json", "remote-settings.json", "projects/p/transcript.jsonl"] {
            fs::write(own.join(file), "{}").unwrap();
        }
        fs::create_dir(home.join(".claude.json")).unwrap();
        fs::write(home.join(".claude.json.backup"), "{}").unwrap();
        fs::write(home.join("notes"), "kept").unwrap();
        clear();
        assert!(theirs.exists());
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&own), [".credentials.json", "projects"]);
        assert_eq!(names(home), [".claude", "notes"]);
        assert!(own.join("projects/p/transcript.jsonl").exists());
    }

    #[test]
    fn a_link_in_a_directorys_place_gives_way() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let elsewhere = tempfile::tempdir().unwrap();
        for directory in [&workspace.dirs.work, &workspace.dirs.home] {
            fs::remove_dir(directory).unwrap();
            std::os::unix::fs::symlink(elsewhere.path(), directory).unwrap();
        }
        workspace.create().unwrap();
        for directory in [&workspace.dirs.work, &workspace.dirs.home] {
            assert!(fs::symlink_metadata(directory).unwrap().is_dir());
        }
        assert!(elsewhere.path().exists());
    }

    fn tokens(access: &str, expires_at: i64) -> OauthCredentials {
        OauthCredentials {
            access_token: access.into(),
            refresh_token: format!("refresh {access}"),
            expires_at,
            scopes: Vec::new(),
            subscription_type: "max".into(),
        }
    }

    #[test]
    fn tokens_that_the_cli_has_renewed_stay_and_newer_ones_are_written() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let file = CLAUDE.credentials_file(workspace.dirs(), &cli);
        let held = || {
            let (own, path) = workspace.cli_file(&CLAUDE, &cli, &file).unwrap();
            credentials_in(&own, &path).unwrap()["accessToken"].as_str().unwrap().to_owned()
        };
        let write = |given| workspace.write_credentials(&CLAUDE, &cli, &given).unwrap();
        assert!(write(tokens("first", 1000)));
        // The CLI renews.
        let renewed = r#"{"claudeAiOauth":{"accessToken":"renewed","refreshToken":"r","expiresAt":3000}}"#;
        fs::write(&file, renewed).unwrap();
        assert!(!write(tokens("first", 1000)) && !write(tokens("second", 2999)));
        assert_eq!(held(), "renewed");
        assert!(write(tokens("third", 3001)));
        assert_eq!(held(), "third");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // What cannot be understood helps nobody.
        fs::write(&file, "nonsense").unwrap();
        assert!(write(tokens("fourth", 1)));
    }

    #[test]
    fn no_credentials_are_written_through_a_link() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let file = CLAUDE.credentials_file(workspace.dirs(), &cli);
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), workspace.dirs.home.join(".claude")).unwrap();
        assert!(workspace.write_credentials(&CLAUDE, &cli, &tokens("a", 1)).unwrap());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(fs::symlink_metadata(&file).unwrap().is_file());
    }

    #[test]
    fn deleting_does_not_follow_links() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("keep"), "").unwrap();
        std::os::unix::fs::symlink(outside.path(), workspace.dirs().work.join("link")).unwrap();
        workspace.delete().unwrap();
        workspace.delete().unwrap();
        assert!(!workspace.dirs().work.exists() && !workspace.record.0.exists());
        assert!(outside.path().join("keep").exists());
    }

    #[test]
    fn deletion_undone_takes_no_later_sessions_files() {
        let data = tempfile::tempdir().unwrap();
        let cut = workspace(data.path());
        // Of the first release, which named the directory by the session.
        let hash = SessionKey::new(UserId::new("../../etc/passwd").unwrap(), "default").unwrap().hash();
        let old = Workspace::of(data.path(), &hash, &DirectoryName::of_hash(&hash));
        old.create().unwrap();
        assert_eq!(Workspace::begin(data.path(), &hash), old, "its files are found again");
        cut.record.write_directory(&old.name).unwrap();
        fs::rename(&cut.record.0, records_dir(data.path()).join(".deleted-1")).unwrap();
        // The user comes back before the next start.
        let begun = Workspace::begin(data.path(), &hash);
        begun.create().unwrap();
        finish_deletions(data.path());
        assert!(begun.dirs.work.exists() && !old.dirs.work.exists());
    }

    #[test]
    fn a_deletion_that_was_cut_short_is_finished() {
        let data = tempfile::tempdir().unwrap();
        let (cut, other) = (workspace(data.path()), workspace(data.path()));
        cut.record.write_directory(&cut.name).unwrap();
        fs::rename(&cut.record.0, records_dir(data.path()).join(".deleted-1")).unwrap();
        finish_deletions(data.path());
        assert!(!cut.dirs.work.exists() && other.dirs.work.exists());
        assert_eq!(fs::read_dir(records_dir(data.path())).unwrap().count(), 0);
    }
}
