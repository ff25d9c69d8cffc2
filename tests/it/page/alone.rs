//! A server that is no node of a cluster.

use std::collections::BTreeSet;

use super::open;

#[tokio::test(flavor = "multi_thread")]
async fn server_without_cluster_has_no_nodes() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    site.turn("alice", "hello").await.text();
    browser.until_text("#rows", "hello").await;
    // Once the overview is there, it is known whether there is a cluster.
    browser.eval("location.hash = '#/load'").await;
    browser.until("the overview is there", "document.querySelector('#limits meter')").await;
    browser.eval("location.hash = '#nodes'").await;
    browser.until("the overview is shown", "document.querySelector('#list').checkVisibility()").await;
    assert_eq!(browser.eval("document.querySelector('#nodes').checkVisibility()").await, false);
    assert_eq!(browser.text("#attention").await, "Nothing needs attention.");
    let overview = site.get("/v1/overview").await.json();
    assert!(overview["isolation"].is_array() && overview.get("cluster").is_none(), "{overview}");
    let asked = browser.asked_for();
    let path = |url: &String| {
        let path = url.strip_prefix(&site.http).expect("nobody else is asked");
        path.split(['?', '#']).next().unwrap_or_default().to_owned()
    };
    let asked: BTreeSet<_> = asked.iter().map(path).filter(|path| !path.starts_with("/page/")).collect();
    let known = ["/", "/v1/events/stream", "/v1/overview", "/v1/sessions"].map(str::to_owned);
    assert_eq!(asked, BTreeSet::from(known));
    browser.was_good(&site.http).await;
}
