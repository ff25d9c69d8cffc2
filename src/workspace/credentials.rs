//! OAuth credentials in the CLI's file. Blocking.

use std::io;
use std::path::Path;
#[cfg(feature = "server")]
use std::path::PathBuf;

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

impl Workspace {
    /// The credentials file of this session alone; `None` if sessions share one file.
    #[cfg(feature = "server")]
    pub(crate) fn credentials_file(&self, cli: &CliConfig) -> Option<CredentialsFile> {
        let file = adapter::credentials_file(&self.dirs, cli);
        let path = self.below_session(&file)?.to_owned();
        Some(CredentialsFile { directory: self.beneath().ok()?, path })
    }

    /// The access and refresh token that the CLI stores now; none if there is no such file.
    pub(crate) fn tokens(&self, cli: &CliConfig) -> Vec<String> {
        let file = self.cli_file(cli, &adapter::credentials_file(&self.dirs, cli));
        let stored = file.ok().and_then(|(directory, path)| read(&directory, &path));
        stored.into_iter().flat_map(|stored| [stored.access_token, stored.refresh_token]).flatten().collect()
    }

    /// Writes OAuth credentials for the CLI, unless the stored ones expire later: the CLI renews tokens without the
    /// client's knowledge. Returns whether they were written.
    pub(crate) fn write_credentials(&self, cli: &CliConfig, given: &OauthCredentials) -> io::Result<bool> {
        let (directory, path) = self.cli_file(cli, &adapter::credentials_file(&self.dirs, cli))?;
        let stored = read(&directory, &path);
        let expires_at = stored.and_then(|stored| stored.expires_at);
        if expires_at.is_some_and(|expires_at| expires_at > given.expires_at) {
            return Ok(false);
        }
        replace(&directory, &path, &adapter::encode_credentials(given), Durability::Disk)?;
        Ok(true)
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
    use crate::adapter;

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
        let held = || workspace.tokens(&cli).remove(0);
        let write = |given| workspace.write_credentials(&cli, &given).unwrap();
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
        assert!(workspace.tokens(&cli).is_empty());
        assert!(write(tokens("fourth", 1)));
    }

    #[test]
    fn credentials_are_not_written_through_a_link() {
        let data = tempfile::tempdir().unwrap();
        let (workspace, cli) = (workspace(data.path()), CliConfig::default());
        let file = adapter::credentials_file(workspace.dirs(), &cli);
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), workspace.dirs.home.join(".claude")).unwrap();
        assert!(workspace.write_credentials(&cli, &tokens("a", 1)).unwrap());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert!(fs::symlink_metadata(&file).unwrap().is_file());
    }
}
