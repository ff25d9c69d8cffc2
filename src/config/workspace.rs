//! Section `workspace`: the working directories of sessions.

use std::path::PathBuf;

use super::{Config, ConfigError, validate::invalid};

section! {
    /// Working directories of sessions.
    #[derive(Debug)]
    pub struct WorkspaceConfig {
        /// Directory that is copied into the working directory of each new session: at most 256 MiB in 20 000 files.
        /// Default none: a session begins with an empty directory.
        pub template: Option<PathBuf> = None,
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let Some(template) = &config.workspace.template else { return Ok(()) };
    let problem = match (std::path::absolute(template), std::path::absolute(&config.data_dir)) {
        _ if !template.is_absolute() => "must be an absolute path",
        (Ok(own), Ok(data)) if own.starts_with(&data) || data.starts_with(&own) => {
            "must lie outside of data_dir, which has the files of all users, and must not contain it"
        }
        _ => return Ok(()),
    };
    Err(invalid("workspace.template", problem))
}
