//! The key file: API keys by their digests, with roles and limits.
//!
//! One JSON object per line, `#` begins a comment, so that a change touches one line and people can read the file. A
//! key is generated once, printed once and stored nowhere. `pilotlight keys` writes the file; the server only reads it.
//! Blocking.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};

use crate::model::ids::InvalidName;
use crate::support::secret_file::{FileId, InsecureFile, read};

mod edit;
mod entry;

pub use edit::{add, revoke};
pub use entry::{Entry, KeyLimits, Role};

/// Prefix of every key, by which people and secret scanners recognise it.
pub const PREFIX: &str = "plk_";
/// Random bytes of a key: as many as its digest has, so that guessing is hopeless and digests need neither salt nor
/// stretching.
const RANDOM_BYTES: usize = 32;
/// Maximum file size: some 60 000 keys.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub(crate) type Digest = [u8; 32];

/// A key in clear text. Debug output is redacted; [`Key::expose`] hands it over once.
pub struct Key(String);

impl Key {
    fn generate() -> Result<Self, KeyFileError> {
        let mut random = [0; RANDOM_BYTES];
        // Never short for a few bytes.
        getrandom(&mut random, GetRandomFlags::empty())
            .map_err(|error| KeyFileError::Random(error.into()))?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random))))
    }

    /// The text of the key, as callers send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

/// Failure to read or change the key file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Unreadable, or writable by other users.
    #[error("cannot use the key file {}: {problem}", .path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Invalid line.
    #[error("the key file {} is wrong in line {line}: {problem}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Failure to write.
    #[error("cannot write the key file {}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Invalid limit of a key.
    #[error("{0}")]
    Limit(&'static str),
    /// Invalid user of a key.
    #[error(transparent)]
    User(#[from] InvalidName),
    /// No random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(std::io::Error),
}

/// Lists the keys of a file, in order.
///
/// # Errors
/// [`KeyFileError`] if others may change it, or any line of it is wrong.
pub fn list(path: &Path) -> Result<Vec<Entry>, KeyFileError> {
    load(path).map(|(entries, _)| entries)
}

/// Loads the keys and the identity of the file.
pub(crate) fn load(path: &Path) -> Result<(Vec<Entry>, FileId), KeyFileError> {
    let unfit =
        |error: InsecureFile| KeyFileError::Unfit { path: path.to_owned(), problem: error.to_string() };
    let (content, stamp) = read(path, MAX_FILE_BYTES).map_err(unfit)?;
    let text = std::str::from_utf8(&content)
        .map_err(|_| KeyFileError::Unfit { path: path.to_owned(), problem: "it is not text".to_owned() })?;
    let entries = parse(text).map_err(|(line, problem)| {
        // The line is not repeated: it may hold a pasted key.
        KeyFileError::Line { path: path.to_owned(), line, problem }
    })?;
    Ok((entries, stamp))
}

/// Parses line by line; an error names the line.
fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let mut entries: Vec<Entry> = Vec::new();
    let (mut ids, mut digests) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    for (number, line) in text.lines().enumerate().filter(|(_, line)| entry::is_entry(line)) {
        let entry = Entry::parse(line).map_err(|problem| (number + 1, problem))?;
        if !ids.insert(entry.id().to_owned()) || !digests.insert(*entry.digest()) {
            return Err((number + 1, "the same id or key is in an earlier line".to_owned()));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The entry of a key.
pub(crate) fn digest(key: &[u8]) -> Digest {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_different_and_recognisable() {
        let (one, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert!(one.expose().starts_with(PREFIX) && one.expose().len() == PREFIX.len() + 43);
        assert_ne!(one.expose(), other.expose());
        assert!(!format!("{one:?}").contains(one.expose()));
    }

    #[test]
    fn invalid_line_is_named_but_not_repeated() {
        let good = format!(r#"{{"id":"a","sha256":"{}","role":"admin","created":"x"}}"#, "0".repeat(64));
        assert_eq!(parse(&format!("# keys\n\n{good}\n")).unwrap().len(), 1);
        let cases = [
            (format!("{good}\n{good}"), 2, "earlier"),
            (good.replace("admin", "root"), 1, "role"),
            (good.replace("\"admin\"", "\"user\""), 1, "user"),
            (good.replace("\"created\"", "\"user\":\"alice\",\"created\""), 1, "user"),
            (good.replace("\"created\"", "\"key\":\"plk_secret\",\"created\""), 1, "key"),
            (good.replace(&"0".repeat(64), "plk_secret"), 1, "sha256"),
            (good.replace("\"created\"", "\"tools\":[\"Read\"],\"created\""), 1, "admin"),
            (good.replace("\"admin\"", "\"service\",\"models\":[]"), 1, "models"),
            (good.replace("\"admin\"", "\"service\",\"policy\":\"secret\""), 1, "policy"),
            (good.replace("\"admin\"", "\"service\",\"tools\":[\"secret(x)\"]"), 1, "tools"),
            (good.replace("\"admin\"", "\"service\",\"usd_per_day\":-1"), 1, "usd_per_day"),
            ("plk_secret".to_owned(), 1, ""),
        ];
        for (text, line, problem) in cases {
            let error = parse(&text).unwrap_err();
            assert_eq!(error.0, line, "{text}");
            assert!(error.1.contains(problem) && !error.1.contains("secret"), "{text} gave {}", error.1);
        }
    }
}
