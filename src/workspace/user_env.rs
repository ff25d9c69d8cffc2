//! Environment variables per user, from the operator's file `cli.user_env_file`.
//!
//! A TOML file with one table of variables per user. A file of its own, because the variables are secrets and change while
//! the server runs: each start of a child reads a changed file. An unusable file keeps the former variables and is
//! logged. Blocking. No log, error or `Debug` contains a value.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::config::{ConfigError, OWN_VARIABLES};
use crate::model::ids::UserId;
use crate::support::lock::MutexExt;
use crate::support::secret_file::{FileId, read};

/// Largest file: a kilobyte each for ten thousand users, and some.
const MAX_FILE_BYTES: u64 = 16 << 20;
const KEY: &str = "cli.user_env_file";

/// Variables of one user. `Debug` is redacted.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Variables(Arc<BTreeMap<String, String>>);

impl Variables {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// The variables in the form of an environment.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (OsString, OsString)> {
        self.0.iter().map(|(name, value)| (name.into(), value.into()))
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The file and its last usable content.
#[derive(Debug, Default)]
pub(crate) struct UserEnv {
    path: Option<PathBuf>,
    /// Variables that must be the same for all users.
    fixed: &'static [&'static str],
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Identity of the file at the last attempt.
    seen: Option<FileId>,
    users: HashMap<UserId, Variables>,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Known({} users)", self.users.len())
    }
}

impl UserEnv {
    /// Reads the configured file.
    pub(crate) fn open(path: Option<&Path>, fixed: &'static [&'static str]) -> Result<Self, ConfigError> {
        let env = Self { path: path.map(Path::to_owned), fixed, known: Mutex::default() };
        if let Some(path) = path {
            let known = env.load(path).map_err(|problem| {
                let problem = format!("cannot use {}: {problem}", path.display());
                ConfigError::Key { key: KEY.to_owned(), problem }
            })?;
            *env.known.lock_unpoisoned() = known;
        }
        Ok(env)
    }

    /// Present variables of `user`.
    pub(crate) fn of(&self, user: &UserId) -> Variables {
        let Some(path) = &self.path else { return Variables::default() };
        let mut known = self.known.lock_unpoisoned();
        let now = FileId::at(path).ok();
        if now != known.seen {
            match self.load(path) {
                Ok(read) => *known = read,
                Err(problem) => {
                    tracing::warn!(path = %path.display(), problem, "cannot read the users' variables; the former ones stay");
                    known.seen = now;
                }
            }
        }
        known.users.get(user).cloned().unwrap_or_default()
    }

    fn load(&self, path: &Path) -> Result<Known, String> {
        let (content, id) = read(path, MAX_FILE_BYTES).map_err(|error| error.to_string())?;
        let text = std::str::from_utf8(&content).map_err(|_| "not UTF-8 text")?;
        Ok(Known { seen: Some(id), users: parse(text, self.fixed)? })
    }
}

/// Parses the file. Errors omit the parser's message: it shows the line, which may contain a secret.
fn parse(text: &str, fixed: &[&str]) -> Result<HashMap<UserId, Variables>, String> {
    let users: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("line {line} is wrong; wanted is a table per user: [\"alice\"], then NAME = \"value\"")
        })?;
    let checked = users.into_iter().map(|(user, variables)| {
        let user = UserId::new(user).map_err(|error| error.to_string())?;
        for (name, value) in &variables {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err("a name or a value cannot be in an environment (\"=\" or NUL in it)".to_owned());
            }
            if OWN_VARIABLES.contains(&name.as_str()) || fixed.contains(&name.as_str()) {
                return Err(format!("{name} cannot differ from user to user; leave it out"));
            }
        }
        Ok((user, Variables(Arc::new(variables))))
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::atomic_file::{self, Durability};

    fn write(path: &Path, text: &str) {
        atomic_file::replace(path, text.as_bytes(), Durability::Kernel).unwrap();
    }

    #[test]
    fn changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        write(&file, "[alice]\nA = \"1\"\n[\"bob@example.org\"]\nA = \"2\"\nB = \"3\"\n");
        let env = UserEnv::open(Some(&file), &[]).unwrap();
        let of = |user: &str| -> Vec<_> { env.of(&UserId::new(user).unwrap()).iter().collect() };
        assert_eq!(of("alice"), [("A".into(), "1".into())]);
        assert_eq!(of("bob@example.org").len(), 2);
        assert!(of("eve").is_empty());
        for (text, alice) in [("[alice]\nA = \"4\"", "4"), ("nonsense", "4"), ("[alice]\nA = \"5\"", "5")] {
            write(&file, text);
            assert_eq!(of("alice"), [("A".into(), alice.into())], "{text}");
        }
    }

    #[test]
    fn errors_and_debug_contain_no_value() {
        for (text, named) in [
            ("[alice]\n\nA = s3cret", "line 3"),
            ("[alice]\nA = \"s3cret\nB = 1", "line 2"),
            ("[alice]\nA = 53", "line 2"),
            ("A = \"s3cret\"", "line 1"),
            ("[alice]\nHOME = \"s3cret\"", "HOME"),
            ("[alice]\nFIXED = \"s3cret\"", "FIXED"),
            ("[\"\"]\nA = \"s3cret\"", "user id"),
            ("[alice]\n\"A=B\" = \"s3cret\"", "="),
        ] {
            let error = parse(text, &["FIXED"]).unwrap_err();
            assert!(error.contains(named) && !error.contains("s3cret"), "{text:?} gave {error}");
        }
        let users = parse("[alice]\nA = \"s3cret\"", &[]).unwrap();
        assert!(!format!("{users:?}").contains("s3cret"));
    }

    #[test]
    fn file_readable_by_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("users.toml");
        write(&file, "[alice]\nA = \"1\"");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = UserEnv::open(Some(&file), &[]).unwrap_err().to_string();
        assert!(error.contains(KEY) && error.contains("0600"), "{error}");
    }
}
