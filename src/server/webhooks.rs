//! Webhooks: events that are sent to endpoints of the operator, and to no other address.
//!
//! Each endpoint has a bounded queue and a task of its own (`endpoint`), with bounded attempts (`schedule`) of signed
//! (`sign`) messages (`message`). What does not fit or cannot be delivered is counted and dropped. Queues live in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker;
use crate::config::{Config, ConfigError, WebhookEndpoint, WebhookEvent};
use crate::error::StartError;
use crate::server::serve_error::ServeError;
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
#[derive(Clone, Default)]
pub(crate) struct Webhooks(Option<Arc<Running>>);

struct Running {
    endpoints: Vec<Queue>,
    metrics: Arc<HttpMetrics>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

struct Queue {
    events: Vec<WebhookEvent>,
    sender: mpsc::Sender<Queued>,
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
        let webhooks = &config.webhooks;
        if webhooks.endpoints.is_empty() {
            return Ok(Self::default());
        }
        let (broker, files) = (config.broker.clone(), webhooks.endpoints.clone());
        let read = tokio::task::spawn_blocking(move || {
            let client = broker::Client::new(&broker).map_err(StartError::from)?;
            Ok::<_, StartError>((client, secrets_of(&files)?))
        });
        let read = read.await.map_err(|error| StartError::Supervisor {
            message: "reading the secrets of webhooks failed".to_owned(),
            source: Some(error.into()),
        })?;
        let (client, secrets) = read?;
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let endpoints = webhooks.endpoints.iter().zip(secrets).map(|((name, configured), secrets)| {
            let url = configured.url.parse().map_err(|_| unusable(name))?;
            let (sender, queue) = mpsc::channel(QUEUE);
            let endpoint = Endpoint {
                name: name.clone(),
                url,
                secret_file: configured.secret_file.clone(),
                secrets,
                timeout: webhooks.timeout,
                client: client.clone(),
                metrics: metrics.clone(),
            };
            let schedule = Schedule::new(webhooks.backoff, webhooks.attempts);
            tasks.spawn(endpoint.run(queue, schedule, stopping.clone()));
            Ok(Queue { events: configured.events.clone(), sender })
        });
        let endpoints = endpoints.collect::<Result<_, StartError>>()?;
        Ok(Self(Some(Arc::new(Running { endpoints, metrics, stopping, tasks }))))
    }

    /// Whether an endpoint wants such events.
    pub(crate) fn want(&self, event: WebhookEvent) -> bool {
        self.0.as_ref().is_some_and(|running| running.endpoints.iter().any(|it| it.events.contains(&event)))
    }

    /// Reports the end of a turn. Never waits.
    pub(crate) fn turn_ended(&self, turn: &EndedTurn<'_>) {
        if self.want(WebhookEvent::TurnEnded) {
            self.send(&Message::of_turn(turn, SystemTime::now()));
        }
    }

    fn send(&self, message: &Message) {
        let Some(running) = &self.0 else { return };
        for endpoint in running.endpoints.iter().filter(|it| it.events.contains(&message.event)) {
            let queued = Queued::new(message.clone(), running.metrics.clone());
            if endpoint.sender.try_send(queued).is_err() {
                running.metrics.webhook_drops.increment(WebhookDrop::QueueFull);
            }
        }
    }

    /// Reports permissions that tools wait for, of all sessions.
    pub(crate) async fn follow(self, pilot: Pilotlight) {
        if !self.want(WebhookEvent::PermissionNeeded) {
            return;
        }
        let (mut events, mut last) = (pilot.events(), None);
        loop {
            let event = events.next().await;
            // Events that were dropped before they were read: any of them may have been one of these.
            let missed = last.map_or(0, |last| event.number.saturating_sub(last + 1));
            if let Some(running) = self.0.as_ref().filter(|_| missed > 0) {
                running.metrics.webhook_drops.increment(WebhookDrop::Missed);
            }
            last = Some(event.number);
            if let EventKind::PermissionNeeded { request_id, tool_name } = &event.kind {
                let session = (event.session.user(), event.session.conversation());
                self.send(&Message::of_permission(session, (request_id, tool_name), event.at));
            }
        }
    }

    /// Tries once more what has not been delivered, within a time, and ends.
    pub(crate) async fn finish(&self) {
        let Some(running) = &self.0 else { return };
        running.stopping.cancel();
        running.tasks.close();
        // The tasks have the same limit; this one is for those that hang.
        timeout(FINISH_TIMEOUT * 2, running.tasks.wait()).await.ok();
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

impl Drop for Running {
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
        let queue = |sender| Queue { events: vec![WebhookEvent::TurnEnded], sender };
        let endpoints = vec![queue(full), queue(other)];
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let webhooks = Webhooks(Some(Arc::new(Running { endpoints, metrics, stopping, tasks })));
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
