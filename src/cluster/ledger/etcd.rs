//! The ledger over etcd 3.4 and later, through its JSON gateway: no code generator, no gRPC.
//!
//! A request goes to one endpoint after the other until one answers or its time is over. That repeats a transaction after
//! an unknown result; the transactions of [`super::requests`] recognise their own effects.

mod auth;
mod endpoints;
mod json;
mod status;
mod tls;
mod transport;
mod watch;

#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::LedgerError;
use super::kv::{LeaseId, Page, Revision, Txn, TxnReply};
use super::{Answer, Ledger, Watch};
use crate::support::tls::TlsError;
use auth::Tokens;
use endpoints::Endpoints;
use status::Failure;
use transport::Transport;

/// Maximum size of an answer: a page of keys is far below.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Maximum size of a request: the default of etcd is 1.5 MiB, and base64 adds a third.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Number of keys in a page.
const PAGE: u64 = 1000;

/// Where etcd is and how to reach it.
#[derive(Clone)]
pub(crate) struct EtcdSettings {
    /// `http://host:port` or `https://host:port`; the first is preferred until it fails.
    pub(crate) endpoints: Vec<String>,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) tls: TlsFiles,
    /// Maximum time of an attempt at one endpoint.
    pub(crate) attempt: Duration,
    /// Maximum time of a request over all endpoints.
    pub(crate) total: Duration,
    /// Maximum time of a renewal, which is one attempt.
    pub(crate) renewal: Duration,
    /// Time without a change after which a watch counts as dead.
    pub(crate) silence: Duration,
}

/// Without the endpoints, which may hold a password until they are checked.
impl fmt::Debug for EtcdSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdSettings")
            .field("endpoints", &self.endpoints.len())
            .field("tls", &self.tls)
            .field("attempt", &self.attempt)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl EtcdSettings {
    /// The defaults, with times that fit a lease of this duration.
    pub(crate) fn new(endpoints: Vec<String>, ttl: Duration) -> Self {
        Self {
            endpoints,
            credentials: None,
            tls: TlsFiles::default(),
            attempt: (ttl / 2).clamp(Duration::from_millis(500), Duration::from_secs(2)),
            total: Duration::from_secs(5),
            renewal: (ttl / 6).clamp(Duration::from_millis(250), Duration::from_secs(2)),
            silence: Duration::from_secs(5),
        }
    }
}

/// A user of etcd.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

/// Without the content.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Files for TLS, in PEM form.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    /// The authorities to trust; those of the host without it.
    pub(crate) ca: Option<PathBuf>,
    /// The certificate of this client with its key.
    pub(crate) client: Option<PathBuf>,
}

/// Why a client of etcd cannot be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// Not the address of an endpoint. It is not repeated: it may hold a password.
    #[error("endpoint {0} is not http:// or https:// with a host and a port alone")]
    Endpoint(usize),
    /// No endpoint at all, or too many.
    #[error("{0} endpoints; 1 to {max} are possible", max = endpoints::MAX_ENDPOINTS)]
    Count(usize),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
}

/// A client of etcd. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Etcd(Arc<Client>);

struct Client {
    endpoints: Endpoints,
    transport: Transport,
    tokens: Option<Tokens>,
    attempt: Duration,
    total: Duration,
    renewal: Duration,
    silence: Duration,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Etcd")
    }
}

/// How a request may take its time.
#[derive(Clone, Copy)]
struct Bounds {
    attempt: Duration,
    end: Instant,
    /// Over all endpoints, again and again, until the end.
    repeat: bool,
}

impl Etcd {
    /// Connects at the first request. Reads the files; blocking.
    pub(crate) fn new(settings: EtcdSettings) -> Result<Self, SettingsError> {
        Ok(Self(Arc::new(Client {
            endpoints: Endpoints::new(&settings.endpoints)?,
            transport: Transport::new(tls::config(&settings.tls)?, settings.attempt),
            tokens: settings.credentials.map(Tokens::new),
            attempt: settings.attempt,
            total: settings.total,
            renewal: settings.renewal,
            silence: settings.silence,
        })))
    }

    async fn ask(&self, path: &'static str, body: Vec<u8>) -> Result<Bytes, LedgerError> {
        let Client { attempt, total, .. } = *self.0;
        let bounds = Bounds { attempt, end: Instant::now() + total, repeat: true };
        self.0.ask(path, body, bounds).await
    }
}

impl Client {
    /// Sends a request until an endpoint answers it, and returns the whole answer.
    async fn ask(&self, path: &'static str, body: Vec<u8>, bounds: Bounds) -> Result<Bytes, LedgerError> {
        let body = Bytes::from(body);
        self.over_endpoints(body, bounds, |at, body, end| async move {
            let response = self.open(at, path, body, end).await?;
            transport::read(response.into_body(), MAX_ANSWER_BYTES, end).await
        })
        .await
    }

    /// Opens a stream at an endpoint that answers.
    async fn stream(&self, path: &'static str, body: Vec<u8>) -> Result<watch::Stream, LedgerError> {
        let bounds = Bounds { attempt: self.attempt, end: Instant::now() + self.total, repeat: true };
        let body = Bytes::from(body);
        let opened = self.over_endpoints(body, bounds, |at, body, end| async move {
            Ok((at, self.open(at, path, body, end).await?))
        });
        let (at, response) = opened.await?;
        Ok(watch::Stream::new(response.into_body(), self.silence, at, self.endpoints.follow()))
    }

    /// One attempt after the other. An endpoint that fails is not the first one of the next request.
    async fn over_endpoints<T, F>(
        &self,
        body: Bytes,
        bounds: Bounds,
        attempt: impl Fn(usize, Bytes, Instant) -> F,
    ) -> Result<T, LedgerError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if body.len() > MAX_REQUEST_BYTES {
            return Err(LedgerError::TooLarge("request"));
        }
        let (mut tries, mut before) = (0, None);
        loop {
            let at = self.endpoints.preferred();
            let end = (Instant::now() + bounds.attempt).min(bounds.end);
            let why = match attempt(at, body.clone(), end).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                // What the end of all cuts says less than the attempt before it.
                Err(Failure::Elsewhere(why)) => {
                    before.filter(|_| Instant::now() >= bounds.end).unwrap_or(why)
                }
            };
            before = Some(why);
            self.endpoints.failed(at);
            tries += 1;
            let pause = self.endpoints.pause(tries);
            if !bounds.repeat || Instant::now() + pause >= bounds.end {
                return Err(LedgerError::Unavailable(why));
            }
            sleep(pause).await;
        }
    }

    /// Sends a request to an endpoint; once more with a new token if the one sent is no longer valid.
    async fn open(
        &self,
        at: usize,
        path: &'static str,
        body: Bytes,
        end: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let mut renewed = false;
        loop {
            let token = self.token(at, end).await?;
            let sent =
                self.transport.send(self.endpoints.uri(at, path)?, body.clone(), token.as_deref(), end);
            let response = sent.await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let body = transport::read(response.into_body(), status::MAX_ERROR_BYTES, end).await?;
            match (status::failure(status, &body), &self.tokens, token) {
                (status::Kind::Token, Some(tokens), Some(token)) if !renewed => {
                    tokens.forget(&token).await;
                    renewed = true;
                }
                (kind, ..) => return Err(kind.into()),
            }
        }
    }

    async fn token(&self, at: usize, end: Instant) -> Result<Option<Arc<str>>, Failure> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let fetch = tokens.get(|request| async move {
            let uri = self.endpoints.uri(at, "/v3/auth/authenticate")?;
            let response = self.transport.send(uri, request.into(), None, end).await?;
            let status = response.status();
            let body = transport::read(response.into_body(), status::MAX_ERROR_BYTES, end).await?;
            if status.is_success() { Ok(body) } else { Err(status::failure(status.as_u16(), &body).into()) }
        });
        match timeout_at(end, fetch).await {
            Ok(token) => token,
            Err(_) => Err(Failure::Elsewhere("timeout")),
        }
    }
}

impl Ledger for Etcd {
    fn range(&self, start: Vec<u8>, end: Vec<u8>, at: Revision) -> Answer<'_, Page> {
        Box::pin(
            async move { json::page(&self.ask("/v3/kv/range", json::range(&start, &end, at, PAGE)).await?) },
        )
    }

    fn txn(&self, txn: Txn) -> Answer<'_, TxnReply> {
        Box::pin(async move { json::txn_reply(&self.ask("/v3/kv/txn", json::txn(&txn)).await?) })
    }

    fn grant(&self, seconds: u64) -> Answer<'_, (LeaseId, u64)> {
        Box::pin(async move { json::granted(&self.ask("/v3/lease/grant", json::grant(seconds)).await?) })
    }

    fn renew(&self, lease: LeaseId) -> Answer<'_, u64> {
        Box::pin(async move {
            let attempt = self.0.renewal;
            let bounds = Bounds { attempt, end: Instant::now() + attempt, repeat: false };
            json::renewed(&self.0.ask("/v3/lease/keepalive", json::lease(lease), bounds).await?)
        })
    }

    fn revoke(&self, lease: LeaseId) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.ask("/v3/lease/revoke", json::lease(lease)).await {
                Ok(_) | Err(LedgerError::LeaseGone) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn remaining(&self, lease: LeaseId) -> Answer<'_, Option<u64>> {
        Box::pin(async move { json::remaining(&self.ask("/v3/lease/timetolive", json::lease(lease)).await?) })
    }

    fn watch(&self, start: Vec<u8>, end: Vec<u8>, from: Revision) -> Answer<'_, Box<dyn Watch>> {
        Box::pin(async move {
            let stream = self.0.stream("/v3/watch", json::watch(&start, &end, from)).await?;
            Ok(Box::new(stream) as Box<dyn Watch>)
        })
    }
}
