//! Where a data directory keeps what, as docs and dashboards describe it.

use std::path::{Path, PathBuf};

use pilotlight::model::ids::{SessionKey, UserId};

/// The server's record of a session.
pub fn record_dir(data: &Path, user: &str, conversation: &str) -> PathBuf {
    let key = SessionKey::new(UserId::new(user).unwrap(), conversation).unwrap();
    data.join("records").join(key.hash().as_str())
}

/// The directory that a session's child writes. Before there is a record: where one would be looked for.
pub fn session_dir(data: &Path, user: &str, conversation: &str) -> PathBuf {
    directory_of(data, &record_dir(data, user, conversation))
}

/// The variable by which the processes of a user's default conversation are known.
pub fn variable(data: &Path, user: &str) -> String {
    let directory = session_dir(data, user, "default");
    format!("PILOTLIGHT_SESSION={}", directory.file_name().unwrap().to_str().unwrap())
}

/// The same by the record's directory.
pub fn directory_of(data: &Path, record: &Path) -> PathBuf {
    let named = std::fs::read_to_string(record.join("directory")).ok();
    data.join("sessions")
        .join(named.unwrap_or_else(|| record.file_name().unwrap().to_str().unwrap().to_owned()))
}

/// The directories of all sessions.
pub fn session_dirs(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("sessions")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.')).collect()
}
