//! One node: a process of this program with a configuration and a data directory of its own.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pilotlight::Config;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::super::client::Client;
use super::super::process::MARK;
use super::super::show::Problem;
use super::super::stage::{SIMULATED_START, SIMULATION, until};

/// Maximum time until a node serves: it starts the CLI once for that, and waits until its former lease has ended.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A port of loopback that nothing else is given for the next minute: a connection to it stays in TIME_WAIT.
pub(super) fn kept_port() -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut connection = TcpStream::connect(address)?;
    // The end that closes first is the one that waits. A stranger may have come before.
    while listener.accept()?.1 != connection.local_addr()? {}
    drop(listener);
    connection.read_to_end(&mut Vec::new())?;
    Ok(address.port())
}

/// What all nodes share.
pub(super) struct Shared<'a> {
    pub(super) directory: &'a Path,
    pub(super) etcd: &'a str,
    pub(super) mark: &'a str,
}

pub(super) struct Node {
    name: &'static str,
    config: PathBuf,
    log: PathBuf,
    mark: String,
    running: Option<Running>,
}

struct Running {
    child: Child,
    client: Client,
    http: SocketAddr,
}

impl Node {
    /// Writes the configuration.
    pub(super) fn create(name: &'static str, shared: &Shared<'_>) -> Result<Self, Problem> {
        let config = configuration(name, shared, kept_port()?)?;
        let path = shared.directory.join(format!("{name}.toml"));
        std::fs::write(&path, config)?;
        let log = shared.directory.join(format!("{name}.log"));
        Ok(Self { name, config: path, log, mark: shared.mark.to_owned(), running: None })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Where it serves, or an empty text.
    pub(super) fn address(&self) -> String {
        self.running.as_ref().map(|running| running.http.to_string()).unwrap_or_default()
    }

    pub(super) fn client(&self) -> Result<&Client, Problem> {
        let running =
            self.running.as_ref().ok_or_else(|| Problem::seen(format!("node {} does not run", self.name)))?;
        Ok(&running.client)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts the node, and waits until it is ready.
    pub(super) async fn start(&mut self) -> Result<(), Problem> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&self.config);
        // What the operator sets for a server of theirs is not for these.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        // A group of its own: Ctrl-C reaches the demo alone, which ends everything in order.
        let command = command.env(MARK, &self.mark).process_group(0).kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut child = child.map_err(|error| Problem::seen(format!("node {}: {error}", self.name)))?;
        let output = child.stdout.take().map(|output| BufReader::new(output).lines());
        let first = async {
            match output {
                Some(mut lines) => lines.next_line().await.ok().flatten(),
                None => None,
            }
        };
        let line = timeout(READY_WITHIN, first).await.ok().flatten();
        let addresses = line.as_deref().and_then(addresses);
        let (http, admin) = addresses.ok_or_else(|| Problem::seen(self.failed()))?;
        let client = Client::new(http, admin, &Config::default().metrics.prefix)?;
        let ready = async || Ok(client.not_ready().await?.is_none().then_some(()));
        until(&format!("node {} is ready", self.name), READY_WITHIN, ready).await?;
        self.running = Some(Running { child, client, http });
        Ok(())
    }

    /// What the node said last.
    fn failed(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it said nothing");
        format!("node {} does not start: {}", self.name, super::super::text::cut(last, 300))
    }

    /// Kills the node without warning.
    pub(super) async fn kill(&mut self) -> Result<(), Problem> {
        if let Some(mut running) = self.running.take() {
            running.child.kill().await?;
        }
        Ok(())
    }

    /// Asks the node to end (SIGTERM).
    pub(super) fn terminate(&self) {
        let child = self.running.as_ref().map(|running| &running.child);
        terminate(child);
    }

    /// The exit code of a node that was asked to end; `None` if it had to be killed, or was by another.
    pub(super) async fn ended(&mut self, within: Duration) -> Option<i32> {
        ended(&mut self.running.take()?.child, within).await
    }
}

/// Sends SIGTERM to a process that has not been waited for: the number is its own.
pub(super) fn terminate(child: Option<&Child>) {
    let pid = child.and_then(Child::id).and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM).ok();
    }
}

/// Waits for the end of a process, and kills it if it takes too long. Its exit code.
pub(super) async fn ended(child: &mut Child, within: Duration) -> Option<i32> {
    match timeout(within, child.wait()).await {
        Ok(status) => status.ok()?.code(),
        Err(_) => {
            child.kill().await.ok();
            None
        }
    }
}

/// The addresses of the line that `pilotlight serve` prints.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let of = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name))?.parse().ok();
    Some((of("http=http://")?, of("admin=http://")?))
}

/// Whether a variable sets a key of the configuration, other than the environment of the CLI.
fn is_setting(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes().to_ascii_uppercase();
    let is_key = name.windows(2).any(|two| two == b"__")
        || name == b"PILOTLIGHT_DATA_DIR"
        || name == b"PILOTLIGHT_DRAIN_TIMEOUT";
    name.starts_with(b"PILOTLIGHT_") && is_key && !name.starts_with(b"PILOTLIGHT_CLI__ENV__")
}

fn configuration(name: &str, shared: &Shared<'_>, port: u16) -> Result<String, Problem> {
    let path = |path: PathBuf| {
        let path = path.into_os_string().into_string();
        path.map_err(|_| Problem::seen("the path of the temporary directory is not UTF-8"))
    };
    let mut config = toml::Table::new();
    let mut section = |name: &str, entries: toml::Table| drop(config.insert(name.to_owned(), entries.into()));
    let listen = toml::toml! { listen = "127.0.0.1:0" };
    section("http", listen.clone());
    section("admin", listen);
    let mut cli = toml::Table::new();
    cli.insert("program".to_owned(), SIMULATION.into());
    let start = format!("slow-start={}", SIMULATED_START.as_millis());
    cli.insert("args".to_owned(), vec!["--fault".to_owned(), start].into());
    let mut env = toml::Table::new();
    env.insert(MARK.to_owned(), shared.mark.into());
    cli.insert("env".to_owned(), env.into());
    section("cli", cli);
    let mut cluster = toml::Table::new();
    cluster.insert("etcd".to_owned(), vec![shared.etcd.to_owned()].into());
    for (key, value) in [
        ("node", name.to_owned()),
        ("listen", format!("127.0.0.1:{port}")),
        ("secret_file", path(shared.directory.join("secret"))?),
        ("store", format!("file://{}", path(shared.directory.join("objects"))?)),
    ] {
        cluster.insert(key.to_owned(), value.into());
    }
    section("cluster", cluster);
    config.insert("data_dir".to_owned(), path(shared.directory.join(name))?.into());
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_configuration_is_valid() {
        let directory = Path::new("/tmp/a \"quoted\" name");
        let shared = Shared { directory, etcd: "http://127.0.0.1:2379", mark: "m" };
        let text = configuration("a", &shared, 1234).unwrap();
        let config: Config = toml::from_str(&text).unwrap();
        config.validate().unwrap();
        assert!(config.cluster.is_on());
        assert_eq!(config.data_dir, directory.join("a"));
    }

    #[test]
    fn only_settings_of_a_server_are_removed() {
        for (name, removed) in [
            ("PILOTLIGHT_HTTP__LISTEN", true),
            ("PILOTLIGHT_DATA_DIR", true),
            ("PILOTLIGHT_CLI__PROGRAM", true),
            ("PILOTLIGHT_CLI__ENV__MARK", false),
            ("PILOTLIGHT_LOG", false),
            ("HOME", false),
        ] {
            assert_eq!(is_setting(name.as_ref()), removed, "{name}");
        }
    }

    #[test]
    fn addresses_are_those_of_the_line() {
        let line = "listening http=http://127.0.0.1:80 admin=http://127.0.0.1:81";
        let (http, admin) = addresses(line).unwrap();
        assert_eq!((http.port(), admin.port()), (80, 81));
        assert_eq!(addresses("listening http=x"), None);
    }
}
