//! What of the host every child sees, and what stays hidden. Reads the file system once at the start of the system.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pilotlight_shim::isolation::Mount;

use super::plan::Host;
use crate::config::{Config, ConfigError, IsolationMount};

/// Programs, libraries and settings that every program of the system expects, and what runtimes read to find the number
/// of cores and the memory limit.
const SYSTEM: [&str; 11] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc",
    "/nix/store",
    "/proc",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];
/// Settings that many systems keep elsewhere, behind a link in `/etc`.
const LINKED: [&str; 2] = ["/etc/resolv.conf", "/etc/localtime"];
/// Variables that name certificates, which may lie anywhere.
const CERTIFICATES: [&str; 3] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"];

/// Secrets of the host in the directories above. Permissions protect them from every user but root.
const SECRETS: [&str; 9] = [
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    "/etc/ssl/private",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/rancher",
];
/// Directory of the host's keys, and their names.
const SSH: (&str, &[u8], &[u8]) = ("/etc/ssh", b"ssh_host_", b"_key");

/// Looks at the host. `as_root`: children run as root, whom permissions do not stop.
pub(crate) fn look(config: &Config, data_dir: &Path, as_root: bool) -> Host {
    let mut mounts: Vec<_> =
        SYSTEM.iter().map(Path::new).filter(|path| path.exists()).map(Mount::read).collect();
    // The same directory under two names is mounted twice, so that both names lead there.
    mounts.extend(LINKED.iter().filter_map(|link| outside(Path::new(link), &SYSTEM)).map(Mount::read));
    mounts.extend(certificates(config).filter(|path| path.exists()).map(Mount::read));
    mounts.extend(config.isolation.mounts.iter().map(configured));
    let mut hidden = own_secrets(config, data_dir);
    let linked = below_links(&config.isolation.mounts, &hidden);
    hidden.extend(linked);
    hidden.retain(|path| path.exists());
    let mut of_root: Vec<_> = SECRETS.iter().map(PathBuf::from).chain(host_keys()).collect();
    of_root.retain(|path| as_root && path.exists());
    Host { mounts, hidden, of_root }
}

/// Refuses mounts that do not exist, that show the data directory by another name, or that the shim would refuse.
pub(crate) fn check_mounts(config: &Config, data_dir: &Path) -> Result<(), ConfigError> {
    for (number, mount) in config.isolation.mounts.iter().enumerate() {
        let problem = match mount.path.canonicalize() {
            Err(error) => format!("cannot be used: {error}"),
            Ok(path) if data_dir.starts_with(&path) => {
                "must not contain data_dir, which has the files of all users".to_owned()
            }
            #[cfg(feature = "cluster")]
            Ok(path)
                if config.cluster.store_directory().is_some_and(|store| real(store).starts_with(&path)) =>
            {
                "must not contain cluster.store, which has the files of all users".to_owned()
            }
            Ok(path) if mount.write && path != mount.path => {
                format!("must have no symbolic link, because tools may write to it: use `{}`", path.display())
            }
            Ok(_) => continue,
        };
        return Err(ConfigError::Key { key: format!("isolation.mounts[{number}].path"), problem });
    }
    Ok(())
}

#[cfg(feature = "cluster")]
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The directory of the system in which the data directory lies, if it does: every child would see it.
pub(crate) fn exposes(host: &Host, data_dir: &Path) -> Option<PathBuf> {
    let seen = |mount: &&Mount| mount.path.canonicalize().is_ok_and(|path| data_dir.starts_with(path));
    host.mounts.iter().find(seen).map(|mount| mount.path.clone())
}

impl Host {
    /// The same with only `some` of the configured mounts.
    pub(super) fn with_mounts_of(&self, configured: &[IsolationMount], some: &[&IsolationMount]) -> Self {
        let mut host = self.clone();
        // They come last; one may repeat a mount of the system.
        host.mounts.truncate(host.mounts.len().saturating_sub(configured.len()));
        host.mounts.extend(some.iter().copied().map(self::configured));
        host
    }
}

fn configured(mount: &IsolationMount) -> Mount {
    let to = mount.to.as_ref().unwrap_or(&mount.path).clone();
    Mount { path: mount.path.clone(), to, write: mount.write }
}

/// The file behind a link, if it lies outside of the given directories.
fn outside(link: &Path, of: &[&str]) -> Option<PathBuf> {
    let file = link.canonicalize().ok()?;
    (!of.iter().any(|directory| file.starts_with(directory))).then_some(file)
}

fn certificates(config: &Config) -> impl Iterator<Item = PathBuf> {
    let cli = &config.cli;
    let value = move |name: &&str| -> Option<PathBuf> {
        let configured = cli.env.get(*name).map(PathBuf::from);
        let passed =
            || cli.env_pass.iter().any(|passed| passed == name).then(|| std::env::var_os(name)).flatten();
        configured.or_else(|| passed().map(PathBuf::from)).filter(|path| path.is_absolute())
    };
    CERTIFICATES.iter().filter_map(value)
}

/// Where the examples keep the files of the server, also those that only systemd reads for it.
const OWN: &str = "/etc/pilotlight";
/// Where a directory of a configuration file may be the server's alone.
const ETC: &str = "/etc";

/// `/etc/pilotlight`, and the directory of the configuration file below `/etc` or a configured mount: there lie files that
/// the server does not know of, as the environment that systemd gives it. What a mount of its own shows stays.
fn own_directories(config: &Config) -> Vec<PathBuf> {
    let mounts: Vec<_> =
        config.isolation.mounts.iter().filter_map(|mount| mount.path.canonicalize().ok()).collect();
    let is_seen = |directory: &Path| {
        let is_below = |above: &Path| directory.starts_with(above) && directory != above;
        is_below(Path::new(ETC)) || mounts.iter().any(|mount| is_below(mount))
    };
    let file = config.source.0.as_ref().and_then(|file| file.canonicalize().ok());
    let mut found = vec![PathBuf::from(OWN)];
    found.extend(file.as_deref().and_then(Path::parent).filter(|it| is_seen(it)).map(Path::to_owned));
    found.retain(|directory| !mounts.iter().any(|mount| mount.starts_with(directory)));
    found
}

/// The server's own files. Mounts never contain the data directory.
fn own_secrets(config: &Config, data_dir: &Path) -> Vec<PathBuf> {
    let own = [&config.source.0, &config.cli.user_env_file].into_iter().flatten();
    let files = own.map(PathBuf::as_path).chain(of_server(config)).chain(of_cluster(config));
    // A link and what it leads to: a child would read it by either name.
    let names = files.flat_map(|file| [std::path::absolute(file).ok(), file.canonicalize().ok()]);
    let mut hidden: Vec<_> = names.flatten().collect();
    hidden.push(data_dir.to_owned());
    hidden.extend(own_directories(config));
    hidden.sort();
    hidden.dedup();
    hidden
}

#[cfg(feature = "server")]
fn of_server(config: &Config) -> impl Iterator<Item = &Path> {
    let files = [&config.auth.keys_file, &config.audit.file].into_iter().flatten().map(PathBuf::as_path);
    files.chain(config.webhooks.endpoints.values().map(|endpoint| endpoint.secret_file.as_path()))
}

#[cfg(not(feature = "server"))]
fn of_server(_: &Config) -> impl Iterator<Item = &Path> {
    std::iter::empty()
}

#[cfg(feature = "cluster")]
fn of_cluster(config: &Config) -> impl Iterator<Item = &Path> {
    config.cluster.secrets()
}

#[cfg(not(feature = "cluster"))]
fn of_cluster(_: &Config) -> impl Iterator<Item = &Path> {
    std::iter::empty()
}

/// Hidden paths by their names below mounts whose own path leads through a link.
fn below_links(mounts: &[IsolationMount], hidden: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts {
        let Ok(real) = mount.path.canonicalize() else { continue };
        let below = hidden.iter().filter_map(|path| path.strip_prefix(&real).ok());
        found.extend(below.map(|below| mount.path.join(below)).filter(|name| !hidden.contains(name)));
    }
    found
}

fn host_keys() -> Vec<PathBuf> {
    let (directory, begin, end) = SSH;
    let is_key = |name: &OsStr| name.as_bytes().starts_with(begin) && name.as_bytes().ends_with(end);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| is_key(&entry.file_name())).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_server_are_hidden_by_all_names() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (file, link) = (root.join("users.toml"), root.join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut config = Config::new(root.join("data"));
        config.cli.user_env_file = Some(link.clone());
        fs::create_dir(root.join("data")).unwrap();
        let mut host = look(&config, &root.join("data"), false);
        host.hidden.retain(|path| path != Path::new(OWN));
        assert_eq!(host.hidden, [root.join("data"), link, file]);
        assert!(host.mounts.iter().all(|mount| !mount.write && mount.path.exists()));
        assert!(host.mounts.contains(&Mount::read("/usr")));
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn secrets_of_a_node_are_hidden() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let files = ["secret", "node.pem", "password", "etcd.pem", "webhook", "keys", "audit"]
            .map(|name| root.join(name));
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        fs::create_dir(root.join("store")).unwrap();
        let [secret, node, password, etcd, webhook, keys, audit] = files.clone();
        let mut config = Config::new("/nowhere");
        let cluster = &mut config.cluster;
        (cluster.secret_file, cluster.tls_identity_file) = (Some(secret), Some(node));
        (cluster.etcd_password_file, cluster.etcd_identity_file) = (Some(password), Some(etcd));
        cluster.store = format!("file://{}", root.join("store").display());
        (config.auth.keys_file, config.audit.file) = (Some(keys), Some(audit));
        let endpoint = serde_json::json!({ "url": "https://example.org", "secret_file": webhook });
        config.webhooks.endpoints.insert("a".to_owned(), serde_json::from_value(endpoint).unwrap());
        let hidden = look(&config, Path::new("/nowhere"), false).hidden;
        for path in files.iter().chain([&root.join("store")]) {
            assert!(hidden.contains(path), "{}", path.display());
        }
        config.isolation.mounts.push(IsolationMount::new(&root));
        let error = check_mounts(&config, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("isolation.mounts[0].path") && error.contains("cluster.store"), "{error}");
    }

    #[test]
    fn secrets_below_a_mount_by_a_link_are_hidden() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let (real, link) = (root.join("real"), root.join("link"));
        fs::create_dir(&real).unwrap();
        fs::write(real.join("users.toml"), "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let mut config = Config::new("/nowhere");
        config.cli.user_env_file = Some(real.join("users.toml"));
        config.isolation.mounts.push(IsolationMount::new(&link));
        let mut hidden = look(&config, Path::new("/nowhere"), false).hidden;
        hidden.retain(|path| path != Path::new(OWN));
        assert_eq!(hidden, [real.join("users.toml"), link.join("users.toml")]);
        config.isolation.mounts.push(IsolationMount { write: true, ..IsolationMount::new(&link) });
        let error = check_mounts(&config, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("isolation.mounts[1].path") && error.contains("symbolic link"), "{error}");
    }

    #[test]
    fn directory_of_the_configuration_is_hidden() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("shared/conf/tools")).unwrap();
        let conf = root.join("shared/conf");
        fs::write(conf.join("pilotlight.toml"), "").unwrap();
        let hidden = |mounts: &[&Path]| {
            let mut config = Config::new("/nowhere");
            config.source.0 = Some(conf.join("pilotlight.toml"));
            config.isolation.mounts = mounts.iter().map(IsolationMount::new).collect();
            look(&config, Path::new("/nowhere"), false).hidden.contains(&conf)
        };
        assert!(hidden(&[&root.join("shared")]));
        // Where no child sees it, nothing is to be hidden; what is mounted by itself is to be seen.
        assert!(!hidden(&[]));
        assert!(!hidden(&[&conf]) && !hidden(&[&root.join("shared"), &conf.join("tools")]));
    }

    #[test]
    fn root_children_do_not_see_the_hosts_secrets() {
        let config = Config::new("/nowhere");
        let hidden = |as_root| look(&config, Path::new("/nowhere"), as_root).of_root;
        assert!(hidden(false).is_empty());
        let shadow = Path::new("/etc/shadow");
        assert_eq!(hidden(true).contains(&shadow.to_owned()), shadow.exists());
    }

    #[test]
    fn configured_mounts_are_shown_and_must_exist() {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new("/nowhere");
        let mount =
            IsolationMount { to: Some("/opt/x".into()), write: true, ..IsolationMount::new(root.path()) };
        config.isolation.mounts.push(mount);
        check_mounts(&config, Path::new("/nowhere")).unwrap();
        let expected = Mount { path: root.path().into(), to: "/opt/x".into(), write: true };
        assert!(look(&config, Path::new("/nowhere"), false).mounts.contains(&expected));
        let inner = root.path().canonicalize().unwrap().join("data");
        let error = check_mounts(&config, &inner).unwrap_err().to_string();
        assert!(error.contains("isolation.mounts[0].path") && error.contains("data_dir"), "{error}");
        config.isolation.mounts.push(IsolationMount::new("/no/such/directory"));
        let error = check_mounts(&config, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("isolation.mounts[1].path"), "{error}");
    }
}
