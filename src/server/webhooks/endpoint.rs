//! One endpoint: its queue, its attempts, its end. A slow or dead one has a task of its own and delays nobody else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::{Request, StatusCode, Uri, header};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::message::Message;
use super::schedule::{Schedule, Waiting};
use super::sign::Secrets;
use super::{FINISH_TIMEOUT, Queued};
use crate::broker;
use crate::support::blocking::blocking;
use crate::telemetry::metrics::{HttpMetrics, WebhookAttempt, WebhookDrop};

/// Maximum messages that wait for another attempt: some 500 bytes each. New ones wait in the queue meanwhile.
const MAX_WAITING: usize = 1000;

pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) url: Uri,
    pub(super) secret_file: PathBuf,
    /// As read last.
    pub(super) secrets: Secrets,
    pub(super) timeout: Duration,
    pub(super) client: broker::Client,
    pub(super) metrics: Arc<HttpMetrics>,
}

impl Endpoint {
    /// Delivers messages until `stopping`, then tries each of the rest once, within a time.
    pub(super) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Queued>,
        mut schedule: Schedule<Queued>,
        stopping: CancellationToken,
    ) {
        let mut until = None;
        loop {
            let due = schedule.due();
            let next = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                message = queue.recv(), if schedule.len() < MAX_WAITING => match message {
                    Some(message) => schedule.add(message, Instant::now()),
                    None => break,
                },
                () = next => {
                    let Some(waiting) = schedule.take() else { continue };
                    let attempt = {
                        let mut attempt = std::pin::pin!(self.attempt(&waiting.message.message));
                        tokio::select! {
                            attempt = &mut attempt => attempt,
                            // One that has begun may end: aborted, it would come twice.
                            () = stopping.cancelled() => {
                                let end = *until.get_or_insert_with(|| Instant::now() + FINISH_TIMEOUT);
                                timeout_at(end, attempt).await.unwrap_or(Attempt::TimedOut)
                            }
                        }
                    };
                    self.attempted(waiting, attempt, &mut schedule);
                }
            }
        }
        while let Ok(message) = queue.try_recv() {
            schedule.add(message, Instant::now());
        }
        let until = until.unwrap_or_else(|| Instant::now() + FINISH_TIMEOUT);
        self.finish(schedule, until).await;
    }

    /// A last attempt for each message, in order, within a time.
    async fn finish(mut self, mut schedule: Schedule<Queued>, until: Instant) {
        let mut dropped = 0_u64;
        while let Some(waiting) = schedule.take() {
            let attempt = timeout_at(until, self.attempt(&waiting.message.message)).await;
            match attempt {
                Ok(Attempt::Delivered) => self.metrics.webhook_attempts.increment(WebhookAttempt::Delivered),
                Ok(_) | Err(_) => dropped += 1,
            }
        }
        if dropped > 0 {
            self.metrics.webhook_drops.add(WebhookDrop::Shutdown, dropped);
            tracing::warn!(endpoint = self.name, dropped, "webhooks were not delivered before the end");
        }
    }

    fn attempted(&self, waiting: Waiting<Queued>, attempt: Attempt, schedule: &mut Schedule<Queued>) {
        let counted = match &attempt {
            Attempt::Delivered => WebhookAttempt::Delivered,
            Attempt::Gone | Attempt::Refused(_) => WebhookAttempt::Refused,
            Attempt::Unreachable => WebhookAttempt::Unreachable,
            Attempt::TimedOut => WebhookAttempt::Timeout,
        };
        self.metrics.webhook_attempts.increment(counted);
        let number = waiting.failed + 1;
        let id = waiting.message.message.id.clone();
        let dropped = match attempt {
            Attempt::Delivered => return,
            Attempt::Gone => Some(WebhookDrop::Gone),
            Attempt::Refused(status) => {
                tracing::debug!(
                    endpoint = self.name,
                    id,
                    number,
                    status = status.as_u16(),
                    "a webhook was refused"
                );
                let last = schedule.retry(waiting, fastrand::f64(), Instant::now());
                last.map(|_| WebhookDrop::Attempts)
            }
            Attempt::Unreachable | Attempt::TimedOut => {
                tracing::debug!(endpoint = self.name, id, number, "a webhook was not received");
                let last = schedule.retry(waiting, fastrand::f64(), Instant::now());
                last.map(|_| WebhookDrop::Attempts)
            }
        };
        if let Some(reason) = dropped {
            self.metrics.webhook_drops.increment(reason);
            tracing::warn!(
                endpoint = self.name,
                id,
                attempts = number,
                reason = reason.as_str(),
                "a webhook was dropped"
            );
        }
    }

    /// Sends a message once. The body of the response is not read, and a redirect is not followed.
    async fn attempt(&mut self, message: &Message) -> Attempt {
        self.read_secrets().await;
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let signature = self.secrets.sign(&message.id, timestamp, &message.body);
        let request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(message.body.clone());
        // Checked with the configuration.
        let Ok(request): Result<Request<Bytes>, _> = request else { return Attempt::Unreachable };
        match timeout(self.timeout, self.client.status(request)).await {
            Err(_) => Attempt::TimedOut,
            Ok(Err(error)) => {
                tracing::debug!(endpoint = self.name, %error, "an endpoint of webhooks is not reachable");
                Attempt::Unreachable
            }
            Ok(Ok(status)) if status.is_success() => Attempt::Delivered,
            Ok(Ok(StatusCode::GONE)) => Attempt::Gone,
            Ok(Ok(status)) => Attempt::Refused(status),
        }
    }

    /// Follows a changed file, so that a secret is replaced without a restart.
    async fn read_secrets(&mut self) {
        let path: PathBuf = Path::to_owned(&self.secret_file);
        let read = blocking(move || Ok(Secrets::read(&path))).await;
        match read {
            Ok(Ok(secrets)) => self.secrets = secrets,
            Ok(Err(problem)) => {
                tracing::warn!(
                    endpoint = self.name,
                    problem,
                    "the file of secrets is unusable: the former ones stay"
                );
            }
            Err(error) => tracing::warn!(endpoint = self.name, %error, "the file of secrets cannot be read"),
        }
    }
}

enum Attempt {
    Delivered,
    /// The receiver wants no more of it.
    Gone,
    Refused(StatusCode),
    Unreachable,
    TimedOut,
}
