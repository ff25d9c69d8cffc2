//! Attached clients: the Unix socket, its limits, and one task for each connection.
//!
//! `wire` is what both ends say, `peer` who may speak, `client` the life of one connection.

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
pub mod wire;

use super::app::App;
use super::auth::AuthPolicy;
use super::net::connection::Closing;

/// Mode of the socket: its owner alone.
const MODE: u32 = 0o600;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

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
        let new = path.with_extension("new");
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
