//! A broker with one endpoint, and clients of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapter::broker::{CredentialPlan, UpstreamPlan};
use crate::broker::{Broker, BrokerError, BrokerParts, EndpointGuard, EndpointPlan, Policy, Upstream};
use crate::config;
use crate::config::Egress;
use crate::model::ids::{SessionHash, UserId};
use crate::spend::Spend;
use crate::telemetry::metrics::Metrics;

/// A deadline that fails a test.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// What a test may choose.
pub(super) struct Setup {
    pub(super) config: config::Broker,
    pub(super) egress: Egress,
    pub(super) usd_per_user_day: Option<f64>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { config: config::Broker::default(), egress: Egress::Api, usd_per_user_day: None }
    }
}

pub(super) struct Site {
    pub(super) broker: Broker,
    pub(super) spend: Arc<Spend>,
    pub(super) data: tempfile::TempDir,
    pub(super) tasks: TaskTracker,
    pub(super) ended: CancellationToken,
    snapshotter: Snapshotter,
    series: Mutex<BTreeMap<(String, String), f64>>,
    egress: Egress,
}

/// One endpoint.
pub(super) struct Child {
    pub(super) address: SocketAddr,
    pub(super) token: String,
    pub(super) guard: EndpointGuard,
}

pub(super) fn user() -> UserId {
    UserId::new("alice").unwrap()
}

pub(super) fn session(digit: char) -> SessionHash {
    SessionHash::parse(&digit.to_string().repeat(32)).unwrap()
}

pub(super) fn upstream(base: &str) -> Upstream {
    let credential = CredentialPlan::ApiKey("real-key".into());
    let plan = UpstreamPlan { base_url: base.parse().unwrap(), credential, headers: Vec::new() };
    Upstream::new(plan, None).unwrap()
}

impl Site {
    pub(super) fn new(setup: Setup) -> Self {
        Self::try_new(setup).unwrap()
    }

    pub(super) fn try_new(setup: Setup) -> Result<Self, BrokerError> {
        let data = tempfile::tempdir().unwrap();
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let metrics = Arc::new(Metrics::register(&recorder, ""));
        let tasks = TaskTracker::new();
        let ended = CancellationToken::new();
        let spend = Arc::new(Spend::new(data.path(), setup.usd_per_user_day, tasks.clone(), ended.clone()));
        let parts = BrokerParts {
            config: setup.config,
            spend: spend.clone(),
            metrics,
            tasks: tasks.clone(),
            ended: ended.clone(),
        };
        let broker = Broker::new(parts)?;
        Ok(Self {
            broker,
            spend,
            data,
            tasks,
            ended,
            snapshotter,
            series: Mutex::default(),
            egress: setup.egress,
        })
    }

    /// A child of the user whose requests go to this address.
    pub(super) fn child(&self, base: &str) -> Child {
        self.child_of(Some(upstream(base)), session('a'))
    }

    pub(super) fn child_of(&self, upstream: Option<Upstream>, session: SessionHash) -> Child {
        self.child_with(upstream, session, user(), Policy::default())
    }

    pub(super) fn child_with(
        &self,
        upstream: Option<Upstream>,
        session: SessionHash,
        user: UserId,
        policy: Policy,
    ) -> Child {
        let plan = EndpointPlan { upstream, egress: self.egress.clone(), user, session, policy };
        let endpoint = self.broker.endpoint(plan, None).unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let token = endpoint.token().to_owned();
        Child { address, token, guard: endpoint.serve(listener).unwrap() }
    }

    /// Sum of a metric's series with this text among their labels.
    pub(super) fn metric(&self, name: &str, label: &str) -> f64 {
        let mut series = self.series.lock().unwrap();
        // A snapshot has the changes since the last one, also of gauges.
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            let key = key.key();
            let labels = key.labels().map(|label| format!("{}={}", label.key(), label.value()));
            let labels = labels.collect::<Vec<_>>().join(",");
            let sum = series.entry((key.name().to_owned(), labels)).or_default();
            match value {
                DebugValue::Counter(count) => *sum += count as f64,
                DebugValue::Gauge(change) => *sum += change.into_inner(),
                DebugValue::Histogram(samples) => *sum += samples.len() as f64,
            }
        }
        let wanted = series.iter().filter(|((own, labels), _)| own == name && labels.contains(label));
        wanted.map(|(_, value)| value).sum()
    }

    /// Waits until a metric has a value.
    pub(super) async fn until(&self, name: &str, label: &str, expected: f64) {
        let begun = Instant::now();
        loop {
            let found = self.metric(name, label);
            if found == expected {
                return;
            }
            assert!(begun.elapsed() < SOON, "{name} {label} is {found}, not {expected}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Child {
    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request for a message, with the token.
    pub(super) fn message(&self) -> reqwest::RequestBuilder {
        client().post(self.url("/v1/messages")).header("x-api-key", &self.token).body("{}")
    }

    /// The same with this body.
    pub(super) fn asking(&self, body: &str) -> reqwest::RequestBuilder {
        self.message().body(body.to_owned())
    }

    /// Sends bytes and reads the answer until the connection ends.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The broker may close before it has read all.
        stream.write_all(bytes).await.ok();
        read_to_end(&mut stream).await
    }
}

pub(super) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection ends").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A client without a proxy and without following redirections.
pub(super) fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    client.build().unwrap()
}
