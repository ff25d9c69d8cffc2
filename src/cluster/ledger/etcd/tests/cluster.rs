//! A cluster of real etcd processes on loopback.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilotlight_test_support::ports::kept_port;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{Etcd, EtcdSettings, TlsFiles};

const STARTS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Default, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) tls: bool,
    /// Elections as docs/scale.md recommends them.
    pub(crate) quick: bool,
}

pub(crate) struct Cluster {
    program: PathBuf,
    data: TempDir,
    members: Vec<Member>,
    options: Options,
}

struct Member {
    process: Child,
    client: String,
    peer: String,
}

/// Goes on when it is dropped.
pub(crate) struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Cluster {
    pub(crate) async fn start(count: usize, options: Options) -> Option<Self> {
        let program = pilotlight_test_support::installed::etcd()?;
        let data = tempfile::tempdir().unwrap();
        if options.tls {
            certificates(data.path());
        }
        let scheme = if options.tls { "https" } else { "http" };
        let addresses: Vec<_> = (0..count)
            .map(|_| {
                (format!("{scheme}://127.0.0.1:{}", kept_port()), format!("http://127.0.0.1:{}", kept_port()))
            })
            .collect();
        let mut cluster = Self { program, data, members: Vec::new(), options };
        let peers: Vec<_> =
            addresses.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={peer}")).collect();
        for (n, (client, peer)) in addresses.into_iter().enumerate() {
            let process = cluster.spawn(n, &client, &peer, &peers.join(","));
            cluster.members.push(Member { process, client, peer });
        }
        cluster.ready().await;
        Some(cluster)
    }

    fn spawn(&self, n: usize, client: &str, peer: &str, peers: &str) -> Child {
        let log =
            std::fs::File::options().create(true).append(true).open(self.data.path().join(format!("log{n}")));
        let mut command = Command::new(&self.program);
        command
            .args(["--name", &format!("m{n}"), "--log-level", "warn", "--initial-cluster", peers])
            .arg("--data-dir")
            .arg(self.data.path().join(format!("m{n}")))
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
            // bcrypt at its cheapest: a test has no secrets. What a killed process has written is there all the same; only a
            // machine that fails would need the disk.
            .args(["--bcrypt-cost", "4", "--unsafe-no-fsync"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .process_group(0);
        if self.options.quick {
            command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        }
        if self.options.tls {
            let file = |name: &str| self.data.path().join(name);
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(file("ca.pem"));
            command.arg("--cert-file").arg(file("server.pem")).arg("--key-file").arg(file("server.key"));
        }
        command.spawn().unwrap()
    }

    pub(crate) fn settings(&self) -> EtcdSettings {
        let endpoints = self.members.iter().map(|member| member.client.clone()).collect();
        let mut settings = EtcdSettings::new(endpoints, Duration::from_secs(2));
        if self.options.tls {
            let file = |name: &str| self.data.path().join(name);
            settings.tls = TlsFiles { ca: Some(file("ca.pem")), client: Some(file("client.key")) };
        }
        settings
    }

    pub(crate) fn client(&self) -> Etcd {
        Etcd::new(self.settings()).unwrap()
    }

    /// Waits until every member answers and knows a leader.
    async fn ready(&mut self) {
        let end = Instant::now() + STARTS_WITHIN;
        for n in 0..self.members.len() {
            while self.status(n).await.is_none_or(|status| status.leader.is_empty() || status.leader == "0") {
                let is_running = self.members[n].process.try_wait().unwrap().is_none();
                assert!(is_running && Instant::now() < end, "member {n} does not start: {}", self.log(n));
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.data.path().join(format!("log{n}"))).unwrap_or_default()
    }

    async fn status(&self, n: usize) -> Option<Status> {
        let mut settings = self.settings();
        settings.endpoints = vec![self.members[n].client.clone()];
        settings.total = Duration::from_secs(1);
        let etcd = Etcd::new(settings).unwrap();
        let body = etcd.ask("/v3/maintenance/status", b"{}".to_vec()).await.ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// The index of the leader.
    pub(crate) async fn leader(&self) -> usize {
        for n in 0..self.members.len() {
            if let Some(status) = self.status(n).await
                && status.header.member_id == status.leader
            {
                return n;
            }
        }
        panic!("no leader");
    }

    pub(crate) fn kill(&mut self, n: usize) {
        self.members[n].process.kill().unwrap();
        self.members[n].process.wait().unwrap();
    }

    pub(crate) fn pause(&self, n: usize) -> Paused {
        let pid = Pid::from_child(&self.members[n].process);
        kill_process(pid, Signal::STOP).unwrap();
        Paused(pid)
    }

    pub(crate) async fn restart(&mut self, n: usize) {
        self.kill(n);
        let peers: Vec<_> =
            self.members.iter().enumerate().map(|(n, member)| format!("m{n}={}", member.peer)).collect();
        let Member { client, peer, .. } = &self.members[n];
        let process = self.spawn(n, client, peer, &peers.join(","));
        self.members[n].process = process;
    }
}

#[derive(Deserialize)]
struct Status {
    header: Header,
    #[serde(default)]
    leader: String,
}

#[derive(Deserialize)]
struct Header {
    member_id: String,
}

/// An own authority, a certificate for the server, which the gateway inside of it also shows as a client, and one for
/// the client.
fn certificates(home: &Path) {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "own authority");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(home.join("ca.pem"), issuer.pem()).unwrap();
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(home.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let file = home.join(format!("{name}.key"));
        std::fs::write(&file, certificate.pem() + &key.serialize_pem()).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
}
