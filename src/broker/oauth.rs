//! OAuth credentials of a session: read from its record directory, renewed here, never given to a child.
//!
//! A refresh token works once. Sessions of one user may hold the same: the first that renews it shares the result.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use http_body_util::{BodyExt, Limited};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use super::Shared;
use super::body::full;
use super::refusal::Refusal;
use crate::adapter;
use crate::model::OauthCredentials;
use crate::support::lock::MutexExt;
use crate::telemetry::metrics::RefreshOutcome;
use crate::workspace::OauthStore;

/// Tokens are renewed this long before they expire: a request may take minutes to reach the API.
const MARGIN: Duration = Duration::from_secs(300);
/// Interval of looking for credentials that a client has sent meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum time of a renewal.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of a renewal that runs while the system ends: its answer may hold the only valid refresh token, and is stored. Less
/// than the shutdown waits for its last tasks.
const LAST_RENEWAL: Duration = Duration::from_secs(3);
/// Pause after a renewal that failed for a passing reason.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
/// Longest response of a renewal: it has some hundred bytes.
const MAX_RESPONSE_BYTES: usize = 64 << 10;
/// Renewals remembered for other sessions with the same refresh token.
const MAX_RENEWALS: usize = 4096;
/// Renewals of one request: another session may have renewed the tokens several times.
const MAX_STEPS: usize = 8;

const MISSING: &str = "there are no OAuth credentials of this session; send them with a request";
const REJECTED: &str = "the OAuth credentials of this session are no longer accepted and cannot be renewed; send new ones with a request";

/// Identifies a refresh token.
type Digest = [u8; 32];

/// Results of renewals, by the refresh token that was used.
#[derive(Debug, Default)]
pub(super) struct Renewals(DashMap<Digest, Arc<tokio::sync::Mutex<Renewal>>>);

#[derive(Default)]
enum Renewal {
    /// None was tried, or one may be tried again.
    #[default]
    Open,
    /// It gave these credentials, at this time.
    Done(OauthCredentials, Instant),
    /// The provider does not accept the token.
    Rejected,
    /// It failed at this time for a passing reason.
    Failed(Instant),
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renewal(redacted)")
    }
}

impl Renewals {
    fn of(&self, credentials: &OauthCredentials) -> Arc<tokio::sync::Mutex<Renewal>> {
        if self.0.len() >= MAX_RENEWALS {
            // Those that nobody waits for. A session that needs one renews with its own token.
            self.0.retain(|_, renewal| Arc::strong_count(renewal) > 1);
        }
        let digest = Sha256::digest(credentials.refresh_token.as_bytes()).into();
        self.0.entry(digest).or_default().clone()
    }
}

/// The credentials of one session. `Debug` is redacted.
pub(crate) struct OauthSource {
    shared: Weak<Shared>,
    store: OauthStore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    bearer: Option<HeaderValue>,
    /// When it expires, in milliseconds since 1970.
    expires_at: i64,
    /// When the file was last looked at.
    looked: Option<Instant>,
    /// The API did not accept this token.
    rejected: Option<HeaderValue>,
}

impl fmt::Debug for OauthSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OauthSource(redacted)")
    }
}

impl OauthSource {
    pub(super) fn new(shared: Weak<Shared>, store: OauthStore) -> Self {
        Self { shared, store, known: Mutex::default() }
    }

    /// Value of the header `authorization`, valid for some minutes.
    ///
    /// # Errors
    /// There are no credentials, or they cannot be renewed.
    pub(super) async fn bearer(self: &Arc<Self>) -> Result<HeaderValue, Refusal> {
        if let Some(bearer) = self.fresh() {
            return Ok(bearer);
        }
        let mut credentials = self.read().await?;
        for _ in 0..MAX_STEPS {
            if let Some(bearer) = self.learn(&credentials) {
                return Ok(bearer);
            }
            match self.renew(&credentials).await {
                Ok(renewed) => credentials = renewed,
                // Nearly expired is not expired.
                Err(refusal) => return self.last_resort(&credentials).ok_or(refusal),
            }
        }
        Err(Refusal::not_renewed())
    }

    /// The API does not accept the token: it is renewed before the next request.
    pub(super) fn rejected(&self, token: HeaderValue) {
        let mut known = self.known.lock_unpoisoned();
        known.looked = None;
        known.rejected = Some(token);
    }

    /// The token in memory, if it is valid and the file was looked at lately.
    fn fresh(&self) -> Option<HeaderValue> {
        let known = self.known.lock_unpoisoned();
        let is_recent = known.looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL);
        let is_valid = known.expires_at > now() + millis(MARGIN);
        known.bearer.clone().filter(|_| is_recent && is_valid)
    }

    async fn read(&self) -> Result<OauthCredentials, Refusal> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.read());
        read.await.ok().flatten().ok_or_else(|| Refusal::no_credentials(MISSING))
    }

    /// The token of these credentials, if it needs no renewal. Kept in memory.
    fn learn(&self, credentials: &OauthCredentials) -> Option<HeaderValue> {
        let bearer = header(credentials)?;
        let mut known = self.known.lock_unpoisoned();
        let is_rejected = known.rejected.as_ref() == Some(&bearer);
        if is_rejected || credentials.expires_at <= now() + millis(MARGIN) {
            return None;
        }
        known.bearer = Some(bearer.clone());
        known.expires_at = credentials.expires_at;
        known.looked = Some(Instant::now());
        Some(bearer)
    }

    /// The token, if it was not rejected and has not expired yet.
    fn last_resort(&self, credentials: &OauthCredentials) -> Option<HeaderValue> {
        let bearer = header(credentials).filter(|_| credentials.expires_at > now())?;
        (self.known.lock_unpoisoned().rejected.as_ref() != Some(&bearer)).then_some(bearer)
    }

    /// New credentials: of another session that has renewed the same, or from the provider. Goes on if the child gives up:
    /// the provider may have used the old token up.
    async fn renew(self: &Arc<Self>, credentials: &OauthCredentials) -> Result<OauthCredentials, Refusal> {
        let shared = self.shared()?;
        let (source, before) = (self.clone(), credentials.clone());
        let renewing = shared.tasks.spawn(async move { source.renew_once(&before).await });
        renewing.await.unwrap_or_else(|_| Err(Refusal::not_renewed()))
    }

    /// One renewal per token.
    async fn renew_once(&self, credentials: &OauthCredentials) -> Result<OauthCredentials, Refusal> {
        let shared = self.shared()?;
        let renewal = shared.renewals.of(credentials);
        let mut renewal = renewal.lock().await;
        match &*renewal {
            Renewal::Done(renewed, _) if renewed.access_token != credentials.access_token => {
                let renewed = renewed.clone();
                self.store(&renewed).await;
                return Ok(renewed);
            }
            Renewal::Rejected => return Err(Refusal::no_credentials(REJECTED)),
            // Also where the API does not accept what was renewed just now.
            Renewal::Failed(at) | Renewal::Done(_, at) if at.elapsed() < RENEWAL_PAUSE => {
                return Err(Refusal::not_renewed());
            }
            // None begins while the system ends.
            _ if shared.ended.is_cancelled() => return Err(Refusal::not_renewed()),
            Renewal::Open | Renewal::Failed(_) | Renewal::Done(..) => {}
        }
        let (outcome, result) = match request(&shared, credentials).await {
            Ok(renewed) => {
                *renewal = Renewal::Done(renewed.clone(), Instant::now());
                (RefreshOutcome::Renewed, Ok(renewed))
            }
            Err(RefreshOutcome::Rejected) => {
                *renewal = Renewal::Rejected;
                (RefreshOutcome::Rejected, Err(Refusal::no_credentials(REJECTED)))
            }
            Err(outcome) => {
                *renewal = Renewal::Failed(Instant::now());
                (outcome, Err(Refusal::not_renewed()))
            }
        };
        shared.metrics.oauth_refreshes.increment(outcome);
        if let Ok(renewed) = &result {
            self.store(renewed).await;
        }
        result
    }

    async fn store(&self, credentials: &OauthCredentials) {
        let (store, credentials) = (self.store.clone(), credentials.clone());
        let write = move || store.write(&credentials).map(drop);
        let written = tokio::task::spawn_blocking(write).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!(
                "renewed OAuth tokens could not be stored: a restart would need new ones of the client"
            );
        }
    }

    fn shared(&self) -> Result<Arc<Shared>, Refusal> {
        // Sources live with endpoints, and these with the broker.
        self.shared.upgrade().ok_or_else(Refusal::not_renewed)
    }
}

/// Requests new tokens of the provider.
async fn request(shared: &Shared, before: &OauthCredentials) -> Result<OauthCredentials, RefreshOutcome> {
    let address = shared.config.token_url.as_deref().unwrap_or(adapter::TOKEN_URL);
    let json = HeaderValue::from_static("application/json");
    let request = Request::builder()
        .method(Method::POST)
        .uri(address)
        .header(CONTENT_TYPE, &json)
        .header(ACCEPT, &json)
        .body(full(adapter::refresh_request(before)))
        .map_err(|_| RefreshOutcome::Failed)?;
    let exchange = async {
        let response = shared.client.send(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_RESPONSE_BYTES).collect().await;
        Ok::<_, String>((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    let limit = async {
        let until_end = timeout(RENEWAL_TIMEOUT, shared.ended.cancelled()).await;
        if until_end.is_ok() {
            tokio::time::sleep(LAST_RENEWAL).await;
        }
    };
    let answered = tokio::select! {
        answer = exchange => Ok(answer),
        () = limit => Err(()),
    };
    match answered {
        Ok(Ok((StatusCode::OK, body))) => {
            adapter::refreshed(&body, before, now()).ok_or(RefreshOutcome::Failed)
        }
        Ok(Ok((status, _))) => {
            tracing::warn!(status = status.as_u16(), "OAuth tokens of a session could not be renewed");
            let is_final = matches!(status.as_u16(), 400 | 401 | 403);
            Err(if is_final { RefreshOutcome::Rejected } else { RefreshOutcome::Failed })
        }
        Ok(Err(error)) => {
            tracing::warn!(error, "the address that renews OAuth tokens could not be reached");
            Err(RefreshOutcome::Failed)
        }
        Err(()) => {
            tracing::warn!("the address that renews OAuth tokens did not answer in time");
            Err(RefreshOutcome::Failed)
        }
    }
}

fn header(credentials: &OauthCredentials) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", credentials.access_token)).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Milliseconds since 1970.
fn now() -> i64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
