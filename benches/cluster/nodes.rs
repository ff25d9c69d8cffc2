//! Nodes of one cluster.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pilotlight_test_support::ports::kept_port;

use crate::etcd::Etcd;
use crate::server::Server;

/// What every server of a comparison has, also one without a cluster. A measurement of memory looks at every process of the
/// machine, which may be busy with others.
pub(crate) const CONFIG: &str = "[session]\nidle_timeout = \"1h\"\n[metrics]\nsample_interval = \"1h\"\n[http]\nrequests_per_minute = 0\nheader_timeout = \"1h\"\n";

/// What the nodes of a cluster share.
pub(crate) struct Cluster {
    name: String,
    etcd: String,
    directory: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new(name: &str, etcd: &Etcd) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [secret, store] = ["secret", "store"].map(|name| directory.path().join(name));
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        std::fs::create_dir(&store).unwrap();
        for (path, mode) in [(secret, 0o600), (store, 0o700)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        Self { name: name.to_owned(), etcd: etcd.url.clone(), directory }
    }

    /// Prefix of its keys in etcd.
    pub(crate) fn prefix(&self) -> String {
        format!("/{}/", self.name)
    }

    /// Starts a node. `config` is TOML, `more` are keys of its table `[cluster]`.
    pub(crate) async fn node(&self, name: &str, config: &str, more: &str) -> Arc<Server> {
        let table = format!(
            "[cluster]\netcd = [{:?}]\nnode = {name:?}\nlisten = \"127.0.0.1:{}\"\nsecret_file = {:?}\nstore = \"file://{}\"\nprefix = {:?}\n{more}\n",
            self.etcd,
            kept_port(),
            self.directory.path().join("secret"),
            self.directory.path().join("store").display(),
            self.prefix(),
        );
        Arc::new(Server::ours(&format!("{config}{table}")).await)
    }
}

/// Users that have their place on the node of this name. Any node of the cluster can be asked.
pub(crate) async fn users_of(node: &str, asked: &Server, count: usize) -> Vec<usize> {
    let (web, mut users) = (reqwest::Client::new(), Vec::new());
    for user in 0.. {
        if users.len() == count {
            break;
        }
        let request = web.get(format!("http://{}/v1/sessions", asked.address));
        let answer = request.header("x-pilotlight-user", user.to_string()).send().await.unwrap();
        if answer.headers()["x-pilotlight-node"] == node {
            users.push(user);
        }
    }
    users
}
