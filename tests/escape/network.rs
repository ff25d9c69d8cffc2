//! Network: the server's listeners, other addresses, other protocols, Unix sockets.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::common::ports::kept_port;
use crate::findings::{self, Findings};
use crate::observers::{Datagrams, Port, UnixPort, outside_address};
use crate::rungs::Term;
use crate::scene::{ALICE, MALLORY, Scene, give, unique_number};

/// The port at the end of a URL.
fn port_of(url: &str) -> String {
    url.rsplit(':').next().expect("a port").to_owned()
}

fn request(path: &str) -> String {
    format!(r"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
}

async fn attack(scene: &Scene, findings: &mut Findings) {
    let mut judge = |name: &str, gained: bool, seen: &str| findings.judge(&scene.walls, name, gained, seen);

    let (public, admin) = (port_of(&scene.site.http), port_of(&scene.site.admin));
    for (kind, name) in [("tcp", "public-listener"), ("multipath", "other-ways"), ("fastopen", "other-ways")]
    {
        let printed = scene.attempt(&[kind, "127.0.0.1", &public, &request("/livez")]).await;
        judge(name, printed.contains("HTTP/1.1 200"), &printed);
    }
    for (kind, name) in [("tcp", "admin-listener"), ("multipath", "other-ways"), ("fastopen", "other-ways")] {
        let printed = scene.attempt(&[kind, "127.0.0.1", &admin, &request("/metrics")]).await;
        judge(name, printed.contains(&scene.secrets.metrics), &printed);
    }

    model(scene, &mut judge).await;

    let outside = outside_address().to_string();
    for (kind, host) in [("tcp", "127.0.0.1"), ("tcp", outside.as_str()), ("tcp6", "::1")] {
        let port = Port::open();
        let printed = scene.attempt(&[kind, host, &port.number.to_string(), "x"]).await;
        judge("other-address", port.accepted(&printed), &printed);
    }
    // The port that the child may use, at an address that nothing else of this host has.
    let url = scene.variable(MALLORY, "ANTHROPIC_BASE_URL").await;
    let number = port_of(url.trim_end_matches('/')).parse().expect("a number");
    let [_, second, third, fourth] = unique_number().to_be_bytes();
    let address = Ipv4Addr::new(127, second | 1, third, fourth | 1);
    let port = Port::at(address, number);
    let printed = scene.attempt(&["tcp", &address.to_string(), &number.to_string(), "x"]).await;
    judge("own-port-elsewhere", port.accepted(&printed), &printed);
    let datagrams = Datagrams::open();
    let printed = scene.attempt(&["udp", "127.0.0.1", &datagrams.port().to_string(), "question"]).await;
    judge("udp", datagrams.received("question"), &printed);

    let port = kept_port();
    let look = async || TcpStream::connect(("127.0.0.1", port)).is_ok();
    let (gained, printed) = scene.holding(&["offer", &port.to_string()], look).await;
    judge("offered-port", gained, &printed);

    let name = format!("@escape-{}", uuid::Uuid::new_v4());
    let socket = UnixPort::open(&name);
    let printed = scene.attempt(&["unix", &name, "x"]).await;
    judge("abstract-socket", socket.accepted(&printed), &printed);

    let path = scene.place.path().join("docker.sock");
    let path_text = path.display().to_string();
    let socket = UnixPort::open(&path_text);
    own(scene, &path);
    let printed = scene.attempt(&["unix", &path_text, "x"]).await;
    judge("path-socket", socket.accepted(&printed), &printed);
}

/// The way to the model's API: the operator's key, and the endpoint of another session.
async fn model(scene: &Scene, judge: &mut impl FnMut(&str, bool, &str)) {
    let printed = scene.attempt(&["search"]).await;
    judge("operators-key", printed.contains(&scene.secrets.operator), &printed);
    // Without a broker these are the API and the operator's key themselves.
    let url = scene.variable(ALICE, "ANTHROPIC_BASE_URL").await;
    let port = port_of(url.trim_end_matches('/'));
    // In a network of its own, the same address leads to its own endpoint.
    let is_own =
        scene.walls.has(Term::Namespaces) && url == scene.variable(MALLORY, "ANTHROPIC_BASE_URL").await;
    for (owner, name) in [(ALICE, "model-of-others"), (MALLORY, "model-of-others-own-token")] {
        if is_own && owner == MALLORY {
            continue;
        }
        let token = scene.variable(owner, "ANTHROPIC_API_KEY").await;
        let marker = uuid::Uuid::new_v4().to_string();
        let body =
            json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": marker }] });
        let head = format!(
            r"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: {token}\r\ncontent-type: application/json\r\n"
        );
        let request =
            format!(r"{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.to_string().len());
        let printed = scene.attempt(&["tcp", "127.0.0.1", &port, &request]).await;
        judge(name, scene.api.requests().iter().any(|request| request.last() == marker), &printed);
    }
}

/// For the server's user alone.
fn own(scene: &Scene, path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    give(if scene.walls.has(Term::Root) { Term::Root } else { Term::Unprivileged }, path);
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_network_is_out_of_reach() {
    findings::simulated(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn escape_network_by_the_real_cli() {
    findings::real(attack).await;
}
