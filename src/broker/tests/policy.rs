//! What the key of a turn may use holds for each request of the child.

use serde_json::Value;

use super::site::{Setup, Site, session, upstream, user};
use super::standin::{StandIn, message};
use crate::adapter::ModelList;
use crate::broker::Policy;

fn models(names: &[&str]) -> Policy {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    Policy { models: Some(ModelList::new(&names, &[])), ..Policy::default() }
}

#[tokio::test]
async fn request_for_a_model_of_no_policy_is_refused() {
    let api = StandIn::new(|_| message()).await;
    let site = Site::new(Setup::default());
    let base = format!("http://{}", api.address);
    let child = site.child_with(Some(upstream(&base)), session('a'), user(), models(&["haiku", "own"]));
    let long = format!(r#"{{"messages":"{}","model":"claude-opus-4-5"}}"#, "a".repeat(1 << 20));
    for (refused, shown) in [
        (r#"{"model":"claude-opus-4-5"}"#, "claude-opus-4-5"),
        (r#"{"model":"own","tools":[{"model":"claude-opus-4-5"}]}"#, "claude-opus-4-5"),
        (&long, "claude-opus-4-5"),
        ("{}", "names no model"),
        ("", "names no model"),
    ] {
        let answer = child.asking(refused).send().await.unwrap();
        assert_eq!(answer.status(), 403);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        let body: Value = answer.json().await.unwrap();
        let error = (&body["error"]["type"], &body["error"]["code"]);
        assert_eq!(error, (&"permission_error".into(), &"model_not_allowed".into()));
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(shown) && message.contains("haiku, own"), "{message}");
    }
    assert_eq!(site.metric("broker_refusals_total", "reason=model"), 5.0);
    assert!(api.received().is_empty());
    for allowed in [r#"{"model":"claude-haiku-4-5-20251001"}"#, r#"{"model":"own"}"#] {
        assert_eq!(child.asking(allowed).send().await.unwrap().status(), 200);
    }
    assert_eq!(api.received()[0].body, r#"{"model":"claude-haiku-4-5-20251001"}"#);
    // Other sessions are not bound by it.
    assert_eq!(
        site.child(&base).asking(r#"{"model":"claude-opus-4-5"}"#).send().await.unwrap().status(),
        200
    );
}

#[tokio::test]
async fn request_beyond_the_limit_of_its_key_is_refused() {
    let api = StandIn::new(|_| message()).await;
    let site = Site::new(Setup::default());
    let base = format!("http://{}", api.address);
    let policy = Policy { usd_per_day: Some(0.001), ..Policy::default() };
    let child = site.child_with(Some(upstream(&base)), session('a'), user(), policy);
    // A request costs 550 millionths by list price.
    for expected in [200, 200, 429] {
        let answer = child.message().send().await.unwrap();
        assert_eq!(answer.status(), expected);
        let text = answer.text().await.unwrap();
        assert_eq!(text.contains("usd_per_day of this key"), expected == 429, "{text}");
        site.until("upstream_in_flight", "", 0.0).await;
    }
    assert_eq!(site.metric("broker_refusals_total", "reason=spend_limit"), 1.0);
    // A key without a limit of its own is not bound by it.
    assert_eq!(site.child(&base).message().send().await.unwrap().status(), 200);
    assert!(site.spend.check(&user(), None).await.unwrap().is_ok());
}
