//! OAuth credentials: in the CLI's file, or in the record directory. Blocking.

use std::io;
use std::path::{Path, PathBuf};

use super::Workspace;
use super::beneath::Beneath;
use super::cli_files::replace;
use crate::adapter::{self, StoredCredentials};
use crate::config::CliConfig;
use crate::model::OauthCredentials;
use crate::support::atomic_file::Durability;
#[cfg(feature = "server")]
use crate::support::secret_file::FileId;

/// Longest credentials file read: one has some hundred bytes.
const MAX_CREDENTIALS_BYTES: u64 = 64 << 10;

/// Where the OAuth credentials of sessions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialsPlace {
    /// In the CLI's file: the CLI renews them.
    Cli,
    /// In the record directory, out of every child's reach: the broker renews them.
    Record,
}

impl Workspace {
    /// The credentials file of this session alone; `None` if sessions share one file.
    #[cfg(feature = "server")]
    pub(crate) fn credentials_file(
        &self,
        cli: &CliConfig,
        place: CredentialsPlace,
    ) -> Option<CredentialsFile> {
        let (directory, path) = match place {
            CredentialsPlace::Cli => {
                let file = adapter::credentials_file(&self.dirs, cli);
                (self.beneath().ok()?, self.below_session(&file)?.to_owned())
            }
            CredentialsPlace::Record => self.own_credentials_file().ok()?,
        };
        Some(CredentialsFile { directory, path })
    }

    /// The access and refresh token that are stored now; none if there is no such file.
    pub(crate) fn tokens(&self, cli: &CliConfig, place: CredentialsPlace) -> Vec<String> {
        let file = self.stored_credentials_file(cli, place);
        let stored = file.ok().and_then(|(directory, path)| read(&directory, &path));
        stored.into_iter().flat_map(|stored| [stored.access_token, stored.refresh_token]).flatten().collect()
    }

    /// Writes OAuth credentials, unless the stored ones expire later: they are renewed without the client's knowledge.
    /// Returns whether they were written.
    pub(crate) fn write_credentials(
        &self,
        cli: &CliConfig,
        place: CredentialsPlace,
        given: &OauthCredentials,
    ) -> io::Result<bool> {
        let (directory, path) = self.stored_credentials_file(cli, place)?;
        let stored = read(&directory, &path);
        let expires_at = stored.and_then(|stored| stored.expires_at);
        if expires_at.is_some_and(|expires_at| expires_at > given.expires_at) {
            return Ok(false);
        }
        replace(&directory, &path, &adapter::encode_credentials(given), Durability::Disk)?;
        Ok(true)
    }

    /// Takes OAuth credentials out of the CLI's file, where an earlier start without a broker has left them: into the
    /// record directory, unless there are some. Before each start of a child that uses the broker.
    #[cfg(feature = "broker")]
    pub(crate) fn withdraw_credentials(&self, cli: &CliConfig) -> io::Result<()> {
        let file = adapter::credentials_file(&self.dirs, cli);
        let (directory, path) = self.cli_file(cli, &file)?;
        let (own, own_path) = self.own_credentials_file()?;
        if read(&own, &own_path).is_none()
            && let Ok(content) = directory.read(&path, MAX_CREDENTIALS_BYTES)
            && adapter::oauth_credentials(&content).is_some()
        {
            replace(&own, &own_path, &content, Durability::Disk)?;
        }
        match directory.unlink(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// The OAuth credentials of [`CredentialsPlace::Record`].
    #[cfg(feature = "broker")]
    pub(crate) fn oauth_store(&self) -> OauthStore {
        OauthStore { workspace: self.clone() }
    }

    fn stored_credentials_file(
        &self,
        cli: &CliConfig,
        place: CredentialsPlace,
    ) -> io::Result<(Beneath, PathBuf)> {
        match place {
            CredentialsPlace::Cli => self.cli_file(cli, &adapter::credentials_file(&self.dirs, cli)),
            CredentialsPlace::Record => self.own_credentials_file(),
        }
    }

    fn own_credentials_file(&self) -> io::Result<(Beneath, PathBuf)> {
        let file = self.record.credentials_file();
        let name = file.file_name().map(PathBuf::from).unwrap_or_default();
        Ok((Beneath::open(self.record.path(), Path::new(""))?, name))
    }
}

/// OAuth credentials that no child gets. Blocking.
#[cfg(feature = "broker")]
#[derive(Debug, Clone)]
pub(crate) struct OauthStore {
    workspace: Workspace,
}

#[cfg(feature = "broker")]
impl OauthStore {
    /// The stored credentials; `None` if there are none.
    pub(crate) fn read(&self) -> Option<OauthCredentials> {
        let (directory, path) = self.workspace.own_credentials_file().ok()?;
        adapter::oauth_credentials(&directory.read(&path, MAX_CREDENTIALS_BYTES).ok()?)
    }

    /// As [`Workspace::write_credentials`].
    pub(crate) fn write(&self, credentials: &OauthCredentials) -> io::Result<bool> {
        let cli = CliConfig::default();
        self.workspace.write_credentials(&cli, CredentialsPlace::Record, credentials)
    }
}

/// The credentials file of one session.
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct CredentialsFile {
    directory: Beneath,
    path: PathBuf,
}

#[cfg(feature = "server")]
impl CredentialsFile {
    /// Identity of the present content.
    pub(crate) fn id(&self) -> Option<FileId> {
        Some(FileId::of(&self.directory.file(&self.path).ok()?.metadata().ok()?))
    }

    pub(crate) fn read(&self) -> Option<StoredCredentials> {
        read(&self.directory, &self.path)
    }
}

/// The stored credentials; `None` if the file is missing or unreadable.
fn read(directory: &Beneath, path: &Path) -> Option<StoredCredentials> {
    adapter::stored_credentials(&directory.read(path, MAX_CREDENTIALS_BYTES).ok()?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::tests::workspace;
    use super::*;

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
    fn only_later_expiring_tokens_are_written() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let file = adapter::credentials_file(workspace.dirs(), &cli);
        let held = || workspace.tokens(&cli, CredentialsPlace::Cli).remove(0);
        let write = |given| workspace.write_credentials(&cli, CredentialsPlace::Cli, &given).unwrap();
        assert!(write(tokens("first", 1000)));
        // The CLI renews.
        let renewed = r#"{"claudeAiOauth":{"accessToken":"renewed","refreshToken":"r","expiresAt":3000}}"#;
        fs::write(&file, renewed).unwrap();
        assert!(!write(tokens("first", 1000)) && !write(tokens("second", 2999)));
        assert_eq!(held(), "renewed");
        assert!(write(tokens("third", 3001)));
        assert_eq!(held(), "third");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, "nonsense").unwrap();
        assert!(workspace.tokens(&cli, CredentialsPlace::Cli).is_empty());
        assert!(write(tokens("fourth", 1)));
    }

    #[test]
    fn credentials_are_not_written_through_a_link() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let file = adapter::credentials_file(workspace.dirs(), &cli);
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), workspace.dirs.home.join(".claude")).unwrap();
        assert!(workspace.write_credentials(&cli, CredentialsPlace::Cli, &tokens("a", 1)).unwrap());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(fs::symlink_metadata(&file).unwrap().is_file());
    }

    /// Credentials in a child's reach move out of it at the next start.
    #[cfg(feature = "broker")]
    #[test]
    fn record_keeps_credentials_out_of_reach() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let (store, file) = (workspace.oauth_store(), adapter::credentials_file(workspace.dirs(), &cli));
        assert!(store.read().is_none());
        workspace.withdraw_credentials(&cli).unwrap();
        assert!(workspace.write_credentials(&cli, CredentialsPlace::Cli, &tokens("old", 5)).unwrap());
        workspace.withdraw_credentials(&cli).unwrap();
        assert!(!file.exists());
        assert_eq!(store.read().unwrap().access_token, "old");
        assert!(!store.write(&tokens("older", 4)).unwrap() && store.write(&tokens("new", 6)).unwrap());
        // What a child writes there counts no more.
        fs::write(&file, r#"{"claudeAiOauth":{"accessToken":"x","refreshToken":"y","expiresAt":9}}"#)
            .unwrap();
        workspace.withdraw_credentials(&cli).unwrap();
        assert!(!file.exists());
        assert_eq!(workspace.tokens(&cli, CredentialsPlace::Record), ["new", "refresh new"]);
        let mode = fs::metadata(workspace.record.credentials_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
