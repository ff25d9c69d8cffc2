//! What happens at the same time.

use std::sync::Mutex;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::site::{SOON, Setup, Site, session, upstream, user};
use super::standin::{StandIn, message, streamed};
use crate::broker::Policy;
use crate::broker::slots::MAX_LIMITED;
use crate::config;
use crate::model::ids::UserId;

/// One user gets half of the slots over all sessions: the others of a second user are free at once.
#[tokio::test]
async fn slots_at_the_api_are_shared() {
    let streams = Mutex::new(Vec::new());
    let ends = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = ends.clone();
    let api = StandIn::new(move |_| {
        let (send, receive) = mpsc::channel(1);
        streams.lock().unwrap().push(());
        kept.lock().unwrap().push(send);
        streamed(receive)
    })
    .await;
    let config = config::Broker { upstream_concurrency: Some(4), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let base = format!("http://{}", api.address);
    let (greedy, second) = (site.child(&base), site.child_of(Some(upstream(&base)), session('b')));
    let bob = UserId::new("bob").unwrap();
    let modest = site.child_with(Some(upstream(&base)), session('c'), bob, Policy::default());
    let mut held = Vec::new();
    for child in [&greedy, &second, &modest, &modest] {
        held.push(timeout(SOON, child.message().send()).await.expect("a slot").unwrap());
    }
    assert_eq!(site.metric("upstream_in_flight", ""), 4.0);
    let waiting = greedy.message().send();
    let mut waiting = std::pin::pin!(waiting);
    assert!(timeout(Duration::from_millis(50), waiting.as_mut()).await.is_err());
    site.until("upstream_waiting", "", 1.0).await;
    // The end of a response frees its slot.
    drop(ends.lock().unwrap().remove(0));
    assert_eq!(timeout(SOON, waiting).await.expect("a slot").unwrap().status(), 200);
    site.until("upstream_waiting", "", 0.0).await;
}

/// One user alone gets all of them, until a child of another begins; a start beside the accounts of two knows that.
#[tokio::test]
async fn lone_user_gets_all_slots() {
    let ends = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = ends.clone();
    let api = StandIn::new(move |_| {
        let (send, receive) = mpsc::channel(1);
        kept.lock().unwrap().push(send);
        streamed(receive)
    })
    .await;
    let base = format!("http://{}", api.address);
    let config = || config::Broker { upstream_concurrency: Some(2), ..Default::default() };
    let site = Site::new(Setup { config: config(), ..Setup::default() });
    let children = [site.child(&base), site.child_of(Some(upstream(&base)), session('b'))];
    let mut held = Vec::new();
    for child in &children {
        held.push(timeout(SOON, child.message().send()).await.expect("a slot").unwrap());
    }
    let bob = UserId::new("bob").unwrap();
    let other = site.child_with(Some(upstream(&base)), session('c'), bob, Policy::default());
    ends.lock().unwrap().remove(0);
    held.remove(0).bytes().await.unwrap();
    let waiting = children[0].message().send();
    let mut waiting = std::pin::pin!(waiting);
    assert!(timeout(Duration::from_millis(50), waiting.as_mut()).await.is_err());
    let answer = timeout(SOON, other.message().send()).await.expect("a slot").unwrap();
    assert_eq!(answer.status(), 200);
}

/// A request whose body is still on its way holds no slot.
#[tokio::test]
async fn slow_body_holds_no_slot() {
    let api = StandIn::new(|_| message()).await;
    let config = config::Broker { upstream_concurrency: Some(1), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let child = site.child(&format!("http://{}", api.address));
    let mut slow = tokio::net::TcpStream::connect(child.address).await.unwrap();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: 2\r\n\r\n",
        child.token
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(b"{").await.unwrap();
    site.until("broker_connections", "", 1.0).await;
    let answer = timeout(SOON, child.message().send()).await.expect("a slot").unwrap();
    assert_eq!(answer.status(), 200);
    drop(answer);
    slow.write_all(b"}").await.unwrap();
    let mut status = [0; 12];
    timeout(SOON, slow.read_exact(&mut status)).await.expect("an answer").unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    assert_eq!(api.received()[1].body, "{}");
}

/// A child that reads nothing holds its own response up, and not for ever.
#[tokio::test]
async fn reader_that_stops_is_given_up() {
    let api = StandIn::new(|_| {
        let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'a'; 64 << 10]));
        axum::response::Response::new(axum::body::Body::from_stream(endless))
    })
    .await;
    let config = config::Broker { idle_timeout: Duration::from_millis(100), ..Default::default() };
    let site = Site::new(Setup { config, ..Setup::default() });
    let child = site.child(&format!("http://{}", api.address));
    let mut stream = tokio::net::TcpStream::connect(child.address).await.unwrap();
    let request = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {}\r\nContent-Length: 0\r\n\r\n",
        child.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    site.until("upstream_first_byte_seconds", "", 1.0).await;
    site.until("broker_connections", "", 0.0).await;
    site.until("upstream_in_flight", "", 0.0).await;
}

const BEGIN: &str = "data: {\"message\":{\"model\":\"claude-opus-4-5\",\"usage\":{\"input_tokens\":10,\"output_tokens\":1}}}\n\n";
const END: &str = "data: {\"usage\":{\"output_tokens\":1000000}}\n\n";

/// A child that ends a response early pays for what it has received, at least.
#[tokio::test]
async fn cut_response_is_charged_by_its_size() {
    let (send, receive) = mpsc::channel(4);
    let receive = Mutex::new(Some(receive));
    let api = StandIn::new(move |_| streamed(receive.lock().unwrap().take().unwrap())).await;
    // More than the reported tokens cost, and less than those that the size stands for.
    let site = Site::new(Setup { usd_per_user_day: Some(0.000_4), ..Setup::default() });
    let child = site.child(&format!("http://{}", api.address));
    send.send(BEGIN.into()).await.unwrap();
    let mut response = child.message().send().await.unwrap();
    response.chunk().await.unwrap();
    drop(response);
    site.until("upstream_in_flight", "", 0.0).await;
    assert_eq!(child.message().send().await.unwrap().status(), 429);
}

/// Nor does it help to be gone before the response begins, or that no usage ever comes.
#[tokio::test]
async fn child_that_leaves_before_the_response_is_charged() {
    for (pieces, limit) in [([BEGIN, END], 20.0), ([BEGIN, ": no usage\n\n"], 0.000_2)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let site = Site::new(Setup { usd_per_user_day: Some(limit), ..Setup::default() });
        let child = site.child(&format!("http://{address}"));
        let mut request = tokio::task::JoinSet::new();
        request.spawn(child.message().send());
        site.until("upstream_in_flight", "", 1.0).await;
        request.shutdown().await;
        site.until("broker_connections", "", 0.0).await;
        assert_eq!(site.metric("upstream_in_flight", ""), 1.0);
        let (mut api, _) = listener.accept().await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        let answer = [head, pieces[0], pieces[1]].concat();
        api.write_all(answer.as_bytes()).await.unwrap();
        api.shutdown().await.unwrap();
        site.until("upstream_in_flight", "", 0.0).await;
        assert!(site.spend.check(&user(), None).await.unwrap().is_err());
    }
}

/// Requests beyond a few wait, and are refused once those that ran are charged.
#[tokio::test]
async fn user_with_a_limit_has_few_requests_at_once() {
    let ends = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = ends.clone();
    let api = StandIn::new(move |_| {
        let (send, receive) = mpsc::channel(4);
        send.try_send(BEGIN.into()).unwrap();
        kept.lock().unwrap().push(send);
        streamed(receive)
    })
    .await;
    let site = Site::new(Setup { usd_per_user_day: Some(0.000_4), ..Setup::default() });
    let base = format!("http://{}", api.address);
    let children = [site.child(&base), site.child_of(Some(upstream(&base)), session('b'))];
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..MAX_LIMITED + 4 {
        requests.spawn(children[number % 2].message().send());
    }
    site.until("upstream_in_flight", "", MAX_LIMITED as f64).await;
    let mut held = Vec::new();
    for _ in 0..MAX_LIMITED {
        held.push(timeout(SOON, requests.join_next()).await.unwrap().unwrap().unwrap().unwrap());
    }
    assert!(timeout(Duration::from_millis(50), requests.join_next()).await.is_err());
    assert_eq!(api.received().len(), MAX_LIMITED);
    for end in ends.lock().unwrap().drain(..) {
        end.try_send(END.into()).unwrap();
    }
    drop(held);
    while let Some(response) = timeout(SOON, requests.join_next()).await.unwrap() {
        assert_eq!(response.unwrap().unwrap().status(), 429);
    }
    assert_eq!(api.received().len(), MAX_LIMITED);
}
