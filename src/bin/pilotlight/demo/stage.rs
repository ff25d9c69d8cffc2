//! Environment of the demo: temporary directory, configuration, server and client.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilotlight::Config;
use pilotlight::config::PermissionPolicy;
use pilotlight::probe::{ProbeError, Probed, probe, version};
use pilotlight::server::{ServeError, Server};
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::one_shot::OneShotCli;
use super::process::{MARK, Process, started_here};
use super::show::Problem;
use crate::temp_dir::{TempDir, private_directory};

/// Short enough to watch an eviction, longer than any pause that must not cause one, also on a slow machine.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Memory sampling interval: the demo reads fresh metrics at its end.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Startup delay of the simulation; the real CLI needs about as much.
pub(super) const SIMULATED_START: Duration = Duration::from_millis(450);
/// Polling interval for states without a notification.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Maximum time until the server is ready: it starts the CLI once for that.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Grace for running turns at shutdown. None runs then, unless the demo was interrupted.
const DRAIN: Duration = Duration::from_secs(1);
/// Maximum time from the shutdown until no process is left.
const GONE_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(super) enum DemoStartError {
    #[error("cannot make a temporary directory: {0}")]
    Directory(std::io::Error),
    #[error(transparent)]
    Cli(#[from] ProbeError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the server does not become ready: {0}")]
    NotReady(String),
}

/// Everything that exists before the server starts.
pub(super) struct Setup {
    pub(super) directory: TempDir,
    pub(super) config: Config,
    pub(super) program: PathBuf,
    pub(super) version: Option<String>,
    pub(super) probed: Probed,
    mark: String,
}

pub(super) struct Stage {
    pub(super) setup: Setup,
    pub(super) client: Client,
    pub(super) server: Server,
}

/// Processes before and after the shutdown.
pub(super) struct Ended {
    pub(super) before: usize,
    pub(super) left: Vec<Process>,
    pub(super) took: Duration,
}

impl Setup {
    /// Creates the directory and probes the CLI by starting it once.
    pub(super) async fn prepare(config: Config, keep: bool) -> Result<Self, DemoStartError> {
        let directory = TempDir::new("demo", keep).map_err(DemoStartError::Directory)?;
        let mark = uuid::Uuid::new_v4().to_string();
        let config = demo_config(config, directory.path(), &mark);
        let (program, version) = version(&config, directory.path()).await.map_err(ProbeError::from)?;
        let probed = probe(&config, &directory.path().join("trial")).await?;
        Ok(Self { directory, config, program, version, probed, mark })
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.config.cli.program == SIMULATION
    }

    /// The CLI without the server, in its own directories.
    pub(super) fn one_shot(&self) -> std::io::Result<OneShotCli<'_>> {
        let root = self.directory.path().join("one-shot");
        for name in ["work", "home", "tmp"] {
            private_directory(&root.join(name))?;
        }
        let session_id = uuid::Uuid::new_v4().to_string();
        let program = self.program.clone();
        Ok(OneShotCli { config: &self.config, program, root, session_id, mark: &self.mark })
    }
}

impl Stage {
    pub(super) async fn set(setup: Setup) -> Result<Self, DemoStartError> {
        let server = Server::start(setup.config.clone()).await?;
        let client = Client::new(server.http(), server.admin(), &setup.config.metrics.prefix);
        let client = client.map_err(|problem| DemoStartError::NotReady(problem.to_string()))?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match client.not_ready().await {
                Ok(None) => return Ok(Self { setup, client, server }),
                Ok(Some(why)) if Instant::now() >= deadline => return Err(DemoStartError::NotReady(why)),
                Err(problem) => return Err(DemoStartError::NotReady(problem.to_string())),
                Ok(Some(_)) => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Kills the process of a user without warning, as the kernel's OOM killer does.
    pub(super) async fn kill(&self, user: &str) -> Result<i32, Problem> {
        let pid = self.client.pid(user).await?;
        let process = Process::of(pid).ok_or_else(|| Problem::seen(format!("there is no process {pid}")))?;
        let mark = self.setup.mark.clone();
        let killed = tokio::task::spawn_blocking(move || process.kill(&mark)).await;
        killed.map_err(|error| Problem::seen(error.to_string()))?.map_err(Problem::Seen)?;
        Ok(pid)
    }

    /// Shuts the server down and searches for leftover processes.
    pub(super) async fn strike(self) -> (Setup, Ended) {
        let mark = self.setup.mark.clone();
        let before = started_here(&mark);
        let begin = Instant::now();
        self.server.shutdown(DRAIN).await;
        let took = begin.elapsed();
        let deadline = Instant::now() + GONE_WITHIN;
        loop {
            let mut left = started_here(&mark);
            // Includes processes that are no longer descendants and have cleared their environment.
            let hidden = before.iter().filter(|process| process.is_alive() && !left.contains(process));
            left.extend(hidden.copied().collect::<Vec<_>>());
            if left.is_empty() || Instant::now() >= deadline {
                return (self.setup, Ended { before: before.len(), left, took });
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Polls until `look` finds something.
pub(super) async fn until<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Problem>,
) -> Result<T, Problem> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Problem::seen(format!("not within {} s: {what}", within.as_secs())));
        }
        sleep(LOOK_EVERY).await;
    }
}

pub(super) const SIMULATION: &str = "sim";

/// The given configuration with the settings that the demo needs.
fn demo_config(mut config: Config, directory: &Path, mark: &str) -> Config {
    config.data_dir = directory.join("data");
    config.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.admin.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.session.idle_timeout = IDLE_TIMEOUT;
    config.metrics.sample_interval = SAMPLE_INTERVAL;
    // The demo measures the time to the first piece of an answer.
    config.cli.partial_messages = true;
    config.cli.env.insert(MARK.to_owned(), mark.to_owned());
    if config.cli.program == SIMULATION {
        let start = format!("slow-start={}", SIMULATED_START.as_millis());
        config.cli.args.extend(["--fault".to_owned(), start]);
        // The tools of the demo's users are its own; on a host without walls it runs none.
        config.permissions.policy = PermissionPolicy::Allow;
        config.isolation.accept_none = true;
    }
    config
}
