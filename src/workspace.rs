//! The directories of a session: where they are, who may enter them, what pilotlight writes into them.
//!
//! Paths come from [`Workspace::of`] alone, for the CLI files its transcripts by the directory it was started in.
//! Everything here blocks; async callers go through [`tokio::task::spawn_blocking`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::{Adapter, Dirs};
use crate::config::CliConfig;
use crate::ids::SessionHash;
use crate::session::OauthCredentials;

/// A credentials file has some hundred bytes.
const MAX_CREDENTIALS_BYTES: u64 = 64 << 10;

/// The directories of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workspace {
    root: PathBuf,
    dirs: Dirs,
}

impl Workspace {
    /// The session's directories below the data directory. Nothing is created.
    pub(crate) fn of(data_dir: &Path, session: &SessionHash) -> Self {
        Self::at(sessions_dir(data_dir).join(session.as_str()))
    }

    /// Those of all sessions on disk.
    #[cfg(feature = "server")]
    pub(crate) fn all(data_dir: &Path) -> impl Iterator<Item = Self> {
        let roots = fs::read_dir(sessions_dir(data_dir)).into_iter().flatten().flatten();
        roots.map(|entry| Self::at(entry.path()))
    }

    fn at(root: PathBuf) -> Self {
        let dirs = Dirs { work: root.join("work"), home: root.join("home"), tmp: root.join("tmp") };
        Self { root, dirs }
    }

    /// Where the CLI of this session keeps its tokens. None if the sessions share one place: then it tells nothing.
    #[cfg(feature = "server")]
    pub(crate) fn credentials_file(&self, adapter: &dyn Adapter, cli: &CliConfig) -> Option<CredentialsFile> {
        let path = adapter.credentials_file(&self.dirs, cli);
        path.starts_with(&self.root).then(|| CredentialsFile { path, record: self.record_file() })
    }

    pub(crate) fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.root.join("session.json")
    }

    pub(crate) fn progress_file(&self) -> PathBuf {
        self.root.join("progress.json")
    }

    /// Creates what is missing, for the owner alone.
    pub(crate) fn create(&self) -> io::Result<()> {
        for dir in [&self.root, &self.dirs.work, &self.dirs.home, &self.dirs.tmp] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }

    /// Removes what was half written when this program was killed, and the definitions of MCP servers that a former
    /// version wrote.
    pub(crate) fn sweep(&self, credentials: &Path) {
        // There is none, as a rule.
        fs::remove_file(self.root.join("mcp.json")).ok();
        sweep_half_written(&self.root);
        if let Some(directory) = credentials.parent() {
            sweep_half_written(directory);
        }
    }

    /// Deletes everything. Symbolic links in it are removed, not followed.
    pub(crate) fn delete(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes OAuth credentials for the CLI, unless those there are valid for longer: the CLI itself may have renewed
    /// them, and the client may not know. Returns whether they were written.
    pub(crate) fn write_credentials(
        &self,
        adapter: &dyn Adapter,
        cli: &CliConfig,
        given: &OauthCredentials,
    ) -> io::Result<bool> {
        let file = adapter.credentials_file(&self.dirs, cli);
        if expiry_on_disk(&file).is_some_and(|expires_at| expires_at > given.expires_at) {
            return Ok(false);
        }
        if let Some(parent) = file.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let content = json!({ "claudeAiOauth": {
            "accessToken": given.access_token,
            "refreshToken": given.refresh_token,
            "expiresAt": given.expires_at,
            "scopes": given.scopes,
            "subscriptionType": given.subscription_type,
        }});
        write_private(&file, content.to_string().as_bytes(), Durability::Disk)?;
        Ok(true)
    }
}

/// Where the CLI of one session keeps its tokens. It renews them by itself.
#[cfg(feature = "server")]
pub(crate) struct CredentialsFile {
    pub(crate) path: PathBuf,
    record: PathBuf,
}

#[cfg(feature = "server")]
impl CredentialsFile {
    /// The access token and the refresh token.
    pub(crate) fn tokens(&self) -> Option<(String, String)> {
        let content = credentials_on_disk(&self.path)?;
        let token = |name: &str| content.get(name)?.as_str().map(str::to_owned);
        Some((token("accessToken")?, token("refreshToken")?))
    }

    /// Whose session it is.
    pub(crate) fn owner(&self) -> Option<crate::ids::UserId> {
        crate::session::owner_on_disk(&self.record)
    }
}

/// Below it, one directory per session.
pub(crate) fn sessions_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("sessions")
}

/// Whether a write has to outlive the machine or only this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On the disk when the call returns.
    Disk,
    /// With the kernel: lost if the machine, but not if this process ends at once. Costs no wait for the disk.
    Kernel,
}

/// So long ago nobody is still writing.
const HALF_WRITTEN_FOR: std::time::Duration = std::time::Duration::from_secs(60);

/// Removes what [`write_private`] left here when it was killed in the middle: it may hold secrets. What cannot be
/// removed is looked at again at the next start.
fn sweep_half_written(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(HALF_WRITTEN));
        let is_ours = id.is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_ours && age().is_some_and(|age| age > HALF_WRITTEN_FOR) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// The end of the name of a file that is being written.
const HALF_WRITTEN: &str = ".new";

/// Replaces a file as a whole: a reader, or a crash, sees the old content or the new. Mode 0600.
pub(crate) fn write_private(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // A name of its own: two writers at once each replace the file as a whole, and a planted link is never met.
    let temporary = directory.join(format!(".{}{HALF_WRITTEN}", uuid::Uuid::new_v4().simple()));
    let written = write_new(&temporary, content, durability).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is half written helps nobody; that it was not written is told.
        fs::remove_file(&temporary).ok();
        return Err(error);
    }
    match durability {
        Durability::Disk => File::open(directory)?.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

fn write_new(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    match durability {
        Durability::Disk => file.sync_all(),
        Durability::Kernel => Ok(()),
    }
}

fn expiry_on_disk(file: &Path) -> Option<i64> {
    credentials_on_disk(file)?.get("expiresAt")?.as_i64()
}

fn credentials_on_disk(file: &Path) -> Option<serde_json::Value> {
    let mut content = Vec::new();
    // The child may put there what it likes.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(file).ok()?;
    file.take(MAX_CREDENTIALS_BYTES).read_to_end(&mut content).ok()?;
    serde_json::from_slice::<serde_json::Value>(&content).ok()?.get_mut("claudeAiOauth").map(std::mem::take)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ids::{SessionKey, UserId};

    fn workspace(data_dir: &Path) -> Workspace {
        let key = SessionKey::new(UserId::new("../../etc/passwd").unwrap(), "default").unwrap();
        let workspace = Workspace::of(data_dir, &key.hash());
        workspace.create().unwrap();
        workspace
    }

    #[test]
    fn what_was_half_written_long_ago_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(root.path().to_owned());
        workspace.create().unwrap();
        let credentials = workspace.dirs().home.join(".credentials.json");
        let id = uuid::Uuid::new_v4().simple().to_string();
        let long_ago = std::time::SystemTime::now() - 2 * HALF_WRITTEN_FOR;
        let old = [format!(".{id}.new"), "home/".to_owned() + &format!(".{id}.new")];
        let kept = [".mine.new", "session.json", &format!("home/.{id}.old")].map(str::to_owned);
        for name in old.iter().chain(&kept) {
            File::create(root.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        let fresh = root.path().join(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        File::create(&fresh).unwrap();
        workspace.sweep(&credentials);
        assert!(old.iter().all(|name| !root.path().join(name).exists()));
        assert!(kept.iter().all(|name| root.path().join(name).exists()) && fresh.exists());
    }

    #[test]
    fn a_workspace_lies_below_the_data_dir_and_is_the_owners_alone() {
        let data = tempfile::tempdir().unwrap();
        let workspace = workspace(data.path());
        let dirs = workspace.dirs();
        for dir in [&dirs.work, &dirs.home, &dirs.tmp] {
            assert!(dir.canonicalize().unwrap().starts_with(data.path().canonicalize().unwrap()));
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn tokens_that_the_cli_has_renewed_stay_and_newer_ones_are_written() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let given = |access: &str, expires_at| OauthCredentials {
            access_token: access.into(),
            refresh_token: format!("refresh {access}"),
            expires_at,
            scopes: Vec::new(),
            subscription_type: "max".into(),
        };
        let adapter = &crate::cli::claude::CLAUDE;
        let file = adapter.credentials_file(workspace.dirs(), &cli);
        let held = || credentials_on_disk(&file).unwrap()["accessToken"].as_str().unwrap().to_owned();
        let write = |given| workspace.write_credentials(adapter, &cli, &given).unwrap();
        assert!(write(given("first", 1000)));
        // The CLI renews.
        fs::write(
            &file,
            r#"{"claudeAiOauth":{"accessToken":"renewed","refreshToken":"r","expiresAt":3000}}"#,
        )
        .unwrap();
        assert!(!write(given("first", 1000)) && !write(given("second", 2999)));
        assert_eq!(held(), "renewed");
        assert!(write(given("third", 3001)));
        assert_eq!(held(), "third");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // What cannot be understood helps nobody.
        fs::write(&file, "nonsense").unwrap();
        assert!(write(given("fourth", 1)));
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("a.json");
        let elsewhere = data.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        for (content, durability) in [("one", Durability::Disk), ("two", Durability::Kernel)] {
            write_private(&file, content.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), content);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!elsewhere.exists(), "a planted link was followed");
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
        assert!(!workspace.dirs().work.exists());
        assert!(outside.path().join("keep").exists());
    }
}
