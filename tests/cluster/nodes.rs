//! Nodes of a cluster, each a server of its own with a data directory of its own.

use std::ffi::OsString;
use std::io::Write as _;
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
use crate::common::ports::kept_port;
use crate::common::process::Process;
use crate::common::program::Answer;
use crate::common::proxy::Proxy;
use crate::common::s3;
use crate::common::server::{Server, program};
use crate::etcd::Etcd;
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
    around: Around,
}

/// What is special about the surroundings of nodes.
#[derive(Default)]
pub struct Around {
    /// Each node has ways of its own to the members of etcd, which can be cut.
    pub is_linked: bool,
    /// The address of an S3 server that is the object storage, instead of a directory.
    pub bucket: Option<String>,
    /// Size of the disk of the directory that is the object storage. Only for root.
    pub store: Option<&'static str>,
    /// Size of the disk of each node, which only the node sees. Only for root.
    pub disk: Option<&'static str>,
    /// How each node's program is started.
    pub started: Vec<Started>,
}

/// How a program is started.
#[derive(Default, Clone)]
pub struct Started {
    /// What becomes the program; nothing: it is started itself.
    pub by: Vec<OsString>,
    /// For its environment.
    pub variables: Vec<(&'static str, String)>,
    /// Another version of it; nothing: the one that is tested.
    pub version: Option<PathBuf>,
}

fn run(command: &[&str]) {
    let done = Command::new(command[0]).args(&command[1..]).status();
    assert!(done.expect("it runs").success(), "{command:?}");
}

/// Writes a file until its disk is full.
pub fn fill(file: &Path) {
    let mut file = std::fs::File::create(file).expect("created");
    // The last bytes as well: a journal takes few.
    for block in [vec![0; 1 << 16], vec![0]] {
        let error = loop {
            if let Err(error) = file.write_all(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}

/// How the AWS SDKs learn of a bucket.
fn bucket_variables(endpoint: &str) -> [(&'static str, String); 4] {
    [
        ("AWS_ENDPOINT_URL_S3", endpoint.to_owned()),
        ("AWS_REGION", s3::REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_ACCESS_KEY.to_owned()),
    ]
}

/// What becomes a program that has a file system of this size at a directory, in a namespace of its own.
fn on_a_disk(directory: &Path, size: &str) -> Vec<OsString> {
    let script =
        format!("mkdir -p \"$0\" && mount -t tmpfs -o size={size},mode=0700 none \"$0\" && exec \"$@\"");
    let mut by: Vec<_> = ["unshare", "--mount", "sh", "-c", &script].map(OsString::from).into();
    by.push(directory.into());
    by
}

pub struct Node {
    pub name: String,
    /// Where other nodes reach it.
    pub listen: String,
    place: Arc<Place>,
    config: String,
    started: Started,
    /// Its own ways to the members of etcd.
    links: Vec<Proxy>,
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
        Some(Self::none(etcd, network, Around::default()).with(count, config).await)
    }

    /// The same in these surroundings.
    pub async fn around(around: Around, etcd: Etcd, count: usize, config: &str) -> Self {
        Self::none(etcd, None, around).with(count, config).await
    }

    async fn with(mut self, count: usize, config: &str) -> Self {
        for number in 0..count {
            self.add(&format!("n{number}"), config).await;
        }
        self
    }

    fn none(etcd: Etcd, network: Option<Network>, around: Around) -> Self {
        let directory = TempDir::with_prefix("pilotlight-test-").expect("a directory");
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        let store = directory.path().join("store");
        std::fs::create_dir(&store).expect("created");
        if let Some(size) = around.store {
            let options = format!("size={size},mode=0700");
            run(&["mount", "-t", "tmpfs", "-o", &options, "none", store.to_str().expect("text")]);
        }
        for (path, mode) in [(&secret, 0o600), (&store, 0o700)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set");
        }
        let is_mounted = AtomicBool::new(around.store.is_some());
        Self { etcd, nodes: Vec::new(), directory, network, is_mounted, around }
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
            None => (format!("127.0.0.1:{}", kept_port()), None, String::new()),
        };
        let mut links = Vec::new();
        if self.around.is_linked {
            for url in self.etcd.urls() {
                links.push(Proxy::to(url).await);
            }
        }
        let ways: Vec<_> = links.iter().map(Proxy::url).collect();
        let etcd = if ways.is_empty() { self.etcd.endpoints() } else { format!("{ways:?}") };
        let store = match &self.around.bucket {
            Some(_) => "s3://bucket/cluster".to_owned(),
            None => format!("file://{}", self.store().display()),
        };
        let mut started = self.around.started.get(machine).cloned().unwrap_or_default();
        started.variables.extend(self.around.bucket.iter().flat_map(|endpoint| bucket_variables(endpoint)));
        let (config, more) = config.split_once("[cluster]").unwrap_or((config, ""));
        let config = format!(
            "{config}\n{open}[cluster]\netcd = {etcd}\nnode = \"{name}\"\nlisten = \"{listen}\"\nsecret_file = {:?}\nstore = {store:?}\n{more}",
            self.directory.path().join("secret"),
        );
        let place = Arc::new(Place::new());
        started.by = by.unwrap_or(started.by);
        if let Some(size) = self.around.disk {
            started.by = on_a_disk(&place.data_dir(), size);
        }
        let mut node = Node { name: name.to_owned(), listen, place, config, started, links, server: None };
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

/// The same command with another program.
fn instead(command: Command, program: &Path) -> Command {
    let mut other = Command::new(program);
    other.args(command.get_args()).stdin(Stdio::null());
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other
}

impl Node {
    /// The version that is started next; nothing: the one that is tested.
    pub fn set_version(&mut self, version: Option<PathBuf>) {
        self.started.version = version;
    }

    pub async fn start(&mut self) {
        let Started { by, variables, version } = &self.started;
        let mut command = program(&self.place, "serve", &self.config);
        if let Some(version) = version {
            command = instead(command, version);
        }
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        if let [first, rest @ ..] = by.as_slice() {
            let server = std::mem::replace(&mut command, Command::new(first));
            command.args(rest).arg(server.get_program()).args(server.get_args()).stdin(Stdio::null());
            command.envs(server.get_envs().filter_map(|(name, value)| Some((name, value?))));
        }
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

    /// Leaves no room on its small disk. The file that takes it.
    pub fn fill_disk(&self) -> PathBuf {
        let data = self.place.data_dir();
        let inside = data.strip_prefix("/").expect("an absolute path");
        let filler = PathBuf::from(format!("/proc/{}/root", self.process().pid)).join(inside).join("filler");
        fill(&filler);
        filler
    }

    /// Cuts its ways to etcd.
    pub fn cut(&self) {
        assert!(!self.links.is_empty(), "it has no way of its own");
        self.links.iter().for_each(Proxy::reset);
    }

    pub fn repair(&mut self) {
        self.links.iter_mut().for_each(Proxy::restore);
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
        self.give_store_back();
        self.etcd.thaw();
        if let Some(network) = &self.network {
            (0..self.nodes.len()).for_each(|machine| network.plug_in(machine));
        }
        self.nodes.iter_mut().for_each(Node::repair);
        self.nodes.iter().filter(|node| node.is_running()).for_each(Node::resume);
        if self.is_mounted.load(Ordering::Acquire) {
            self.nodes.clear();
            self.unmount_store();
        }
    }
}
