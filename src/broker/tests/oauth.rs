//! OAuth credentials that are renewed here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::site::{Child, SOON, Setup, Site, session, user};
use super::standin::{self, StandIn, message};
use crate::adapter::broker::{CredentialPlan, UpstreamPlan};
use crate::broker::Upstream;
use crate::config;
use crate::model::OauthCredentials;
use crate::model::ids::SessionKey;
use crate::workspace::{OauthStore, Workspace};

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn expired() -> OauthCredentials {
    OauthCredentials::new("old-access", "old-refresh", now() - 1000)
}

/// A provider that renews `old-refresh`, then its successor, with the status that the test sets.
async fn provider() -> (StandIn, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let own = status.clone();
    let provider = StandIn::new(move |received| {
        let request: Value = serde_json::from_slice(&received.body).unwrap();
        let (access, next) = match request["refresh_token"].as_str().unwrap() {
            "old-refresh" => ("new-access", "new-refresh"),
            "new-refresh" => ("newer-access", "newer-refresh"),
            _ => ("", ""),
        };
        let answer = json!({ "access_token": access, "refresh_token": next, "expires_in": 3600 });
        standin::json(own.load(Ordering::Relaxed), &answer.to_string())
    })
    .await;
    (provider, status)
}

/// The API accepts renewed tokens only.
async fn api() -> StandIn {
    StandIn::new(|received| {
        let accepted = ["Bearer new-access", "Bearer newer-access"];
        if received.header("authorization").is_some_and(|given| accepted.contains(&given)) {
            message()
        } else {
            standin::json(401, "{}")
        }
    })
    .await
}

fn site(provider: &StandIn) -> Site {
    let token_url = Some(format!("http://{}/token", provider.address));
    Site::new(Setup { config: config::Broker { token_url, ..Default::default() }, ..Setup::default() })
}

fn store(site: &Site, conversation: &str) -> OauthStore {
    let key = SessionKey::new(user(), conversation).unwrap();
    drop(crate::workspace::open(site.data.path()).unwrap());
    let workspace = Workspace::begin(site.data.path(), &key.hash());
    workspace.create().unwrap();
    workspace.oauth_store()
}

fn child(site: &Site, api: &StandIn, store: &OauthStore) -> Child {
    let base_url = format!("http://{}", api.address).parse().unwrap();
    let plan = UpstreamPlan { base_url, credential: CredentialPlan::Oauth, headers: Vec::new() };
    let upstream = Upstream::new(plan, Some(site.broker.oauth(store.clone()))).unwrap();
    site.child_of(Some(upstream), session('a'))
}

async fn status(child: &Child) -> u16 {
    child.message().send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn expired_token_is_renewed_once_and_stored() {
    let ((provider, _), api) = (provider().await, api().await);
    let site = site(&provider);
    let (store, other) = (store(&site, "a"), store(&site, "b"));
    store.write(&expired()).unwrap();
    other.write(&expired()).unwrap();
    let child_a = child(&site, &api, &store);
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let request = child_a.message();
        requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    assert_eq!(requests.join_all().await, [200; 20]);
    let request: Value = serde_json::from_slice(&provider.only().body).unwrap();
    assert_eq!(
        (&request["grant_type"], &request["refresh_token"]),
        (&"refresh_token".into(), &"old-refresh".into())
    );
    let stored = store.read().unwrap();
    assert_eq!((stored.access_token.as_str(), stored.refresh_token.as_str()), ("new-access", "new-refresh"));
    assert!(stored.expires_at > now() + 3_500_000);
    // The other session has the same tokens, and no second renewal: the old refresh token is used up.
    assert_eq!(status(&child(&site, &api, &other)).await, 200);
    assert_eq!(provider.received().len(), 1);
    assert_eq!(other.read().unwrap().refresh_token, "new-refresh");
    assert_eq!(site.metric("oauth_refreshes_total", "outcome=renewed"), 1.0);
    assert!(!format!("{:?}", api.received()).contains(&child_a.token));
}

#[tokio::test]
async fn rejected_refresh_token_is_a_clear_401() {
    let ((provider, answers), api) = (provider().await, api().await);
    let site = site(&provider);
    let store = store(&site, "a");
    let child = child(&site, &api, &store);
    assert_eq!(status(&child).await, 401);
    store.write(&expired()).unwrap();
    answers.store(400, Ordering::Relaxed);
    for _ in 0..3 {
        let answer = child.message().send().await.unwrap();
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        let body = answer.text().await.unwrap();
        assert!(body.contains("send new ones") && !body.contains("old-"), "{body}");
    }
    // The provider is not asked again, until a client brings other credentials.
    assert_eq!((provider.received().len(), api.received().len()), (1, 0));
    store.write(&OauthCredentials::new("new-access", "r", now() + 3_600_000)).unwrap();
    assert_eq!(status(&child).await, 200);
}

#[tokio::test]
async fn passing_failure_is_no_401() {
    let ((provider, answers), api) = (provider().await, api().await);
    let site = site(&provider);
    let store = store(&site, "a");
    answers.store(500, Ordering::Relaxed);
    store.write(&expired()).unwrap();
    let child = child(&site, &api, &store);
    assert_eq!((status(&child).await, status(&child).await), (502, 502));
    assert_eq!(provider.received().len(), 1, "there is a pause");
    // Nearly expired is good enough while the provider fails.
    store.write(&OauthCredentials::new("new-access", "other-refresh", now() + 60_000)).unwrap();
    assert_eq!(status(&child).await, 200);
}

/// A token that the API does not accept is renewed before the next request, although it has not expired.
#[tokio::test]
async fn token_that_the_api_rejects_is_renewed() {
    let ((provider, _), api) = (provider().await, api().await);
    let site = site(&provider);
    let store = store(&site, "a");
    store.write(&OauthCredentials::new("revoked", "old-refresh", now() + 3_600_000)).unwrap();
    let child = child(&site, &api, &store);
    assert_eq!((status(&child).await, status(&child).await), (401, 200));
    assert_eq!(store.read().unwrap().access_token, "new-access");
}

/// A provider that takes one request and answers when the test says so.
async fn renewing(answers: bool) {
    let provider = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let token_url = Some(format!("http://{}/token", provider.local_addr().unwrap()));
    let site =
        Site::new(Setup { config: config::Broker { token_url, ..Default::default() }, ..Setup::default() });
    let (api, store) = (api().await, store(&site, "a"));
    store.write(&expired()).unwrap();
    let child = child(&site, &api, &store);
    let mut request = JoinSet::new();
    request.spawn(child.message().send());
    let (mut asked, _) = timeout(SOON, provider.accept()).await.expect("a renewal").unwrap();
    site.ended.cancel();
    site.tasks.close();
    if answers {
        let body = r#"{"access_token":"new-access","refresh_token":"new-refresh","expires_in":3600}"#;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
        let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        asked.write_all(answer.as_bytes()).await.unwrap();
    }
    // As long as a shutdown waits for its last tasks.
    timeout(Duration::from_secs(5), site.tasks.wait()).await.expect("nothing runs on");
    let expected = if answers { "new-refresh" } else { "old-refresh" };
    assert_eq!(store.read().unwrap().refresh_token, expected);
}

/// The old token is used up once the provider has answered.
#[tokio::test]
async fn renewal_is_stored_while_the_system_ends() {
    renewing(true).await;
}

#[tokio::test]
async fn silent_renewal_does_not_hold_up_the_end() {
    renewing(false).await;
}
