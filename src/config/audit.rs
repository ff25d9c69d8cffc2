//! Section `audit`: the log of who used which verb.

use std::path::PathBuf;

use super::validate::{bounded, invalid};
use super::{Config, ConfigError};

section! {
    /// The audit log: a line for each request of a known caller.
    #[derive(Debug)]
    pub struct Audit {
        /// File, which only its owner may read. Default none: nothing is recorded.
        pub file: Option<PathBuf> = None,
        /// Size of the file, in bytes, at which another is begun. Default 64 MiB: some 200,000 lines.
        pub max_bytes: u64 = 64 << 20,
        /// Number of files, the current one included: `file`, `file.1` and so on. The oldest is deleted. Default 8.
        pub files: u32 = 8,
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let audit = &config.audit;
    if audit.file.as_deref().is_some_and(|file| file.file_name().is_none()) {
        return Err(invalid("audit.file", "must be the path of a file"));
    }
    bounded("audit.max_bytes", audit.max_bytes, 64 << 10, 1 << 40)?;
    bounded("audit.files", audit.files, 1, 1000)
}
