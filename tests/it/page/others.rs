//! Pages of others, in the same browser, on the same machine: they get nothing and change nothing.

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use super::open;

#[tokio::test(flavor = "multi_thread")]
async fn another_page_gets_nothing_and_changes_nothing() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    site.turn("alice", "hello").await.text();
    let pid = site.pid("alice").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = format!("http://{}/", listener.local_addr().unwrap());
    let page = Router::new().route("/", get(async || Html("<!doctype html><title>other</title>")));
    let serving = async move { axum::serve(listener, page).await.unwrap() };
    let trying = async {
        browser.open(&other).await;
        // With all that a page may do: a request that needs leave, and those that need none.
        let attack = format!(
            "(async () => {{ const site = {}; const outcomes = []; \
             const tries = [ \
               ['/v1/sessions', {{}}], ['/v1/events/stream', {{}}], \
               ['/v1/sessions/default?user=alice', {{ method: 'DELETE' }}], \
               ['/v1/sessions/default/warm?user=mallory', {{ method: 'POST' }}], \
               ['/v1/sessions/default/warm?user=mallory', {{ method: 'POST', mode: 'no-cors' }}], \
               ['/v1/messages/keepalive', {{ method: 'POST', mode: 'no-cors', body: '{{}}' }}] ]; \
             for (const [path, options] of tries) outcomes.push(await fetch(site + path, options) \
               .then((answer) => answer.type, () => 'refused')); \
             return outcomes; }})()",
            json!(site.http)
        );
        let outcomes = browser.eval(&attack).await;
        assert_eq!(outcomes, json!(["refused", "refused", "refused", "refused", "opaque", "opaque"]));
        // Nor can it put the page into a frame and lead clicks astray.
        let framed = format!(
            "new Promise((done) => {{ const frame = document.createElement('iframe'); frame.src = {}; \
             frame.onload = () => {{ try {{ done(frame.contentWindow.length === undefined) }} \
             catch (error) {{ done(String(error)) }} }}; document.body.append(frame); }})",
            json!(site.http)
        );
        browser.eval(&framed).await;
        let complaints = browser.complaints().join("\n");
        assert!(complaints.contains("frame-ancestors"), "{complaints}");
    };
    tokio::select! {
        () = serving => panic!("the other page is served to the end"),
        () = trying => {}
    }
    assert_eq!(site.pid("alice").await, pid, "her child lives");
    let sessions = site.get("/v1/sessions").await.json();
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1, "and nobody else has one: {sessions}");
}
