//! Who may use an endpoint.

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::site::{SOON, Setup, Site, client, read_to_end, session, upstream};
use super::standin::{StandIn, message, streamed};

#[tokio::test]
async fn only_the_endpoints_own_token_is_valid() {
    let api = StandIn::new(|_| message()).await;
    let site = Site::new(Setup::default());
    let base = format!("http://{}", api.address);
    let (alice, bob) = (site.child(&base), site.child_of(Some(upstream(&base)), session('b')));
    let send = |key: Option<&str>| {
        let request = client().post(alice.url("/v1/messages")).body("{}");
        match key {
            Some(key) => request.header("x-api-key", key).send(),
            None => request.send(),
        }
    };
    for wrong in [None, Some(""), Some("real-key"), Some(bob.token.as_str()), alice.token.get(1..)] {
        let answer = send(wrong).await.unwrap();
        assert_eq!(answer.status(), 401, "{wrong:?}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(
            (&body["type"], &body["error"]["type"]),
            (&"error".into(), &"authentication_error".into())
        );
    }
    assert!(api.received().is_empty());
    assert_eq!(site.metric("broker_refusals_total", "reason=token"), 5.0);
    assert_eq!(send(Some(&alice.token)).await.unwrap().status(), 200);
}

/// The end of a child ends its listener, its connections and what they wait for.
#[tokio::test]
async fn nothing_of_an_endpoint_outlives_its_guard() {
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let receive = std::sync::Mutex::new(Some(receive));
    let api = StandIn::new(move |_| streamed(receive.lock().unwrap().take().unwrap())).await;
    let site = Site::new(Setup::default());
    let child = site.child(&format!("http://{}", api.address));
    let mut idle = TcpStream::connect(child.address).await.unwrap();
    let answer = child.message().send().await.unwrap();
    site.until("broker_connections", "", 2.0).await;
    let (address, token) = (child.address, child.token.clone());
    drop(child);
    assert_eq!(read_to_end(&mut idle).await, "");
    assert!(timeout(SOON, answer.text()).await.expect("an end").is_err());
    timeout(SOON, send.closed()).await.expect("the API sees the end");
    site.until("broker_connections", "", 0.0).await;
    assert!(TcpStream::connect(address).await.is_err());
    // A later endpoint at the same address does not know the token.
    let plan = crate::broker::EndpointPlan {
        upstream: Some(upstream(&format!("http://{}", api.address))),
        egress: crate::config::Egress::Api,
        user: super::site::user(),
        session: session('b'),
        policy: crate::broker::Policy::default(),
    };
    let endpoint = site.broker.endpoint(plan, None).unwrap();
    let _guard = endpoint.serve(std::net::TcpListener::bind(address).unwrap()).unwrap();
    let again = client().post(format!("http://{address}/v1/messages")).header("x-api-key", token).send();
    assert_eq!(again.await.unwrap().status(), 401);
}

#[tokio::test]
async fn token_is_in_no_debug_output() {
    let site = Site::new(Setup::default());
    let child = site.child("http://127.0.0.1:9/");
    let shown = format!("{:?} {:?}", site.broker, child.guard);
    assert!(!shown.contains(&child.token) && !shown.contains("real-key"), "{shown}");
}
