//! The proxy to hosts of the allow list.
//!
//! Names are resolved here. Each address is checked, and exactly a checked address is connected to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use url::Host;

use super::address::{is_own, is_public};
use super::body::{Body, BodyError, Limited, full};
use super::connection::Held;
use super::endpoint::EndpointState;
use super::forward::MAX_BODY_BYTES;
use super::headers;
use super::refusal::Refusal;
use super::tunnel::{self, Counted};
use crate::config::{Egress, EgressHost};
use crate::telemetry::metrics::{BrokerRefusal, EgressOutcome};

/// Addresses of a name that are looked at: large sites have eight.
const MAX_ADDRESSES: usize = 32;

/// A host of the allow list.
#[derive(Debug, PartialEq)]
enum Allowed {
    /// An address that the operator wrote.
    Address(IpAddr),
    /// A name, whose addresses are not known yet.
    Name(String),
}

/// Answers CONNECT: the connection becomes a tunnel to the host.
pub(super) async fn tunnel(
    state: &Arc<EndpointState>,
    held: Arc<Held>,
    request: Request<Incoming>,
    host: &str,
    port: u16,
) -> Result<Response<Body>, Refusal> {
    let stream = dial(state, host, port).await?;
    let upgrade = hyper::upgrade::on(request);
    let idle = state.shared.config.idle_timeout;
    let task = async move {
        // The slot is free when the tunnel ends.
        let _held = held;
        if let Ok(child) = upgrade.await {
            tunnel::run(TokioIo::new(child), stream, idle).await;
        }
    };
    state.shared.tasks.spawn(state.ended.clone().run_until_cancelled_owned(task));
    Ok(Response::new(full("")))
}

/// Forwards one plain HTTP request, on a connection of its own.
pub(super) async fn plain(
    state: &Arc<EndpointState>,
    request: Request<Incoming>,
    host: &str,
    port: u16,
) -> Result<Response<Body>, Refusal> {
    let stream = dial(state, host, port).await?;
    let broken = |_| Refusal::host_unreachable();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driving = async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a host of the allow list ended early");
        }
    };
    state.shared.tasks.spawn(state.ended.clone().run_until_cancelled_owned(driving));
    let (parts, body) = request.into_parts();
    let authority =
        parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let target = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
    let idle = state.shared.config.idle_timeout;
    let body = Limited::new(body, MAX_BODY_BYTES, idle);
    let mut forwarded = Request::new(body.map_err(BodyError::from).boxed_unsync());
    *forwarded.method_mut() = parts.method;
    *forwarded.uri_mut() = target;
    *forwarded.headers_mut() = headers::to_host(parts.headers);
    let authority = authority.ok_or_else(|| Refusal::malformed("the target must be a host with a port"))?;
    forwarded.headers_mut().insert(HOST, authority);
    forwarded.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let answered = timeout(state.shared.config.first_byte_timeout, sender.send_request(forwarded)).await;
    let response = answered.map_err(|_| Refusal::host_unreachable())?.map_err(broken)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::host_unreachable());
    }
    let (mut parts, body) = response.into_parts();
    parts.headers = headers::from_host(parts.headers);
    parts.extensions = Default::default();
    // Downloads have no limit; their connection does.
    let body = Limited::new(body, u64::MAX, idle);
    Ok(Response::from_parts(parts, body.map_err(BodyError::from).boxed_unsync()))
}

/// Connects to a host of the allow list.
async fn dial(state: &Arc<EndpointState>, host: &str, port: u16) -> Result<Counted<TcpStream>, Refusal> {
    let metrics = &state.shared.metrics;
    let connected = connect(state, host, port).await;
    metrics.egress_connections.increment(match &connected {
        Ok(_) => EgressOutcome::Connected,
        Err(refusal) if refusal.reason == BrokerRefusal::Egress => EgressOutcome::NotAllowed,
        Err(refusal) if refusal.reason == BrokerRefusal::Address => EgressOutcome::Address,
        Err(_) => EgressOutcome::Failed,
    });
    let stream = connected?;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY: small writes will be delayed");
    }
    Ok(Counted::new(stream, metrics.clone()))
}

async fn connect(state: &EndpointState, host: &str, port: u16) -> Result<TcpStream, Refusal> {
    let Egress::Allow(hosts) = &state.plan.egress else { return Err(Refusal::not_allowed()) };
    let limit = state.shared.config.connect_timeout;
    let addresses = match allowed(hosts, host, port)? {
        Allowed::Address(address) => vec![SocketAddr::new(address, port)],
        Allowed::Name(name) => {
            let found = timeout(limit, resolve(state, name, port)).await;
            checked(found.map_err(|_| Refusal::host_unreachable())??, is_own)?
        }
    };
    let connect = async {
        for address in addresses {
            if let Ok(stream) = TcpStream::connect(address).await {
                return Ok(stream);
            }
        }
        Err(Refusal::host_unreachable())
    };
    timeout(limit, connect).await.unwrap_or_else(|_| Err(Refusal::host_unreachable()))
}

/// The addresses of a name. A lookup occupies a thread until the resolver answers, even if nobody waits any more, so its
/// permit is held as long.
async fn resolve(state: &EndpointState, name: String, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
    let acquired = state.shared.lookups.clone().acquire_owned().await;
    let permit = acquired.map_err(|_| Refusal::host_unreachable())?;
    let lookup = async move {
        let _permit = permit;
        lookup_host((name.as_str(), port)).await.ok().map(|found| found.take(MAX_ADDRESSES).collect())
    };
    let lookup = state.shared.tasks.spawn(state.shared.ended.clone().run_until_cancelled_owned(lookup));
    lookup.await.ok().flatten().flatten().ok_or_else(Refusal::host_unreachable)
}

/// Looks a target up in the list. Every spelling of an address is that address.
fn allowed(hosts: &[EgressHost], host: &str, port: u16) -> Result<Allowed, Refusal> {
    let host = Host::parse(host).map_err(|_| Refusal::not_allowed())?;
    let found = match &host {
        Host::Domain(name) => (Host::Domain(name.as_str()), Allowed::Name(name.clone())),
        Host::Ipv4(address) => (Host::Ipv4(*address), Allowed::Address((*address).into())),
        Host::Ipv6(address) => (Host::Ipv6(*address), Allowed::Address((*address).into())),
    };
    let (host, allowed) = found;
    let is_listed = hosts.iter().any(|listed| listed.names(&host, port));
    if is_listed { Ok(allowed) } else { Err(Refusal::not_allowed()) }
}

/// The addresses of a name, if every one is on the internet and none is this machine's: a name with one other address is not
/// trusted at all. The server's own listener may have a public address.
fn checked(addresses: Vec<SocketAddr>, is_own: impl Fn(IpAddr) -> bool) -> Result<Vec<SocketAddr>, Refusal> {
    if addresses.is_empty() {
        return Err(Refusal::host_unreachable());
    }
    let all_public = addresses.iter().all(|address| is_public(address.ip()));
    if all_public && !addresses.iter().any(|address| is_own(address.ip())) {
        Ok(addresses)
    } else {
        Err(Refusal::address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &[&str]) -> Vec<EgressHost> {
        list.iter().map(|host| EgressHost::try_from((*host).to_owned()).unwrap()).collect()
    }

    #[test]
    fn only_listed_hosts_and_ports_are_allowed() {
        let hosts = hosts(&["github.com:443", "*.pypi.example:443", "10.1.2.3:8080", "[fd00::1]:81"]);
        let name = |name: &str| Ok(Allowed::Name(name.to_owned()));
        let address = |address: &str| Ok(Allowed::Address(address.parse().unwrap()));
        let of = |host: &str, port| allowed(&hosts, host, port);
        assert_eq!(of("GitHub.com", 443), name("github.com"));
        assert_eq!(of("files.pypi.example", 443), name("files.pypi.example"));
        for spelling in ["10.1.2.3", "10.66051", "0x0a010203", "167838211", "012.1.2.3"] {
            assert_eq!(of(spelling, 8080), address("10.1.2.3"), "{spelling}");
        }
        assert_eq!(of("[fd00:0:0::1]", 81), address("fd00::1"));
        for (host, port) in [
            ("github.com", 80),
            ("github.com", 22),
            ("github.com.", 443),
            ("evil-github.com", 443),
            ("github.com.evil.example", 443),
            ("pypi.example", 443),
            ("evilpypi.example", 443),
            ("10.1.2.3", 443),
            ("10.1.2.4", 8080),
            ("127.0.0.1", 443),
            ("[::ffff:10.1.2.3]", 8080),
            ("localhost", 443),
            ("github.com/", 443),
            ("github.com#", 443),
            ("", 443),
            ("git hub.com", 443),
        ] {
            assert_eq!(of(host, port), Err(Refusal::not_allowed()), "{host}:{port}");
        }
    }

    #[test]
    fn one_private_address_refuses_the_name() {
        let own: IpAddr = "9.9.9.9".parse().unwrap();
        let of = |list: &[&str]| {
            checked(list.iter().map(|address| address.parse().unwrap()).collect(), |address| address == own)
        };
        assert_eq!(of(&["1.1.1.1:443", "[2606:4700::1]:443"]).unwrap().len(), 2);
        for list in [
            &["127.0.0.1:443"][..],
            &["1.1.1.1:443", "10.0.0.1:443"],
            &["[::ffff:1.1.1.1]:443"],
            &["[64:ff9b::7f00:1]:443"],
            &["169.254.169.254:80"],
            // An address of this machine.
            &["1.1.1.1:443", "9.9.9.9:443"],
        ] {
            assert_eq!(of(list), Err(Refusal::address()), "{list:?}");
        }
        assert_eq!(of(&[]), Err(Refusal::host_unreachable()));
    }
}
