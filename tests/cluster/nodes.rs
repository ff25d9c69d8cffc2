//! Nodes of a cluster, each a server of its own with a data directory of its own.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::common::client::Client;
use crate::common::place::Place;
use crate::common::process::Process;
use crate::common::program::Answer;
use crate::common::server::{Server, program};
use crate::etcd::{Etcd, free_port};
use crate::network::Network;

pub const SIM: &str = "[cli]\nprogram = \"sim\"\n";

/// For tests that are not about leases: on a crowded machine a node may be late for a short one.
pub const LONG_LEASE: &str = "[cluster]lease = \"10s\"\n";

/// The lease of every node, and the time before its end at which children end.
pub const LEASE: Duration = Duration::from_secs(2);

/// Dropped in this order: nodes leave their cluster while there is one.
pub struct Nodes {
    pub nodes: Vec<Node>,
    pub etcd: Etcd,
    directory: TempDir,
    /// If each node has a machine of its own.
    pub network: Option<Network>,
    is_mounted: AtomicBool,
}

fn run(command: &[&str]) {
    let done = Command::new(command[0]).args(&command[1..]).status();
    assert!(done.expect("it runs").success(), "{command:?}");
}

pub struct Node {
    pub name: String,
    /// Where other nodes reach it.
    pub listen: String,
    place: Arc<Place>,
    config: String,
    /// What the program is started by, on a machine of its own.
    by: Option<Vec<OsString>>,
    server: Option<Server>,
}

impl Nodes {
    /// Starts nodes on one etcd. `config`: what all of them have besides.
    pub async fn start(count: usize, config: &str) -> Option<Self> {
        Self::on(Etcd::start(1).await?, count, config).await
    }

    pub async fn on(etcd: Etcd, count: usize, config: &str) -> Option<Self> {
        Self::over(etcd, count, config, None).await
    }

    /// The same on machines of their own.
    pub async fn over(etcd: Etcd, count: usize, config: &str, network: Option<Network>) -> Option<Self> {
        let directory = TempDir::with_prefix("pilotlight-test-").expect("a directory");
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        let store = directory.path().join("store");
        std::fs::create_dir(&store).expect("created");
        for (path, mode) in [(&secret, 0o600), (&store, 0o700)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set");
        }
        let mut cluster =
            Self { etcd, nodes: Vec::new(), directory, network, is_mounted: AtomicBool::new(false) };
        for number in 0..count {
            cluster.add(&format!("n{number}"), config).await;
        }
        Some(cluster)
    }

    /// Starts one more node. `config` may end with keys of its table `[cluster]`.
    pub async fn add(&mut self, name: &str, config: &str) {
        let machine = self.nodes.len();
        let (listen, by, open) = match &self.network {
            Some(network) => {
                let (address, command) =
                    (network.address(machine), network.command(machine, Path::new("env")));
                let by = [command.get_program()].into_iter().chain(command.get_args()).map(OsString::from);
                let open = format!(
                    "[http]\nlisten = \"{address}:0\"\n[admin]\nlisten = \"{address}:0\"\n[auth]\nallow_unauthenticated = true\n"
                );
                (format!("{address}:8482"), Some(by.collect()), open)
            }
            None => (format!("127.0.0.1:{}", free_port()), None, String::new()),
        };
        let (config, more) = config.split_once("[cluster]").unwrap_or((config, ""));
        let config = format!(
            "{config}\n{open}[cluster]\netcd = {}\nnode = \"{name}\"\nlisten = \"{listen}\"\nsecret_file = {:?}\nstore = \"file://{}\"\n{more}",
            self.etcd.endpoints(),
            self.directory.path().join("secret"),
            self.store().display(),
        );
        let place = Arc::new(Place::new());
        let mut node = Node { name: name.to_owned(), listen, place, config, by, server: None };
        node.start().await;
        self.nodes.push(node);
    }

    /// The directory that is the object storage.
    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Takes the object storage away, as a file system that is not mounted any more.
    pub fn take_store(&self) {
        std::fs::rename(self.store(), self.directory.path().join("away")).expect("renamed");
    }

    pub fn give_store_back(&self) {
        let away = self.directory.path().join("away");
        if away.exists() {
            // What a node has written meanwhile was never in the store.
            std::fs::remove_dir_all(self.store()).ok();
            std::fs::rename(away, self.store()).expect("renamed");
        }
    }

    /// Mounts the object storage over itself, read-only. Only for root.
    pub fn mount_store_read_only(&self) {
        let store = self.store();
        let store = store.to_str().expect("text");
        run(&["mount", "--bind", store, store]);
        self.is_mounted.store(true, Ordering::Release);
        run(&["mount", "-o", "remount,bind,ro", store]);
    }

    pub fn unmount_store(&self) {
        self.is_mounted.store(false, Ordering::Release);
        run(&["umount", "-l", self.store().to_str().expect("text")]);
    }

    /// Addresses of the nodes that run, for callers.
    pub fn sites(&self) -> Vec<String> {
        self.nodes.iter().filter_map(|node| Some(node.server.as_ref()?.client().http().to_owned())).collect()
    }

    /// The marks of the nodes' places.
    pub fn marks(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.place.id().to_owned()).collect()
    }

    pub fn client(&self, node: usize) -> Client {
        self.nodes[node].client()
    }

    /// The node that has the user, as an answer names it.
    pub async fn owner(&self, asked: usize, user: &str) -> usize {
        let name = self.nodes[asked].owner(user).await;
        self.nodes.iter().position(|node| node.name == name).expect("a node of this cluster")
    }

    /// `drain` or `resume` of an operator at a node.
    pub async fn post(&self, node: usize, verb: &str) {
        let url = format!("{}/v1/cluster/{verb}", self.sites()[node]);
        let answer = Answer::of(reqwest::Client::new().post(url)).await;
        assert_eq!(answer.status, 200, "{verb}: {answer:?}");
    }
}

impl Node {
    pub async fn start(&mut self) {
        let server = program(&self.place, "serve", &self.config);
        let command = match &self.by {
            None => server,
            Some(by) => {
                let mut command = Command::new(&by[0]);
                command.args(&by[1..]).arg(server.get_program()).args(server.get_args()).stdin(Stdio::null());
                command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
                command
            }
        };
        self.server = Some(Server::start_by(&self.place, command).await);
    }

    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    pub fn process(&self) -> Process {
        self.server().process()
    }

    /// SIGSTOP for the server alone: its shims and children go on.
    pub fn pause(&self) {
        self.process().signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.process().signal(Signal::CONT);
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the node runs")
    }

    pub fn client(&self) -> Client {
        self.server().client()
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.server.take().expect("the node runs").kill().await;
    }

    /// SIGTERM, and an orderly end.
    pub async fn stop(&mut self) {
        self.server.take().expect("the node runs").stop().await;
    }

    async fn owner(&self, user: &str) -> String {
        let url = format!("{}/v1/sessions", self.client().http());
        let answer = reqwest::Client::new().get(url).header("x-pilotlight-user", user).send().await;
        let answer = answer.expect("an answer");
        answer.headers()["x-pilotlight-node"].to_str().expect("a name").to_owned()
    }
}

/// Nothing stands still while the nodes leave, and no mount is left.
impl Drop for Nodes {
    fn drop(&mut self) {
        if self.is_mounted.load(Ordering::Acquire) {
            self.unmount_store();
        }
        self.give_store_back();
        self.etcd.thaw();
        if let Some(network) = &self.network {
            (0..self.nodes.len()).for_each(|machine| network.plug_in(machine));
        }
        self.nodes.iter().filter(|node| node.is_running()).for_each(Node::resume);
    }
}
