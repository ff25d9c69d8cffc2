//! The directory of the server in `/etc`, as the systemd unit has it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use crate::common::installed::left_out;
use crate::rungs::Term;
use crate::scene::give;

const DIRECTORY: &str = "/etc/pilotlight";
/// Other tests remove the directory when they leave it empty.
const TRIES: usize = 100;

/// A file as that of the server's environment, for its user alone. It is removed when dropped.
pub(crate) struct Environment(pub(crate) PathBuf);

impl Environment {
    /// `None` for a test that may not write to `/etc`.
    pub(crate) fn write(user: Term, secret: &str) -> Option<Self> {
        if !geteuid().is_root() {
            left_out("only root writes to /etc/pilotlight");
            return None;
        }
        let path = Path::new(DIRECTORY).join(format!("environment-{}", uuid::Uuid::new_v4()));
        let content = format!("PILOTLIGHT_CLI__ENV__X={secret}\n");
        let made = (0..TRIES)
            .any(|_| fs::create_dir_all(DIRECTORY).and_then(|()| fs::write(&path, &content)).is_ok());
        assert!(made, "{} can be written", path.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        give(user, &path);
        Some(Self(path))
    }
}

impl Drop for Environment {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
        // Not while others use it, nor if it was there before with files in it.
        fs::remove_dir(DIRECTORY).ok();
    }
}
