//! Section `cluster`: several nodes that share users.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::validate::{bounded, duration, invalid};
use super::{Config, ConfigError, JournalMode, value};

section! {
    /// A cluster: etcd decides which node has a user, object storage has the users' data. By default there is none, and nothing
    /// of it is used.
    #[derive(Debug)]
    pub struct Cluster {
        /// Addresses of etcd's nodes, such as `https://10.0.0.1:2379`. Default none: this node is alone.
        pub etcd: Vec<String> = Vec::new(),
        /// Name of this node, different from all others. Must be set in a cluster.
        pub node: String = String::new(),
        /// Address and port where other nodes reach this one. Port 0 is not allowed. Must be set in a cluster.
        pub listen: Option<std::net::SocketAddr> = None,
        /// The same as other nodes see it, `HOST:PORT`. Default: `cluster.listen`.
        pub address: Option<String> = None,
        /// File with the secret that all nodes share: at least 32 bytes, which only its owner may read. Must be set in a cluster.
        pub secret_file: Option<PathBuf> = None,
        /// File with the certificate and the private key of this node in PEM, for TLS with the other nodes. Default none: requests
        /// between nodes are signed and not encrypted. The same for all nodes: with or without TLS.
        pub tls_identity_file: Option<PathBuf> = None,
        /// File with the certificates that those of all nodes are signed by, in PEM. Must be set with `cluster.tls_identity_file`.
        pub tls_ca_file: Option<PathBuf> = None,
        /// Where users' data goes: `file:///DIRECTORY` of a shared file system, or `s3://BUCKET/PREFIX`. Must be set in a cluster.
        /// `gs://BUCKET/PREFIX` and `az://CONTAINER/PREFIX` need the features `cluster-gcp` and `cluster-azure`.
        pub store: String = String::new(),
        /// When the end of a turn is sent to its caller. Default `turn`.
        pub replication: Replication = Replication::Turn,
        /// Maximum time that the end of a turn waits for the store and etcd. Default 10 s.
        #[serde(with = "value::duration")]
        pub commit_timeout: Duration = Duration::from_secs(10),
        /// Maximum time that a request waits until its user has a node and its files are there, on all nodes together. Default 15 s:
        /// longer than a failover takes.
        #[serde(with = "value::duration")]
        pub route_timeout: Duration = Duration::from_secs(15),
        /// Lease of a node in etcd: a node that is silent for so much time loses its users. Whole seconds. Default 2 s.
        #[serde(with = "value::duration")]
        pub lease: Duration = Duration::from_secs(2),
        /// Time without use after which a node gives a user back. Default 15 min: longer than answers of idempotent and
        /// asynchronous requests are kept.
        #[serde(with = "value::duration")]
        pub release_after: Duration = Duration::from_secs(15 * 60),
        /// Share of new users that this node takes, compared with others. Default 100; 0 takes none.
        pub room: u32 = 100,
        /// Maximum number of users that `pilotlight cluster rebalance` lets go in a minute: each is fetched from the store by another
        /// node. Default 600.
        pub rebalance_per_minute: u32 = 600,
        /// Prefix of the keys in etcd. Default `/pilotlight/`.
        pub prefix: String = "/pilotlight/".to_owned(),
        /// User of etcd. Default none.
        pub etcd_user: Option<String> = None,
        /// File with the password of that user, which only its owner may read.
        pub etcd_password_file: Option<PathBuf> = None,
        /// File with the certificates that etcd's are signed by, in PEM. Default: those of the system.
        pub etcd_ca_file: Option<PathBuf> = None,
        /// File with the certificate and the private key that this node shows to etcd, in PEM. Default none.
        pub etcd_identity_file: Option<PathBuf> = None,
        /// Whether OAuth credentials that callers have brought go to the store, for other nodes. Default false: clients bring
        /// theirs again.
        pub credentials: bool = false,
    }
}

/// When the end of a turn is sent to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Replication {
    /// Once the turn is in the store and etcd knows of it: no end of a node loses it.
    Turn,
    /// At once. A node that ends may take the last turns with it, which is reported as a loss of context.
    Async,
}

impl Cluster {
    /// Whether this node is one of several.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.etcd.is_empty()
    }

    /// Where the store is a directory.
    pub(crate) fn store_directory(&self) -> Option<&Path> {
        self.store.strip_prefix("file://").map(Path::new)
    }

    /// What no child may read: files with secrets, and the files of all users.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Path> {
        let files =
            [&self.secret_file, &self.tls_identity_file, &self.etcd_password_file, &self.etcd_identity_file];
        files.into_iter().flatten().map(PathBuf::as_path).chain(self.store_directory())
    }
}

/// Sessions of a user in a cluster: what the list in a replica has.
pub(crate) const MAX_SESSIONS: usize = 20_000;
/// Longest name of a node, and longest prefix.
const MAX_NAME: usize = 64;
/// etcd's shortest lease, and the longest with which a failover is one.
const LEASES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Kinds of stores: how their addresses begin, what follows, and the feature that a program needs for them, if it lacks it.
const STORES: [(&str, &str, Option<&str>); 4] = [
    ("file:///", "DIRECTORY", None),
    ("s3://", "BUCKET/PREFIX", None),
    ("gs://", "BUCKET/PREFIX", if cfg!(feature = "cluster-gcp") { None } else { Some("cluster-gcp") }),
    ("az://", "CONTAINER/PREFIX", if cfg!(feature = "cluster-azure") { None } else { Some("cluster-azure") }),
];

fn store(address: &str) -> Result<(), ConfigError> {
    match STORES.iter().find(|(scheme, ..)| address.starts_with(scheme)) {
        Some((_, _, None)) => Ok(()),
        Some((scheme, _, Some(feature))) => {
            let problem = format!(
                "{scheme} needs the feature `{feature}` of the crate `pilotlight`, which this program was built without"
            );
            Err(invalid("cluster.store", problem))
        }
        None => {
            let known = STORES.iter().filter(|(.., missing)| missing.is_none());
            let known: Vec<_> = known.map(|(scheme, rest, _)| format!("{scheme}{rest}")).collect();
            Err(invalid("cluster.store", format!("must be {}", known.join(" or "))))
        }
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let cluster = &config.cluster;
    if !cluster.is_on() {
        return Ok(());
    }
    let is_address = |text: &String| {
        url::Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    };
    if !cluster.etcd.iter().all(is_address) {
        return Err(invalid("cluster.etcd", "must be addresses such as https://10.0.0.1:2379"));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !(1..=MAX_NAME).contains(&cluster.node.len()) || !cluster.node.bytes().all(is_plain) {
        let problem = "must be set, of at most 64 letters, digits, \"-\", \"_\" and \".\"";
        return Err(invalid("cluster.node", problem));
    }
    if cluster.listen.is_none_or(|address| address.port() == 0) {
        return Err(invalid("cluster.listen", "must be set, with a port"));
    }
    let is_wildcard = cluster.listen.is_some_and(|address| address.ip().is_unspecified());
    if is_wildcard && cluster.address.is_none() {
        let problem =
            "must be set where cluster.listen is every address: other nodes need one that leads here";
        return Err(invalid("cluster.address", problem));
    }
    if config.session.journal == JournalMode::Off {
        let problem = "must not be \"off\" in a cluster: other nodes go on by the journal";
        return Err(invalid("session.journal", problem));
    }
    // The default conversation does not count.
    if config.limits.sessions_per_user + config.unnamed_room() >= MAX_SESSIONS {
        let problem = format!(
            "must be below {MAX_SESSIONS} in a cluster, together with twice http.conversations_per_user: all sessions of a user \
             move together"
        );
        return Err(invalid("limits.sessions_per_user", problem));
    }
    if cluster.secret_file.is_none() {
        return Err(invalid("cluster.secret_file", "must be set: without it no node trusts another"));
    }
    if cluster.tls_identity_file.is_some() != cluster.tls_ca_file.is_some() {
        return Err(invalid(
            "cluster.tls_identity_file",
            "needs cluster.tls_ca_file, and the other way around",
        ));
    }
    store(&cluster.store)?;
    if !(LEASES.0..=LEASES.1).contains(&cluster.lease) || cluster.lease.subsec_nanos() > 0 {
        return Err(invalid("cluster.lease", "must be 2 to 60 whole seconds"));
    }
    let is_prefix = cluster.prefix.starts_with('/') && cluster.prefix.ends_with('/');
    if !is_prefix || cluster.prefix.len() > MAX_NAME {
        return Err(invalid("cluster.prefix", "must begin and end with \"/\""));
    }
    if cluster.etcd_user.is_some() != cluster.etcd_password_file.is_some() {
        return Err(invalid(
            "cluster.etcd_user",
            "needs cluster.etcd_password_file, and the other way around",
        ));
    }
    duration("cluster.commit_timeout", cluster.commit_timeout)?;
    duration("cluster.route_timeout", cluster.route_timeout)?;
    duration("cluster.release_after", cluster.release_after)?;
    bounded("cluster.rebalance_per_minute", cluster.rebalance_per_minute, 1, 1_000_000)?;
    bounded("cluster.room", cluster.room, 0, 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "etcd = [\"http://127.0.0.1:2379\"]\nnode = \"a\"\nlisten = \"127.0.0.1:8482\"\n\
                         secret_file = \"/run/secret\"\nstore = \"file:///srv/shared\"\n";

    fn checked(text: &str) -> Result<Config, String> {
        let config: Config =
            toml::from_str(&format!("[cluster]\n{text}")).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string()).map(|()| config)
    }

    #[test]
    fn cluster_needs_its_keys() {
        assert!(!checked("").unwrap().cluster.is_on());
        assert!(checked(WHOLE).unwrap().cluster.is_on());
        for line in WHOLE.lines().skip(1) {
            let key = line.split(' ').next().unwrap();
            let problem = checked(&WHOLE.replace(line, "")).unwrap_err();
            assert!(problem.contains(&format!("cluster.{key}")), "{key}: {problem}");
        }
    }

    #[test]
    fn store_is_of_a_kind_that_was_built_in() {
        for (address, feature, is_built) in [
            ("gs://bucket/prefix", "cluster-gcp", cfg!(feature = "cluster-gcp")),
            ("az://container/prefix", "cluster-azure", cfg!(feature = "cluster-azure")),
            ("s3://bucket/prefix", "", true),
        ] {
            match checked(&WHOLE.replace("file:///srv/shared", address)) {
                Ok(_) => assert!(is_built, "{address}"),
                Err(problem) => assert!(!is_built && problem.contains(feature), "{problem}"),
            }
        }
        let problem = checked(&WHOLE.replace("file:///srv/shared", "ftp://x")).unwrap_err();
        assert_eq!(problem.contains("gs://"), cfg!(feature = "cluster-gcp"), "{problem}");
    }

    #[test]
    fn sessions_of_a_user_are_bounded_in_a_cluster() {
        let with = |cluster: &str, sessions: usize, unnamed: usize| {
            let limits = format!(
                "[limits]\nsessions_per_user = {sessions}\n[http]\nconversations_per_user = {unnamed}\n"
            );
            checked(&format!("{cluster}{limits}")).map(drop)
        };
        assert_eq!(with(WHOLE, MAX_SESSIONS - 33, 16), Ok(()));
        for (sessions, unnamed) in [(MAX_SESSIONS - 32, 16), (1 << 20, 1), (1, 10_000)] {
            let problem = with(WHOLE, sessions, unnamed).unwrap_err();
            assert!(problem.contains("limits.sessions_per_user"), "{problem}");
            assert_eq!(with("", sessions, unnamed), Ok(()), "a single node has no such limit");
        }
    }

    #[test]
    fn cluster_values_are_checked() {
        for (wrong, named) in [
            ("lease = \"1s\"", "lease"),
            ("lease = 2.5", "lease"),
            ("prefix = \"x\"", "prefix"),
            ("etcd_user = \"root\"", "etcd_user"),
            ("commit_timeout = 0", "commit_timeout"),
            ("replication = \"never\"", "replication"),
        ] {
            let problem = checked(&format!("{WHOLE}{wrong}\n")).unwrap_err();
            assert!(problem.contains(named), "{wrong}: {problem}");
        }
        for (good, wrong, named) in [
            ("http://127.0.0.1:2379", "127.0.0.1:2379", "etcd"),
            ("\"a\"", "\"a/b\"", "node"),
            ("127.0.0.1:8482", "127.0.0.1:0", "listen"),
            ("file:///", "http://", "store"),
            ("127.0.0.1:8482", "0.0.0.0:8482", "address"),
        ] {
            let problem = checked(&WHOLE.replace(good, wrong)).unwrap_err();
            assert!(problem.contains(&format!("cluster.{named}")), "{wrong}: {problem}");
        }
    }
}
