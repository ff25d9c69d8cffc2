//! One request in several tries, each with a limit.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use tokio::time::{Instant, timeout};

use super::{Inner, Store, StoreError};

/// Tries of one request.
pub(super) const TRIES: u32 = 4;
/// Pause before the second try; it doubles with each further one. Up to half of it is chance.
const PAUSE: Duration = Duration::from_millis(50);

impl Store {
    /// Makes a request, and repeats it if the store may answer the next time.
    pub(super) async fn tried<T, F>(&self, request: impl Fn(Arc<Inner>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.tried_for(None, request).await
    }

    /// As [`Store::tried`]. `created`: the object that is there afterwards.
    pub(super) async fn tried_for<T, F>(
        &self,
        created: Option<&Path>,
        request: impl Fn(Arc<Inner>) -> F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let until = Instant::now() + self.0.give_up_after;
        let mut pause = PAUSE;
        for tried in 1.. {
            let error = match self.try_once(request(self.0.clone()), created, until).await {
                Err(error) if error.is_temporary() => error,
                done => return done,
            };
            let wait = pause + pause.mul_f64(fastrand::f64() / 2.0);
            if tried == TRIES || Instant::now() + wait >= until {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
        Err(StoreError::timeout())
    }

    async fn try_once<T, F>(
        &self,
        request: F,
        created: Option<&Path>,
        until: Instant,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let limit = until.saturating_duration_since(Instant::now()).min(self.0.try_for);
        let begun = async {
            let permit = self.0.in_flight.clone().acquire_owned().await.map_err(|_| StoreError::timeout())?;
            // A task of its own: a directory that does not answer holds its thread, and the permit as long.
            let (local, created) = (self.0.local.clone(), created.cloned());
            let task = self.0.tasks.spawn(async move {
                let _permit = permit;
                let Some(local) = local else { return request.await };
                local.clone().check().await?;
                let done = request.await;
                // It may have become another one meanwhile.
                match created.filter(|_| done.is_ok()) {
                    Some(created) => local.check_has(created).await?,
                    None => local.check().await?,
                }
                done
            });
            let abort = (self.0.local.is_none()).then(|| AbortOnDrop(task.abort_handle()));
            let done = task.await.map_err(|_| StoreError::Unavailable("the request failed".to_owned()))?;
            drop(abort);
            done
        };
        timeout(limit, begun).await.unwrap_or(Err(StoreError::timeout()))
    }
}

/// Ends a request that nobody waits for.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
