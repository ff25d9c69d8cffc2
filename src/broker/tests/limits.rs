//! What happens at the same time.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::site::{SOON, Setup, Site, session, upstream};
use super::standin::{StandIn, streamed};
use crate::config;

/// One session gets half of the slots: the others of a second session are free at once.
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
    let (greedy, modest) = (site.child(&base), site.child_of(Some(upstream(&base)), session('b')));
    let mut held = Vec::new();
    for child in [&greedy, &greedy, &modest, &modest] {
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

/// A child that reads nothing holds its own response up, and not for ever.
#[tokio::test]
async fn reader_that_stops_is_given_up() {
    use tokio::io::AsyncWriteExt;
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
