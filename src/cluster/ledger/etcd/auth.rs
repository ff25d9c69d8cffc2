//! Tokens for a user and password. One at a time is valid; it is fetched again when a server no longer takes it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;

use super::status::Failure;
use super::{Credentials, json};

/// The token in use. Fetching it is slow by intention (bcrypt), so that requests share one fetch.
pub(super) struct Tokens {
    credentials: Credentials,
    current: Mutex<Option<Arc<str>>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, current: Mutex::default() }
    }

    /// The current token, or the one that `fetch` brings in answer to a request for one.
    pub(super) async fn get<F>(&self, fetch: impl FnOnce(Vec<u8>) -> F) -> Result<Option<Arc<str>>, Failure>
    where
        F: Future<Output = Result<Bytes, Failure>>,
    {
        let mut current = self.current.lock().await;
        if current.is_none() {
            let Credentials { user, password } = &self.credentials;
            let answer = fetch(json::authenticate(user, password)).await?;
            *current = Some(json::token(&answer).map_err(Failure::Final)?);
        }
        Ok(current.clone())
    }

    #[cfg(test)]
    pub(super) async fn set(&self, token: Arc<str>) {
        *self.current.lock().await = Some(token);
    }

    /// A server has refused this token. One fetched since stays.
    pub(super) async fn forget(&self, token: &str) {
        self.current.lock().await.take_if(|current| &**current == token);
    }
}
