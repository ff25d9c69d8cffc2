//! Webhooks: events that are sent to endpoints of the operator, and to no other address.
//!
//! Each endpoint has a bounded queue and a task of its own (`endpoint`), with bounded attempts (`schedule`) of signed
//! (`sign`) messages (`message`). What does not fit or cannot be delivered is counted and dropped. Queues live in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker;
use crate::config::{Config, ConfigError, WebhookEndpoint, WebhookEvent};
use crate::error::StartError;
use crate::server::serve_error::ServeError;
use crate::support::lock::MutexExt;
use crate::system::Pilotlight;
use crate::telemetry::events::EventKind;
use crate::telemetry::metrics::{HttpMetrics, WebhookDrop};

mod endpoint;
mod message;
mod schedule;
mod sign;

use endpoint::Endpoint;
pub(crate) use message::EndedTurn;
use message::Message;
use schedule::Schedule;
use sign::Secrets;

/// Maximum messages that wait for their first attempt at one endpoint, some 500 bytes each. Further ones are dropped.
const QUEUE: usize = 1000;
/// Maximum time for last attempts when the service stops.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// The endpoints of a server. Without any, nothing is done.
#[derive(Clone)]
pub(crate) struct Webhooks(Arc<Shared>);

struct Shared {
    endpoints: Mutex<Arc<Endpoints>>,
    /// Called after the endpoints were replaced.
    changed: Notify,
    metrics: Arc<HttpMetrics>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// The queues of all endpoints. The task of one that is dropped tries what waits once more, and ends.
pub(crate) type Endpoints = Vec<Arc<Queue>>;

pub(crate) struct Queue {
    name: String,
    configured: WebhookEndpoint,
    attempts: Attempts,
    sender: mpsc::Sender<Queued>,
}

/// How often and how long is tried.
#[derive(Clone, Copy, PartialEq)]
struct Attempts {
    timeout: Duration,
    most: u32,
    backoff: Duration,
}

/// A message of one endpoint, counted until it is delivered or dropped.
struct Queued {
    message: Message,
    metrics: Arc<HttpMetrics>,
}

impl Queued {
    fn new(message: Message, metrics: Arc<HttpMetrics>) -> Self {
        metrics.webhooks_waiting.increment(1.0);
        Self { message, metrics }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.metrics.webhooks_waiting.decrement(1.0);
    }
}

impl Webhooks {
    /// Reads the secrets and starts a task for each endpoint.
    ///
    /// # Errors
    /// A file of secrets is unusable, or one of certificates.
    pub(crate) async fn start(config: &Config, metrics: Arc<HttpMetrics>) -> Result<Self, ServeError> {
        let webhooks = Self::new(metrics, Vec::new());
        let endpoints = webhooks.prepare(config).await?;
        webhooks.put(endpoints);
        Ok(webhooks)
    }

    fn new(metrics: Arc<HttpMetrics>, endpoints: Endpoints) -> Self {
        Self(Arc::new(Shared {
            endpoints: Mutex::new(Arc::new(endpoints)),
            changed: Notify::new(),
            metrics,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// The endpoints of a configuration: those that are as before stay, with what waits for them; others get a new task.
    ///
    /// # Errors
    /// As [`Webhooks::start`].
    pub(crate) async fn prepare(&self, config: &Config) -> Result<Endpoints, ServeError> {
        let webhooks = &config.webhooks;
        let attempts =
            Attempts { timeout: webhooks.timeout, most: webhooks.attempts, backoff: webhooks.backoff };
        let former = self.endpoints();
        let kept = |(name, configured): (&String, &WebhookEndpoint)| {
            let same =
                |it: &&Arc<Queue>| (&it.name, &it.configured, it.attempts) == (name, configured, attempts);
            former.iter().find(same).cloned()
        };
        let mut endpoints: Endpoints = webhooks.endpoints.iter().filter_map(kept).collect();
        let mut new = webhooks.endpoints.clone();
        new.retain(|name, _| endpoints.iter().all(|it| it.name != *name));
        if new.is_empty() {
            return Ok(endpoints);
        }
        let (broker, files) = (config.broker.clone(), new.clone());
        let read = tokio::task::spawn_blocking(move || {
            let client = broker::Client::new(&broker).map_err(StartError::from)?;
            Ok::<_, StartError>((client, secrets_of(&files)?))
        });
        let read = read.await.map_err(|error| StartError::Supervisor {
            message: "reading the secrets of webhooks failed".to_owned(),
            source: Some(error.into()),
        })?;
        let (client, secrets) = read?;
        for ((name, configured), secrets) in new.into_iter().zip(secrets) {
            let url = configured.url.parse().map_err(|_| unusable(&name))?;
            let (sender, queue) = mpsc::channel(QUEUE);
            let endpoint = Endpoint {
                name: name.clone(),
                url,
                secret_file: configured.secret_file.clone(),
                secrets,
                timeout: attempts.timeout,
                client: client.clone(),
                metrics: self.0.metrics.clone(),
            };
            let schedule = Schedule::new(attempts.backoff, attempts.most);
            self.0.tasks.spawn(endpoint.run(queue, schedule, self.0.stopping.clone()));
            endpoints.push(Arc::new(Queue { name, configured, attempts, sender }));
        }
        Ok(endpoints)
    }

    /// Replaces the endpoints by those that [`Webhooks::prepare`] has returned.
    pub(crate) fn put(&self, endpoints: Endpoints) {
        *self.0.endpoints.lock_unpoisoned() = Arc::new(endpoints);
        self.0.changed.notify_one();
    }

    /// Without endpoints, for tests of others.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::new(Arc::new(HttpMetrics::register(&::metrics::NoopRecorder, "p_")), Vec::new())
    }

    fn endpoints(&self) -> Arc<Endpoints> {
        self.0.endpoints.lock_unpoisoned().clone()
    }

    /// Whether an endpoint wants such events.
    pub(crate) fn want(&self, event: WebhookEvent) -> bool {
        self.endpoints().iter().any(|it| it.configured.events.contains(&event))
    }

    /// Reports the end of a turn. Never waits.
    pub(crate) fn turn_ended(&self, turn: &EndedTurn<'_>) {
        if self.want(WebhookEvent::TurnEnded) {
            self.send(&Message::of_turn(turn, SystemTime::now()));
        }
    }

    fn send(&self, message: &Message) {
        for endpoint in self.endpoints().iter().filter(|it| it.configured.events.contains(&message.event)) {
            let queued = Queued::new(message.clone(), self.0.metrics.clone());
            if endpoint.sender.try_send(queued).is_err() {
                self.0.metrics.webhook_drops.increment(WebhookDrop::QueueFull);
            }
        }
    }

    /// Reports permissions that tools wait for, of all sessions, while an endpoint wants them.
    pub(crate) async fn follow(self, pilot: Pilotlight) {
        let mut since = SystemTime::UNIX_EPOCH;
        loop {
            if self.want(WebhookEvent::PermissionNeeded) {
                self.report_permissions(&pilot, since).await;
            } else {
                self.0.changed.notified().await;
                since = SystemTime::now();
            }
        }
    }

    /// Until no endpoint wants them any more. The log goes back further than `since`.
    async fn report_permissions(&self, pilot: &Pilotlight, since: SystemTime) {
        let (mut events, mut last) = (pilot.events(), None);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = self.0.changed.notified() => {
                    if self.want(WebhookEvent::PermissionNeeded) {
                        continue;
                    }
                    return;
                }
            };
            // Events that were dropped before they were read: any of them may have been one of these.
            let missed = last.map_or(0, |last| event.number.saturating_sub(last + 1));
            if missed > 0 {
                self.0.metrics.webhook_drops.increment(WebhookDrop::Missed);
            }
            last = Some(event.number);
            if let EventKind::PermissionNeeded { request_id, tool_name } = &event.kind
                && event.at >= since
            {
                let session = (event.session.user(), event.session.conversation());
                self.send(&Message::of_permission(session, (request_id, tool_name), event.at));
            }
        }
    }

    /// Tries once more what has not been delivered, within a time, and ends.
    pub(crate) async fn finish(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        // The tasks have the same limit; this one is for those that hang.
        timeout(FINISH_TIMEOUT * 2, self.0.tasks.wait()).await.ok();
    }
}

/// Reads the secrets of all endpoints, as a start of the server does, and returns the number of endpoints. Blocking.
///
/// # Errors
/// [`ConfigError`] that names the first endpoint whose file of secrets cannot be used.
pub fn check(config: &Config) -> Result<usize, ConfigError> {
    secrets_of(&config.webhooks.endpoints).map(|secrets| secrets.len())
}

fn secrets_of(endpoints: &BTreeMap<String, WebhookEndpoint>) -> Result<Vec<Secrets>, ConfigError> {
    let secrets = endpoints.iter().map(|(name, endpoint)| {
        Secrets::read(&endpoint.secret_file).map_err(|problem| {
            let key = format!("webhooks.endpoints.{name}.secret_file");
            ConfigError::Key { key, problem }
        })
    });
    secrets.collect()
}

/// The address is one for this configuration's parser, and none for that of the client.
fn unusable(name: &str) -> StartError {
    let problem = "this address cannot be used".to_owned();
    StartError::Config(ConfigError::Key { key: format!("webhooks.endpoints.{name}.url"), problem })
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::UserId;

    #[tokio::test]
    async fn full_queue_drops_and_delays_nobody() {
        let recorder = metrics_util::debugging::DebuggingRecorder::new();
        let metrics = Arc::new(HttpMetrics::register(&recorder, "p_"));
        let (full, mut unread) = mpsc::channel(1);
        let (other, mut read) = mpsc::channel(QUEUE);
        let queue = |sender| {
            let configured = WebhookEndpoint {
                url: "http://127.0.0.1/".to_owned(),
                secret_file: "secret".into(),
                events: vec![WebhookEvent::TurnEnded],
            };
            let attempts = Attempts { timeout: FINISH_TIMEOUT, most: 1, backoff: FINISH_TIMEOUT };
            Arc::new(Queue { name: "ops".to_owned(), configured, attempts, sender })
        };
        let webhooks = Webhooks::new(metrics, vec![queue(full), queue(other)]);
        assert!(webhooks.want(WebhookEvent::TurnEnded) && !webhooks.want(WebhookEvent::PermissionNeeded));
        let user = UserId::new("alice").unwrap();
        for _ in 0..3 {
            webhooks.turn_ended(&EndedTurn { id: None, user: &user, session: "s", error: None, spent: None });
        }
        assert!(unread.try_recv().is_ok() && unread.try_recv().is_err());
        assert_eq!(std::iter::from_fn(|| read.try_recv().ok()).count(), 3);
        let dropped =
            recorder.snapshotter().snapshot().into_vec().into_iter().find_map(|(key, _, _, value)| {
                let is_meant = key.key().labels().any(|label| label.value() == "queue_full");
                is_meant.then_some(value)
            });
        assert_eq!(dropped, Some(metrics_util::debugging::DebugValue::Counter(2)));
    }
}
