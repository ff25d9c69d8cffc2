//! Attached clients: the Unix socket, its limits, and one task for each connection.
//!
//! `wire` is what both ends say, `peer` who may speak, `client` the life of one connection, `servers` what a client may
//! bring, `refusal` what is counted.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

mod client;
mod peer;
mod refusal;
mod servers;
pub mod wire;

use super::app::App;
use super::auth::AuthPolicy;
use super::net::connection::Closing;
use crate::config::Config;

/// Mode of the socket: its owner alone.
const MODE: u32 = 0o600;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Longest path that the address of a Unix socket holds.
const MAX_PATH: usize = 107;

/// What an operator should know of the socket of this configuration: its state in a line, and a problem.
#[must_use]
pub fn state(config: &Config) -> (String, Option<&'static str>) {
    if config.attach.connections == 0 {
        return ("off (attach.connections is 0)".to_owned(), None);
    }
    let path = config.attach_socket();
    let found = fs::symlink_metadata(&path);
    let is_configured = config.attach.socket.is_some();
    let problem = if new_name(&path).as_os_str().len().max(path.as_os_str().len()) > MAX_PATH {
        Some("the path of the socket is too long: set attach.socket")
    } else if is_configured && !path.parent().is_some_and(Path::is_dir) {
        Some("the directory of attach.socket does not exist")
    } else if found.is_ok_and(|found| !found.file_type().is_socket()) {
        Some("a file that is no socket has the path of attach.socket")
    } else {
        None
    };
    (format!("{} (at most {} clients)", path.display(), config.attach.connections), problem)
}

/// Where the socket is until it has its mode.
fn new_name(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// What every connection uses.
#[derive(Clone)]
pub(super) struct Attaching {
    pub(super) app: Arc<App>,
    pub(super) policy: AuthPolicy,
    pub(super) closing: Closing,
    pub(super) tasks: TaskTracker,
}

/// The socket; its file goes with it.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

impl Socket {
    /// Binds the socket. What a server before this one has left at the path is removed.
    ///
    /// # Errors
    /// I/O; a file that is no socket, or one that is in use.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        if let Ok(found) = fs::symlink_metadata(path) {
            let address = std::os::unix::net::SocketAddr::from_pathname(path)?;
            if !found.file_type().is_socket() || peer::is_in_use(&address) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        // Nobody can connect before it has its mode: it is renamed into place.
        let new = new_name(path);
        fs::remove_file(&new).ok();
        let listener = UnixListener::bind(&new)?;
        let placed =
            fs::set_permissions(&new, fs::Permissions::from_mode(MODE)).and_then(|()| fs::rename(&new, path));
        if let Err(error) = placed {
            fs::remove_file(&new).ok();
            return Err(error);
        }
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves clients until the shutdown begins.
    pub(super) async fn serve(self, attaching: Attaching) {
        let most = attaching.app.pilot.config().attach.connections;
        let slots = Arc::new(Semaphore::new(most));
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let slot = slots.clone().try_acquire_owned().ok();
                    let (closing, own) = (attaching.closing.clone(), attaching.clone());
                    attaching.tasks.spawn(async move {
                        tokio::select! {
                            () = client::serve(own, stream, slot) => {}
                            () = closing.now.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept an attached client");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_sockets_are_named() {
        let place = tempfile::tempdir().unwrap();
        let mut config = Config::new(place.path());
        assert_eq!(state(&config), ("off (attach.connections is 0)".to_owned(), None));
        config.attach.connections = 2;
        let (line, problem) = state(&config);
        assert!(line.ends_with("attach.sock (at most 2 clients)") && problem.is_none(), "{line} {problem:?}");
        fs::write(place.path().join("attach.sock"), "").unwrap();
        assert!(state(&config).1.unwrap().contains("no socket"));
        config.attach.socket = Some("/nowhere/at/all/a.sock".into());
        assert!(state(&config).1.unwrap().contains("does not exist"));
        let config = Config { data_dir: format!("/{}", "a".repeat(107)).into(), ..config };
        let config = Config { attach: crate::config::Attach { socket: None, ..config.attach }, ..config };
        assert!(state(&config).1.unwrap().contains("too long"));
    }
}
