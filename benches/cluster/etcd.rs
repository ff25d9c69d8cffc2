//! etcd with one member, as a process of the bench.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilotlight_test_support::guard::Guard;
use pilotlight_test_support::ports::kept_port;
use pilotlight_test_support::{eventually_some, installed};
use serde_json::{Value, json};

/// Longest time that etcd takes to start on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

pub(crate) struct Etcd {
    _guard: Guard,
    child: Child,
    pub(crate) url: String,
    web: reqwest::Client,
    _data: tempfile::TempDir,
}

impl Etcd {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let [url, peer] = [(); 2].map(|()| format!("http://127.0.0.1:{}", kept_port()));
        let mut command = Command::new(installed::etcd().expect("etcd is installed"));
        command.arg("--data-dir").arg(data.path().join("data"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"]);
        // As the documentation has them.
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("etcd starts");
        let web = reqwest::Client::builder().no_proxy().build().unwrap();
        let etcd = Self { _guard: Guard::of(child.id()), child, url, web, _data: data };
        let request = json!({ "key": "AA==" });
        eventually_some("etcd answers", STARTS_WITHIN, async || {
            let sent = etcd.web.post(format!("{}/v3/kv/range", etcd.url)).json(&request).send().await;
            sent.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        etcd
    }

    /// Asks its gateway.
    pub(crate) async fn ask(&self, what: &str, body: &Value) -> Value {
        let sent = self.web.post(format!("{}/v3/{what}", self.url)).json(body).send().await;
        sent.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    /// Requests that it has answered, by kind. Those of watches are streams, which are not counted before their end.
    pub(crate) async fn answered(&self) -> BTreeMap<String, f64> {
        let text = self.web.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("grpc_server_handled_total{")) {
            let kind = line.split_once("grpc_method=\"").unwrap().1.split('"').next().unwrap();
            *all.entry(kind.to_owned()).or_default() +=
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
        all
    }

    /// Memory of the process, in MiB.
    pub(crate) fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    /// Size of the database, and what of it is in use, in MiB.
    pub(crate) async fn database(&self) -> [f64; 2] {
        let status = self.ask("maintenance/status", &json!({})).await;
        ["dbSize", "dbSizeInUse"]
            .map(|key| status[key].as_str().unwrap().parse::<f64>().unwrap() / 1_048_576.0)
    }

    /// Number of keys below a prefix.
    pub(crate) async fn keys(&self, prefix: &str) -> f64 {
        let end = {
            let mut end = prefix.as_bytes().to_vec();
            *end.last_mut().unwrap() += 1;
            end
        };
        let request =
            json!({ "key": encoded(prefix.as_bytes()), "range_end": encoded(&end), "count_only": true });
        let answer = self.ask("kv/range", &request).await;
        answer["count"].as_str().map_or(0.0, |count| count.parse().unwrap())
    }
}

/// As the gateway has bytes.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
