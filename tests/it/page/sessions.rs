//! Sessions appear, are warmed, interrupted and evicted by buttons, and what happens to them is shown.

use rustix::process::Signal;
use serde_json::json;

use super::{in_row, open};
use crate::common::process::Process;
use crate::common::program::{Answer, message};

#[tokio::test(flavor = "multi_thread")]
async fn sessions_appear_and_their_life_is_shown() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    browser.until_text("#link", "Live").await;
    browser.until_text("#sessions", "No sessions yet").await;
    browser.picture("empty").await;
    for user in ["alice@example.org", "bob", "carol"] {
        site.turn(user, "hello").await.text();
    }
    browser.until("three rows", "document.querySelectorAll('#rows tr').length === 3").await;
    browser.until_text("#states [data-state=idle]", "3").await;
    browser.until_text("#events", "turn answered in").await;
    browser.until("three bars", "document.querySelectorAll('#turns rect').length === 3").await;
    assert!(browser.text("#starts-text").await.starts_with("last 3: median "));

    // By button; the server agrees.
    browser.click(&in_row("alice@example.org", "button:last-child")).await;
    browser.until_text("#notice", "alice@example.org, default is evicted").await;
    browser.until_text(&in_row("alice@example.org", ".state"), "dormant").await;
    browser.until_text("#events", "evicted on request").await;
    let entry = Answer::of(site.session("GET", "default", "alice@example.org")).await.json();
    assert_eq!((&entry["state"], &entry["pid"]), (&json!("dormant"), &json!(null)));
    browser.click(&in_row("alice@example.org", "button:first-child")).await;
    browser.until_text("#notice", "is warm").await;
    browser.until_text(&in_row("alice@example.org", ".state"), "idle").await;

    // A crash: in the list, aloud, and in the session's row.
    let pid = site.pid("bob").await;
    Process::of(pid.try_into().unwrap()).unwrap().signal(Signal::KILL);
    browser.until_text("#events", "crashed: signal 9").await;
    browser.until_text("#events", "restarted after a crash").await;
    browser.until_text(&in_row("bob", "td[data-bad=true]"), "signal 9").await;
    browser.until_text(&in_row("bob", "td[data-label=Restarts]"), "1").await;
    browser.until("memory is measured", "document.querySelector('#states').innerText.includes('MiB')").await;

    // A turn that runs is interrupted; evicting one asks first.
    let running = site.asking("carol", &message("[[deltas:10000]] [[delay:50]]")).send().await.unwrap();
    browser.until_text(&in_row("carol", ".state"), "busy").await;
    browser.picture("busy").await;
    browser.click(&in_row("carol", "button:nth-child(3)")).await;
    browser.until_text("#rows", "End its turn?").await;
    assert_eq!(Answer::of(site.session("GET", "default", "carol")).await.json()["state"], "busy");
    browser.click(&in_row("carol", "button:nth-child(2)")).await;
    browser.until_text("#notice", "carol, default was interrupted").await;
    browser.until_text(&in_row("carol", ".state"), "idle").await;
    drop(running);
    browser.until_text("#events", "cancelled").await;
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_when_the_server_does() {
    let Some((mut browser, mut program, site, place)) = open("").await else { return };
    site.turn("alice", "hello").await.text();
    browser.until_text("#rows", "alice").await;
    program.signal(Signal::TERM);
    assert_eq!(program.code().await, Some(0));
    browser.until_text("#link", "Not connected, trying again").await;
    assert!(browser.text("#rows").await.contains("alice"), "what was seen last stays");
    browser.picture("server-gone").await;
    let (data, address) = (place.data_dir().display().to_string(), site.http.replace("http://", ""));
    let arguments = ["serve", "--cli", "sim", "--data-dir", &data, "--listen", &address];
    let arguments = [&arguments[..], &["--admin-listen", "127.0.0.1:0"]].concat();
    let mut program = super::Program::start(&place, &arguments, &[]);
    program.listening().await;
    browser.until_text("#link", "Live").await;
    browser.until_text(&in_row("alice", ".state"), "dormant").await;
    site.turn("bob", "hello").await.text();
    browser.until_text("#rows", "bob").await;
    browser.was_good_but(&site.http, &["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spares_are_counted_where_there_are_any() {
    let Some((mut browser, _program, _site, _place)) = open("[spares]\nmin = 1\n").await else { return };
    browser.until("a spare is ready", "document.querySelector('#spares')?.innerText.startsWith('1')").await;
    browser.until("it is shown", "document.querySelector('#spares').checkVisibility()").await;
}
