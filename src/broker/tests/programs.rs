//! Programs that honour proxy variables reach hosts of the allow list, with TLS from end to end.
//!
//! The hosts are stand-ins on 127.0.0.2: the variables except 127.0.0.1 from the proxy. A program that is not installed is
//! left out.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use axum::response::Response;
use tokio::process::Command;
use tokio::time::timeout;

use super::site::{Child, SOON, Setup, Site};
use super::standin::{Authority, StandIn, json};
use crate::adapter::broker::{Brokered, ChildProxy};
use crate::config::{Egress, EgressHost};

const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A host with files, and a child that may reach it.
struct Case {
    place: tempfile::TempDir,
    host: StandIn,
    site: Site,
    child: Child,
}

impl Case {
    async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let authority = Authority::new(HOST);
        std::fs::write(place.path().join("ca.pem"), &authority.pem).unwrap();
        std::fs::create_dir(place.path().join("files")).unwrap();
        let files: Arc<Path> = place.path().join("files").into();
        let host = StandIn::at(HOST, Some(&authority), move |received| {
            let path = received.target.split('?').next().unwrap().trim_matches('/');
            let file = files.join(path);
            let file = if file.is_dir() { file.join("index.html") } else { file };
            match std::fs::read(&file) {
                Ok(content) => {
                    let kind = match file.extension().and_then(|kind| kind.to_str()) {
                        Some("html") => "text/html",
                        Some("json") | None => "application/json",
                        Some(_) => "application/octet-stream",
                    };
                    Response::builder().header("content-type", kind).body(content.into()).unwrap()
                }
                Err(_) => json(404, "{}"),
            }
        })
        .await;
        let listed = EgressHost::try_from(host.address.to_string()).unwrap();
        let site = Site::new(Setup { egress: Egress::Allow(vec![listed]), ..Setup::default() });
        let child = site.child("http://127.0.0.1:9/");
        Self { place, host, site, child }
    }

    fn path(&self, name: &str) -> String {
        self.place.path().join(name).display().to_string()
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.host.address)
    }

    /// Runs a program with the environment of a child; `None` if it is not installed.
    async fn run(&self, program: &str, args: &[&str]) -> Option<Output> {
        let passed =
            ["PATH", "HOME"].into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
        let more = [("npm_config_cache", self.path("cache")), ("PIP_CONFIG_FILE", "/dev/null".to_owned())];
        let more = more.into_iter().map(|(name, value)| (name.into(), value.into()));
        let ca = ["SSL_CERT_FILE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"];
        let ca = ca.into_iter().map(|name| (name.into(), self.path("ca.pem").into()));
        let brokered = Brokered::without_upstream(passed.chain(more).chain(ca).collect());
        let authority = self.child.address.to_string();
        let env = brokered.environment(&authority, &self.child.token, ChildProxy::Broker);
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env).current_dir(self.place.path()).kill_on_drop(true);
        command.stdin(Stdio::null());
        match timeout(3 * SOON, command.output()).await.expect("an end") {
            Ok(output) => Some(output),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{program}: {error}");
                println!("{program}: left out: it is not installed");
                None
            }
        }
    }

    /// The program succeeded, through the proxy.
    fn assert_served(&self, output: &Output) {
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{shown}", String::from_utf8_lossy(&output.stdout));
        assert!(self.site.metric("egress_connections_total", "outcome=connected") >= 1.0);
        assert!(!format!("{:?}", self.host.received()).contains(&self.child.token));
    }
}

#[tokio::test]
async fn curl_reaches_a_listed_host() {
    let case = Case::new().await;
    std::fs::write(case.place.path().join("files/hello"), "\"hello\"").unwrap();
    let (ca, url) = (case.path("ca.pem"), case.url("hello"));
    let Some(output) = case.run("curl", &["--silent", "--show-error", "--cacert", &ca, &url]).await else {
        return;
    };
    case.assert_served(&output);
    assert_eq!(output.stdout, b"\"hello\"");
    // Another port of the host is not on the list; nothing goes past the proxy.
    let refused = case.run("curl", &["--silent", "--show-error", "https://127.0.0.2:1/"]).await.unwrap();
    assert_eq!(refused.status.code(), Some(56), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(case.site.metric("egress_connections_total", "outcome=not_allowed"), 1.0);
}

#[tokio::test]
async fn git_clones_from_a_listed_host() {
    let case = Case::new().await;
    let bare = case.path("files/r.git");
    let Some(made) = case.run("git", &["init", "--quiet", "work"]).await else { return };
    assert!(made.status.success());
    let work = case.path("work");
    let identity = ["-C", &work, "-c", "user.name=a", "-c", "user.email=a@example.org"];
    let commit = [&identity[..], &["commit", "--quiet", "--allow-empty", "-m", "first"]].concat();
    for args in
        [&commit[..], &["clone", "--quiet", "--bare", &work, &bare], &["-C", &bare, "update-server-info"]]
    {
        let output = case.run("git", args).await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = case.run("git", &["clone", "--quiet", &case.url("r.git"), "copy"]).await.unwrap();
    case.assert_served(&output);
    let log = case.run("git", &["-C", &case.path("copy"), "log", "--format=%s"]).await.unwrap();
    assert_eq!(log.stdout, b"first\n");
}

#[tokio::test]
async fn pip_downloads_from_a_listed_host() {
    const WHEEL: &str = "
import zipfile
info = 'demo_pkg-1.0.dist-info/'
with zipfile.ZipFile('files/demo_pkg-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('demo_pkg.py', '')
    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: demo-pkg\\nVersion: 1.0\\n')
    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: a\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(info + 'RECORD', '')
";
    let case = Case::new().await;
    let Some(made) = case.run("python3", &["-c", WHEEL]).await else { return };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::create_dir_all(case.place.path().join("files/simple/demo-pkg")).unwrap();
    let page = "<a href=\"/demo_pkg-1.0-py3-none-any.whl\">demo_pkg-1.0-py3-none-any.whl</a>";
    std::fs::write(case.place.path().join("files/simple/demo-pkg/index.html"), page).unwrap();
    let (ca, index) = (case.path("ca.pem"), case.url("simple/"));
    let args =
        ["-m", "pip", "--isolated", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"];
    let args = [&args[..], &["--cert", &ca, "--index-url", &index, "--dest", "got", "demo-pkg"]].concat();
    let output = case.run("python3", &args).await.unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("No module named pip") {
        println!("pip: left out: it is not installed");
        return;
    }
    case.assert_served(&output);
    assert!(case.place.path().join("got/demo_pkg-1.0-py3-none-any.whl").exists());
}

#[tokio::test]
async fn npm_reads_from_a_listed_host() {
    let case = Case::new().await;
    let version = format!(
        "{{\"name\":\"demo-pkg\",\"version\":\"1.2.3\",\"dist\":{{\"tarball\":\"{}\",\"shasum\":\"{}\"}}}}",
        case.url("demo-pkg.tgz"),
        "0".repeat(40)
    );
    let packument = format!(
        "{{\"name\":\"demo-pkg\",\"dist-tags\":{{\"latest\":\"1.2.3\"}},\"versions\":{{\"1.2.3\":{version}}}}}"
    );
    std::fs::write(case.place.path().join("files/demo-pkg"), packument).unwrap();
    let (ca, registry) = (case.path("ca.pem"), case.url(""));
    let args =
        ["view", "demo-pkg", "version", "--registry", &registry, "--cafile", &ca, "--fetch-retries", "0"];
    let Some(output) = case.run("npm", &[&args[..], &["--no-update-notifier"]].concat()).await else {
        return;
    };
    case.assert_served(&output);
    assert_eq!(output.stdout.trim_ascii(), b"1.2.3");
}
