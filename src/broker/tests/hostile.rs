//! Requests that are not what they seem, over raw sockets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::site::{Child, SOON, Setup, Site, read_to_end};
use super::standin::{StandIn, message};
use crate::broker::forward::MAX_BODY_BYTES;
use crate::config;

async fn api() -> (StandIn, Site) {
    (StandIn::new(|_| message()).await, Site::new(Setup::default()))
}

/// A request with the token in its head. `{}` stands for the token.
fn head(child: &Child, lines: &str) -> Vec<u8> {
    lines.replace("{}", &child.token).into_bytes()
}

/// Whatever a request smuggles behind another, the API sees whole requests with one length, and only paths that may be.
#[tokio::test]
async fn no_request_is_smuggled() {
    const POST: &str = "POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\n";
    const HIDDEN: &str = "GET /v1/files HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\n\r\n";
    let (api, site) = api().await;
    let child = site.child(&format!("http://{}", api.address));
    // What is sent, and the status of the only response.
    for (name, request, status) in [
        (
            "length, then coding",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n<HIDDEN>",
            "411",
        ),
        (
            "coding, then length",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n<HIDDEN>",
            "411",
        ),
        ("coding alone", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n<HIDDEN>", "411"),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 60\r\n\r\n<HIDDEN>", "400"),
        ("list of lengths", "Content-Length: 0, 60\r\n\r\n<HIDDEN>", "400"),
        ("signed length", "Content-Length: +5\r\n\r\nabcde", "400"),
        ("hexadecimal length", "Content-Length: 0x5\r\n\r\nabcde", "400"),
        ("huge length", "Content-Length: 99999999999999999999\r\n\r\n", "400"),
        ("other coding", "Transfer-Encoding: identity\r\n\r\n<HIDDEN>", "400"),
        ("coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("coding not last", "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "400"),
        ("hidden coding", "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400"),
        ("space before colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400"),
        ("folded line", "X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n", "400"),
        ("line without colon", "Transfer-Encoding\r\n\r\n", "400"),
        ("carriage return alone", "X-A: b\rTransfer-Encoding: chunked\r\n\r\n", "400"),
        ("NUL in a value", "X-A: b\0c\r\n\r\n", "400"),
        ("two hosts", "Host: b\r\n\r\n", "400"),
        ("upgrade", "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", "400"),
        (
            "HTTP/2 upgrade",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
            "400",
        ),
        ("bad chunk", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "411"),
    ] {
        let text = format!("{POST}{}", request.replace("<HIDDEN>", HIDDEN));
        let mut stream = TcpStream::connect(child.address).await.unwrap();
        stream.write_all(&head(&child, &text)).await.unwrap();
        stream.shutdown().await.ok();
        let answer = read_to_end(&mut stream).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer}");
        assert!(api.received().is_empty(), "{name}: {:?}", api.received());
    }
    // Two requests in one piece are two requests.
    let both =
        format!("{POST}Content-Length: 2\r\n\r\nab{POST}Connection: close\r\nContent-Length: 2\r\n\r\ncd");
    let answer = child.raw(&head(&child, &both)).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let bodies: Vec<_> = api.received().into_iter().map(|received| received.body).collect();
    assert_eq!(bodies, ["ab", "cd"]);
}

/// Lines that end in LF alone are two things to two programs. They are taken as lines, and written again with CR LF.
#[tokio::test]
async fn bare_line_feeds_reach_nobody() {
    let (api, site) = api().await;
    let child = site.child(&format!("http://{}", api.address));
    let request = "POST /v1/messages HTTP/1.1\nHost: a\nx-api-key: {}\nx-app: b\nContent-Length: 2\nConnection: close\n\nab";
    let answer = child.raw(&head(&child, request)).await;
    let received = api.received();
    assert_eq!(received.len(), usize::from(answer.starts_with("HTTP/1.1 200")), "{answer}");
    for received in received {
        assert_eq!((received.header("x-app"), received.header("content-length")), (Some("b"), Some("2")));
        assert_eq!(received.body, "ab");
    }
}

#[tokio::test]
async fn other_forms_of_targets_are_refused() {
    let (api, site) = api().await;
    let child = site.child(&format!("http://{}/base", api.address));
    let bait = StandIn::new(|_| message()).await;
    let own = bait.address;
    for (target, status) in [
        (format!("GET http://{own}/v1/models"), 407),
        (format!("GET https://{own}/v1/models"), 400),
        (format!("CONNECT {own}"), 407),
        ("CONNECT /v1/models".to_owned(), 400),
        ("OPTIONS *".to_owned(), 404),
        ("GET *".to_owned(), 404),
        (format!("GET //{own}/v1/models"), 404),
        (format!("GET /\\{own}/v1/models"), 404),
        (format!("GET @{own}/v1/models"), 400),
        ("GET /v1/models/../../admin".to_owned(), 404),
        ("GET /v1/models/%2e%2e/%2e%2e/admin".to_owned(), 404),
        ("GET /v1/models/..%2f..%2fadmin".to_owned(), 404),
        ("GET /v1/models/a%0d%0aX:b".to_owned(), 404),
        ("DELETE /v1/files/1".to_owned(), 404),
        ("POST /v1/messages/batches".to_owned(), 404),
        ("TRACE /v1/messages".to_owned(), 404),
        ("PRI * HTTP/2.0\r\n\r\nSM".to_owned(), 400),
    ] {
        let request = format!("{target} HTTP/1.1\r\nHost: a\r\nx-api-key: {{}}\r\nConnection: close\r\n\r\n");
        let answer = child.raw(&head(&child, &request)).await;
        let found = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(400);
        assert_eq!(found, status, "{target}: {answer}");
    }
    assert!(api.received().is_empty() && bait.received().is_empty() && bait.connections() == 0);
}

#[tokio::test]
async fn too_much_is_refused() {
    let (api, site) = api().await;
    let child = site.child(&format!("http://{}", api.address));
    let with = |lines: &str| {
        head(&child, &format!("POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {{}}\r\n{lines}\r\n"))
    };
    let many = "x-a: b\r\n".repeat(200);
    let long = format!("x-a: {}\r\n", "b".repeat(200 << 10));
    for (name, request, status) in [
        ("many headers", with(&many), "431"),
        ("long header", with(&long), "431"),
        (
            "long target",
            head(&child, &format!("GET /v1/models/{} HTTP/1.1\r\n\r\n", "a".repeat(100 << 10))),
            "414",
        ),
        ("long body", with(&format!("Content-Length: {}\r\n", MAX_BODY_BYTES + 1)), "413"),
    ] {
        let mut stream = TcpStream::connect(child.address).await.unwrap();
        stream.write_all(&request).await.ok();
        let answer = read_to_end(&mut stream).await;
        // The answer may be lost with a reset when much was left unread.
        let found = answer.split(' ').nth(1).unwrap_or(status);
        assert_eq!(found, status, "{name}: {answer}");
    }
    assert!(api.received().is_empty());
    site.until("broker_refusals_total", "reason=too_large", 1.0).await;
}

/// A child that sends one byte now and then gets no more time than one that sends nothing.
#[tokio::test(start_paused = true)]
async fn slow_requests_are_given_up() {
    let api = StandIn::new(|_| message()).await;
    let config = config::Broker { idle_timeout: Duration::from_secs(5), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let child = site.child(&format!("http://{}", api.address));
    let mut slow_head = TcpStream::connect(child.address).await.unwrap();
    slow_head.write_all(b"POST /v1/mess").await.unwrap();
    let mut slow_body = TcpStream::connect(child.address).await.unwrap();
    let request =
        head(&child, "POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: 9\r\n\r\nab");
    slow_body.write_all(&request).await.unwrap();
    let answer = read_slowly(&mut slow_body).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let answer = read_slowly(&mut slow_head).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    site.until("broker_connections", "", 0.0).await;
}

/// As [`read_to_end`], on a clock that jumps to the next timer.
async fn read_slowly(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(Duration::from_secs(300), stream.read_to_end(&mut answer)).await.expect("an end").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Ten thousand attempts hold 128 connections and no others up, and what comes after them is served.
#[tokio::test]
async fn many_connections_are_bounded() {
    const ATTEMPTS: usize = 10_000;
    const AT_ONCE: usize = 500;
    let (api, site) = api().await;
    let (greedy, modest) =
        (site.child(&format!("http://{}", api.address)), site.child(&format!("http://{}", api.address)));
    let mut most = 0.0_f64;
    for _ in 0..ATTEMPTS / AT_ONCE {
        let mut attempts = JoinSet::new();
        for _ in 0..AT_ONCE {
            let address = greedy.address;
            attempts
                .spawn(async move { timeout(Duration::from_millis(300), TcpStream::connect(address)).await });
        }
        let held = attempts.join_all().await;
        most = most.max(site.metric("broker_connections", ""));
        assert_eq!(timeout(SOON, modest.message().send()).await.expect("an answer").unwrap().status(), 200);
        drop(held);
    }
    // One more is the other child's.
    assert!(most > 100.0 && most <= 129.0, "{most} connections");
    assert_eq!(timeout(SOON, greedy.message().send()).await.expect("an answer").unwrap().status(), 200);
}
