//! Work on files beside the asynchronous tasks.

use std::io;

/// Runs `work` on a thread for blocking work. A panic there is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
