//! Requests that are forwarded, and their responses.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::site::{SOON, Setup, Site, client, session, upstream, user};
use super::standin::{Authority, StandIn, json, message, streamed};
use crate::config;
use crate::model::Usage;
use crate::spend::EndedTurn;

#[tokio::test]
async fn real_key_replaces_the_token() {
    let api = StandIn::new(|_| message()).await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}/gateway/", api.address));
    let answer = client()
        .post(child.url("/v1/messages?beta=true"))
        .bearer_auth(&child.token)
        .header("x-api-key", "of-the-child")
        .header("cookie", "a=b")
        .header("proxy-authorization", "Basic x")
        .header("x-forwarded-for", "1.2.3.4")
        .header("anthropic-beta", "some")
        .header("accept-encoding", "gzip")
        .body("{\"a\":1}")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let received = api.only();
    assert_eq!(
        (received.method.as_str(), received.target.as_str()),
        ("POST", "/gateway/v1/messages?beta=true")
    );
    assert_eq!(received.header("x-api-key"), Some("real-key"));
    assert_eq!(received.header("host"), Some(api.address.to_string().as_str()));
    assert_eq!(received.header("anthropic-beta"), Some("some"));
    assert_eq!(received.header("accept-encoding"), Some("identity"));
    assert_eq!(received.header("content-length"), Some("7"));
    for name in ["authorization", "cookie", "proxy-authorization", "x-forwarded-for", "transfer-encoding"] {
        assert_eq!(received.header(name), None, "{name}");
    }
    assert_eq!(received.body, "{\"a\":1}");
    assert!(!format!("{received:?}").contains(&child.token));
    assert_eq!(site.metric("upstream_requests_total", "status=2xx"), 1.0);
    assert_eq!(site.metric("upstream_first_byte_seconds", ""), 1.0);
}

/// Each piece arrives before the next one is sent: nothing is collected on the way.
#[tokio::test]
async fn stream_is_passed_on_piece_by_piece() {
    let (send, receive) = mpsc::channel(1);
    let receive = Mutex::new(Some(receive));
    let api = StandIn::new(move |_| streamed(receive.lock().unwrap().take().unwrap())).await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}", api.address));
    let mut answer = timeout(SOON, child.message().send()).await.expect("the head").unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    for piece in [
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-haiku-4-5\",\"usage\":",
        "{\"input_tokens\":100,\"output_tokens\":1}}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":50}}\n\n",
    ] {
        send.send(Bytes::from(piece)).await.unwrap();
        let arrived = timeout(SOON, answer.chunk()).await.expect("the piece").unwrap().unwrap();
        assert_eq!(arrived, piece);
    }
    assert_eq!(site.metric("upstream_in_flight", ""), 1.0);
    drop(send);
    assert_eq!(timeout(SOON, answer.chunk()).await.expect("the end").unwrap(), None);
    site.until("upstream_in_flight", "", 0.0).await;
    assert_eq!(site.metric("upstream_tokens_total", "model=haiku,kind=input"), 100.0);
    assert_eq!(site.metric("upstream_tokens_total", "model=haiku,kind=output"), 50.0);
}

/// What the child gives up ends at the API too: nobody pays for an answer without a reader.
#[tokio::test]
async fn response_that_is_given_up_ends_at_the_api() {
    let (send, receive) = mpsc::channel(1);
    let receive = Mutex::new(Some(receive));
    let api = StandIn::new(move |_| streamed(receive.lock().unwrap().take().unwrap())).await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}", api.address));
    let mut answer = child.message().send().await.unwrap();
    let begin = "data: {\"message\":{\"model\":\"claude-opus-4-5\",\"usage\":{\"input_tokens\":7}}}\n\n";
    send.send(Bytes::from(begin)).await.unwrap();
    answer.chunk().await.unwrap();
    drop(answer);
    timeout(SOON, send.closed()).await.expect("the API sees the end");
    site.until("upstream_tokens_total", "kind=input", 7.0).await;
    assert_eq!(site.metric("upstream_in_flight", ""), 0.0);
}

#[tokio::test]
async fn own_authority_is_trusted_and_no_other() {
    let (own, other) = (Authority::new(Ipv4Addr::LOCALHOST), Authority::new(Ipv4Addr::LOCALHOST));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &own.pem).unwrap();
    let trusting = || Setup {
        config: config::Broker { ca_file: Some(file.path().into()), ..Default::default() },
        ..Setup::default()
    };
    for (authority, setup, expected) in
        [(&own, trusting(), 200), (&other, trusting(), 502), (&own, Setup::default(), 502)]
    {
        let api = StandIn::with_tls(authority, |_| message()).await;
        let site = Site::new(setup);
        let child = site.child(&format!("https://{}", api.address));
        let answer = child.message().send().await.unwrap();
        assert_eq!(answer.status(), expected);
        assert_eq!(api.received().len(), usize::from(expected == 200));
        if expected == 200 {
            // The connection is used again.
            child.message().send().await.unwrap();
            assert_eq!((api.received().len(), api.connections()), (2, 1));
        }
    }
}

#[tokio::test]
async fn answers_pass_with_their_status_and_headers() {
    let answers = |received: &super::standin::Received| {
        let status = received.header("anthropic-status").unwrap().parse().unwrap();
        let mut response = json(status, r#"{"type":"error","error":{"type":"x","message":"y"}}"#);
        let headers = response.headers_mut();
        headers.insert("retry-after", "7".parse().unwrap());
        headers.insert("request-id", "req_1".parse().unwrap());
        headers.insert("set-cookie", "a=b".parse().unwrap());
        headers.insert("connection", "close, x-hop".parse().unwrap());
        headers.insert("x-hop", "1".parse().unwrap());
        response
    };
    let api = StandIn::new(answers).await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}", api.address));
    for (status, label) in
        [(200, "2xx"), (400, "4xx"), (401, "4xx"), (429, "429"), (500, "5xx"), (529, "529")]
    {
        let before = site.metric("upstream_requests_total", &format!("status={label}"));
        let sent = child
            .message()
            .header("anthropic-status", status.to_string())
            .header("x-stainless-retry-count", "1");
        let answer = sent.send().await.unwrap();
        assert_eq!(answer.status(), status);
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header("retry-after").as_deref(), Some("7"));
        assert_eq!(header("request-id").as_deref(), Some("req_1"));
        assert_eq!((header("set-cookie"), header("x-hop")), (None, None));
        assert!(answer.text().await.unwrap().contains("\"message\":\"y\""));
        assert_eq!(site.metric("upstream_requests_total", &format!("status={label}")), before + 1.0);
    }
    assert_eq!(site.metric("upstream_retries_total", ""), 6.0);
}

/// A redirection is never followed. One to another origin is not shown either: the child could follow it.
#[tokio::test]
async fn redirection_stays_at_the_origin() {
    let inside = StandIn::new(|_| message()).await;
    let secret = format!("http://{}/latest/meta-data", inside.address);
    let to = secret.clone();
    let api = StandIn::new(move |received| {
        let location =
            if received.header("anthropic-there").is_some() { to.as_str() } else { "/base/v1/models?a=b" };
        let mut response = json(307, "{}");
        response.headers_mut().insert("location", location.parse().unwrap());
        response
    })
    .await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}/base", api.address));
    let answer = child.message().send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()),
        (307, "/v1/models?a=b")
    );
    let answer = child.message().header("anthropic-there", "1").send().await.unwrap();
    assert_eq!(answer.status(), 502);
    assert!(!answer.headers().contains_key("location"));
    let body = answer.text().await.unwrap();
    assert!(body.contains("upstream_redirect") && !body.contains(&secret), "{body}");
    assert!(inside.received().is_empty());
    assert_eq!(site.metric("broker_refusals_total", "reason=redirect"), 1.0);
}

#[tokio::test]
async fn unreachable_api_is_an_error_of_the_api() {
    let address = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let site = Site::new(Setup::default());
    let answer = site.child(&format!("http://{address}")).message().send().await.unwrap();
    assert_eq!(answer.status(), 502);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["type"], "api_error");
    assert!(!body.to_string().contains(&address.to_string()), "{body}");
    assert_eq!(site.metric("upstream_requests_total", "status=none"), 1.0);
    // A user without credentials gets an explanation.
    let answer = site.child_of(None, session('b')).message().send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.unwrap().contains("cli.user_env_file"));
}

#[tokio::test]
async fn silent_api_is_given_up() {
    let (_send, receive) = mpsc::channel(1);
    let receive = Mutex::new(Some(receive));
    let api = StandIn::new(move |_| streamed(receive.lock().unwrap().take().unwrap())).await;
    let config = config::Broker { idle_timeout: Duration::from_millis(50), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let child = site.child(&format!("http://{}", api.address));
    let answer = child.message().send().await.unwrap();
    // The head was there; the body breaks off, and is not taken for a whole one.
    assert!(timeout(SOON, answer.text()).await.expect("an end").is_err());

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let config = config::Broker { first_byte_timeout: Duration::from_millis(50), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let child = site.child(&format!("http://{}", listener.local_addr().unwrap()));
    assert_eq!(child.message().send().await.unwrap().status(), 504);
}

#[tokio::test]
async fn spend_limit_counts_requests_of_the_turn() {
    let api = StandIn::new(|_| message()).await;
    let site = Site::new(Setup { usd_per_user_day: Some(0.001), ..Setup::default() });
    let child = site.child_of(Some(upstream(&format!("http://{}", api.address))), session('a'));
    // A request costs 550 millionths by list price; the CLI reports more at the end.
    for expected in [200, 200, 429] {
        let answer = child.message().send().await.unwrap();
        assert_eq!(answer.status(), expected);
        if expected == 429 {
            assert_eq!(answer.headers()["x-should-retry"], "false");
            assert!(answer.headers().contains_key("retry-after"));
            let body: Value = answer.json().await.unwrap();
            assert_eq!(
                (&body["error"]["type"], &body["error"]["code"]),
                (&"rate_limit_error".into(), &"spend_limit".into())
            );
        } else {
            answer.text().await.unwrap();
            site.until("upstream_in_flight", "", 0.0).await;
        }
    }
    assert_eq!(api.received().len(), 2);
    // Another session of the same user has no more, and lists are free.
    let other = site.child_of(Some(upstream(&format!("http://{}", api.address))), session('b'));
    assert_eq!(other.message().send().await.unwrap().status(), 429);
    let models = client().get(other.url("/v1/models")).bearer_auth(&other.token).send().await.unwrap();
    assert_eq!(models.status(), 200);
    let turn = EndedTurn { cost_usd: 0.5, usage: Usage::default(), is_metered: false, is_part: false };
    site.spend.turn_ended(&user(), &session('a'), turn);
    let statement = site.spend.statement(&user()).await.unwrap();
    assert_eq!(statement.today.unwrap().cost_usd(), 0.5);
}

/// On a host without a direct way the API is reached through a proxy: another broker with an allow list.
#[tokio::test]
async fn api_is_reached_through_a_proxy() {
    let authority = Authority::new(Ipv4Addr::LOCALHOST);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &authority.pem).unwrap();
    let api = StandIn::with_tls(&authority, |_| message()).await;
    let proxy =
        StandIn::new(|received| json(if received.method == "CONNECT" { 403 } else { 200 }, "{}")).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (address, target) = (listener.local_addr().unwrap(), api.address);
    let mut tunnels = tokio::task::JoinSet::new();
    tunnels.spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut child, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(child.read_u8().await.unwrap());
        }
        assert!(head.starts_with(format!("CONNECT {target} ").as_bytes()));
        child.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut host = tokio::net::TcpStream::connect(target).await.unwrap();
        tokio::io::copy_bidirectional(&mut child, &mut host).await.ok();
    });
    for (proxy, expected) in [(address, 200), (proxy.address, 502)] {
        let config = config::Broker {
            ca_file: Some(file.path().into()),
            proxy: Some(format!("http://{proxy}")),
            ..Default::default()
        };
        let site = Site::new(Setup { config, ..Setup::default() });
        let child = site.child(&format!("https://{}", api.address));
        assert_eq!(
            timeout(SOON, child.message().send()).await.expect("an answer").unwrap().status(),
            expected
        );
    }
    assert_eq!(api.received().len(), 1);
}
