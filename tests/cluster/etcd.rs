//! etcd on loopback, as processes of the test.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::guard::Guard;
use crate::common::ports::kept_port;
use crate::common::process::Process;
use crate::common::{SOON, eventually_some, installed};
use crate::network::Network;

/// A cluster of etcd with one or more members.
pub struct Etcd {
    members: Vec<Member>,
    _directory: TempDir,
}

struct Member {
    _guard: Guard,
    child: Child,
    process: Process,
    url: String,
    web: reqwest::Client,
}

impl Etcd {
    /// Starts a cluster of `count` members with the election times that the documentation gives.
    pub async fn start(count: usize) -> Option<Self> {
        Self::on(count, None).await
    }

    /// The same, each member on a machine of its own.
    pub async fn on(count: usize, network: Option<&Network>) -> Option<Self> {
        let program = installed::etcd()?;
        let directory = TempDir::with_prefix("pilotlight-test-").expect("a directory");
        let urls: Vec<[String; 2]> = (0..count)
            .map(|id| match network {
                Some(network) => [2379, 2380].map(|port| format!("http://{}:{port}", network.address(id))),
                None => [(); 2].map(|()| format!("http://127.0.0.1:{}", kept_port())),
            })
            .collect();
        let peers: Vec<_> = urls.iter().enumerate().map(|(id, [_, peer])| format!("m{id}={peer}")).collect();
        let member = |(id, urls): (usize, &[String; 2])| {
            let command = match network {
                Some(network) => network.command(id, &program),
                None => Command::new(&program),
            };
            Member::start(command, directory.path(), id, urls, &peers.join(","))
        };
        let members = urls.iter().enumerate().map(member).collect();
        let etcd = Self { members, _directory: directory };
        etcd.ready().await;
        Some(etcd)
    }

    /// The addresses, as a list in TOML.
    pub fn endpoints(&self) -> String {
        format!("{:?}", self.urls().collect::<Vec<_>>())
    }

    /// The addresses of the members.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.url.as_str())
    }

    /// Stops all members, without ending them.
    pub fn freeze(&self) {
        self.members.iter().for_each(|member| member.process.signal(Signal::STOP));
    }

    /// Stops one member, without ending it.
    pub fn freeze_member(&self, member: usize) {
        self.members[member].process.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.members.iter().for_each(|member| member.process.signal(Signal::CONT));
    }

    /// Kills a member for good.
    pub fn kill(&self, member: usize) {
        self.members[member].process.kill();
    }

    /// The answer of the first member that gives one.
    pub async fn ask(&self, what: &str, body: &Value) -> Value {
        eventually_some("etcd answers", SOON, async || {
            for member in &self.members {
                // A member without a leader answers with an error.
                if let Some(answer) =
                    member.ask(what, body).await.filter(|answer| answer["header"].is_object())
                {
                    return Some(answer);
                }
            }
            None
        })
        .await
    }

    /// An answer of many lines of JSON.
    pub async fn stream(&self, what: &str, body: &Value) -> reqwest::Response {
        for member in self.members.iter().filter(|member| member.process.is_alive()) {
            let request = member.web.post(format!("{}/v3/{what}", member.url)).json(body);
            if let Ok(answer) = request.send().await {
                return answer;
            }
        }
        panic!("no member of etcd answers");
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        eventually_some("etcd has a leader", SOON, async || {
            for (number, member) in self.members.iter().enumerate() {
                let Some(status) = member.ask("maintenance/status", &json!({})).await else { continue };
                let is_leader =
                    status["leader"] == status["header"]["member_id"] && status["leader"].is_string();
                if is_leader {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    async fn ready(&self) {
        for member in &self.members {
            eventually_some("etcd answers", SOON, async || {
                assert!(member.process.is_alive(), "etcd has ended at its start");
                let answer = member.ask("kv/range", &json!({ "key": "AA==" })).await?;
                answer.get("header").map(drop)
            })
            .await;
        }
    }
}

impl Member {
    fn start(mut command: Command, place: &Path, id: usize, [url, peer]: &[String; 2], peers: &str) -> Self {
        command.arg("--name").arg(format!("m{id}")).arg("--data-dir").arg(place.join(format!("m{id}")));
        command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
        command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        command.args(["--initial-cluster", peers, "--heartbeat-interval", "50", "--election-timeout", "500"]);
        // What a killed process has written is there all the same; only a machine that fails would need the disk.
        command.args(["--log-level", "error", "--unsafe-no-fsync"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("etcd starts");
        let process = Process::unreaped(&child);
        Self {
            _guard: Guard::of(child.id()),
            child,
            process,
            url: url.clone(),
            web: reqwest::Client::builder().no_proxy().build().expect("a client"),
        }
    }

    async fn ask(&self, what: &str, body: &Value) -> Option<Value> {
        let request = self.web.post(format!("{}/v3/{what}", self.url)).timeout(SOON);
        request.json(body).send().await.ok()?.json().await.ok()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.process.kill();
        self.child.wait().ok();
    }
}
