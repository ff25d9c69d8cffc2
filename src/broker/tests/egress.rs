//! The proxy to other hosts.

use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::site::{Child, SOON, Setup, Site, read_to_end};
use super::standin::{StandIn, message};
use crate::config::{Egress, EgressHost};

fn allow(hosts: &[String]) -> Setup {
    let hosts = hosts.iter().map(|host| EgressHost::try_from(host.clone()).unwrap()).collect();
    Setup { egress: Egress::Allow(hosts), ..Setup::default() }
}

/// Sends CONNECT; returns the connection and the head of the answer.
async fn connect(child: &Child, target: &str, token: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(child.address).await.unwrap();
    let basic = STANDARD.encode(format!("pilotlight:{token}"));
    let request =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic {basic}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, stream.read_u8()).await.expect("a head").unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}

#[tokio::test]
async fn tunnel_leads_to_listed_addresses_only() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let listed = listener.local_addr().unwrap();
    let port = listed.port();
    let other = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let site = Site::new(allow(&[listed.to_string(), format!("localhost:{port}")]));
    let child = site.child("http://127.0.0.1:9/");
    let (mut stream, head) = connect(&child, &listed.to_string(), &child.token).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (mut host, _) = listener.accept().await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut four = [0; 4];
    host.read_exact(&mut four).await.unwrap();
    host.write_all(b"pong").await.unwrap();
    stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");
    site.until("egress_bytes_total", "direction=sent", 4.0).await;
    site.until("egress_bytes_total", "direction=received", 4.0).await;
    for (target, token, status, code) in [
        // Listed, but its addresses are this machine's.
        (format!("localhost:{port}"), child.token.as_str(), 403, "egress_address"),
        (other.to_string(), &child.token, 403, "egress_not_allowed"),
        (format!("127.0.0.2:{port}"), &child.token, 403, "egress_not_allowed"),
        (format!("[::ffff:127.0.0.1]:{port}"), &child.token, 403, "egress_not_allowed"),
        ("169.254.169.254:80".to_owned(), &child.token, 403, "egress_not_allowed"),
        (child.address.to_string(), &child.token, 403, "egress_not_allowed"),
        (listed.to_string(), "wrong", 407, "invalid_token"),
    ] {
        let (mut stream, head) = connect(&child, &target, token).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {head}");
        let mut body = vec![0; 40];
        stream.read_exact(&mut body).await.unwrap();
        let length: usize =
            head.split("content-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
        let mut rest = vec![0; length - body.len()];
        stream.read_exact(&mut rest).await.unwrap();
        body.extend(rest);
        assert!(String::from_utf8(body).unwrap().contains(code), "{target}");
        if status == 407 {
            assert!(head.contains("proxy-authenticate: Basic"), "{head}");
        }
    }
    assert_eq!(site.metric("egress_connections_total", "outcome=address"), 1.0);
    assert_eq!(site.metric("egress_connections_total", "outcome=not_allowed"), 5.0);
    // A tunnel is a connection, and ends with the child.
    assert!(site.metric("broker_connections", "") >= 1.0);
    drop(child);
    assert_eq!(timeout(SOON, host.read(&mut four)).await.expect("an end").unwrap_or(0), 0);
    assert_eq!(read_to_end(&mut stream).await, "");
    site.until("broker_connections", "", 0.0).await;
}

#[tokio::test]
async fn without_a_list_there_is_no_proxy() {
    let bait = StandIn::new(|_| message()).await;
    for egress in [Egress::Api, Egress::Open, Egress::Allow(Vec::new())] {
        let site = Site::new(Setup { egress, ..Setup::default() });
        let child = site.child("http://127.0.0.1:9/");
        let (_, head) = connect(&child, &bait.address.to_string(), &child.token).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    }
    assert_eq!(bait.connections(), 0);
}

#[tokio::test]
async fn closed_port_is_an_error_of_the_host() {
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let site = Site::new(allow(&[closed.to_string(), "nowhere.invalid:443".to_owned()]));
    let child = site.child("http://127.0.0.1:9/");
    for target in [closed.to_string(), "nowhere.invalid:443".to_owned()] {
        let (_, head) = connect(&child, &target, &child.token).await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    }
}

/// Plain HTTP goes through as well, with the child's own headers but without the token.
#[tokio::test]
async fn plain_request_is_forwarded_without_the_token() {
    let host = StandIn::at(Ipv4Addr::LOCALHOST, None, |received| {
        let location = if received.target == "/to" { "http://169.254.169.254/" } else { "/" };
        let mut response = message();
        response.headers_mut().insert("location", location.parse().unwrap());
        response
    })
    .await;
    let site = Site::new(allow(&[host.address.to_string()]));
    let child = site.child("http://127.0.0.1:9/");
    let proxy = format!("http://pilotlight:{}@{}", child.token, child.address);
    let client = reqwest::Client::builder()
        .proxy(reqwest::Proxy::all(proxy).unwrap())
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let url = format!("http://{}/simple/a?b=c", host.address);
    let answer = client.get(&url).header("cookie", "own=1").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let received = host.only();
    assert_eq!(received.target, "/simple/a?b=c");
    assert_eq!(received.header("host"), Some(host.address.to_string().as_str()));
    assert_eq!(received.header("cookie"), Some("own=1"));
    assert!(!format!("{received:?}").contains(&child.token), "{received:?}");
    assert_eq!(received.header("proxy-authorization"), None);
    let refused = client.get("http://127.0.0.1:1/").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    // The name in the header is that of the checked target.
    let raw = format!(
        "GET http://{}/x HTTP/1.1\r\nHost: evil.example\r\nProxy-Authorization: Bearer {}\r\nConnection: close\r\n\r\n",
        host.address, child.token
    );
    let answer = child.raw(raw.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(host.received()[1].header("host"), Some(host.address.to_string().as_str()));
}
