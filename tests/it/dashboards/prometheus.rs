//! A Prometheus of our own: found, started on a free port, asked, ended.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::Value;

use super::questions::directory;
use crate::common::installed::left_out;
use crate::common::place::{MARK, Place};
use crate::common::ports::kept_port;
use crate::common::{SOON, eventually_some};

/// The program of this name: where `tests/run` puts it, or in PATH. Without it the test says that it is left out.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus/usr/bin");
    let own = std::env::var_os("PILOTLIGHT_PROMETHEUS").map_or(own, PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(own).chain(std::env::split_paths(&path)).map(|dir| dir.join(name));
    let found = found.into_iter().find(|program| program.is_file());
    if found.is_none() {
        left_out(&format!("{name} is not installed (tests/run installs it where there is apt)"));
    }
    found
}

/// One sample of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) labels: serde_json::Map<String, Value>,
    pub(crate) value: f64,
}

/// A running Prometheus; dropped, it is killed.
pub(crate) struct Prometheus {
    child: Child,
    url: String,
    web: reqwest::Client,
    _place: Arc<Place>,
}

impl Prometheus {
    /// Fetches the metrics of `admin` every second, with our rules.
    pub(crate) async fn start(program: &Path, place: &Arc<Place>, admin: &str) -> Self {
        let target = admin.trim_start_matches("http://");
        let rules = directory();
        let config = format!(
            "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n  - {0}/rules.yml\n  - {0}/alerts.yml\n\
             scrape_configs:\n  - job_name: pilotlight\n    static_configs:\n      - targets: ['{target}']\n",
            rules.display()
        );
        let file = place.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("the configuration is written");
        // It cannot be asked for any free port.
        let listen = format!("127.0.0.1:{}", kept_port());
        let log = std::fs::File::create(place.path().join("prometheus.log")).expect("a log");
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", place.path().join("prometheus").display()))
            .arg(format!("--web.listen-address={listen}"))
            .env(MARK, place.id())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Prometheus starts");
        let web = reqwest::Client::builder().no_proxy().build().expect("a client");
        let prometheus = Self { child, url: format!("http://{listen}"), web, _place: Arc::clone(place) };
        let is_ready = async || {
            let asked = prometheus.web.get(format!("{}/-/ready", prometheus.url)).send().await;
            asked.is_ok_and(|answer| answer.status().is_success()).then_some(())
        };
        eventually_some("Prometheus is ready", SOON, is_ready).await;
        prometheus
    }

    /// What an expression says now; what is wrong with it in Prometheus' own words.
    pub(crate) async fn ask(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression))).await;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let number = |value: &Value| value[1].as_str().and_then(|text| text.parse().ok()).expect("a number");
        let result = &answer["data"]["result"];
        if answer["data"]["resultType"] == "scalar" {
            return Ok(vec![Sample { labels: serde_json::Map::new(), value: number(result) }]);
        }
        let samples = result.as_array().expect("a vector").iter().map(|sample| Sample {
            labels: sample["metric"].as_object().expect("labels").clone(),
            value: number(&sample["value"]),
        });
        Ok(samples.collect())
    }

    /// The one number that an expression comes to.
    pub(crate) async fn number(&self, expression: &str) -> f64 {
        match self.ask(expression).await.expect(expression).as_slice() {
            [sample] => sample.value,
            other => panic!("{expression}: {other:?}"),
        }
    }

    /// All rules: name, expression, health, what is wrong, and what is said of it.
    pub(crate) async fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules").await;
        let groups = answer["data"]["groups"].as_array().expect("groups").clone();
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.web.get(format!("{}{path}", self.url)).send().await.expect("Prometheus answers");
        answer.json().await.expect("JSON")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
