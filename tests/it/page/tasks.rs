//! Six questions of an operator who sees the page for the first time. Each is answered within a few clicks and fifteen
//! seconds; both are printed.

use std::time::Duration;

use tokio::time::Instant;

use super::open;
use crate::common::browser::Browser;
use crate::common::installed::say;
use crate::common::program::{Site, message};

/// What a person waits for without looking elsewhere.
const MOST: Duration = Duration::from_secs(15);
/// Beyond it the way is not found at first sight.
const MOST_CLICKS: u32 = 3;

/// A question that is being answered.
struct Task(&'static str, Instant, u32);

impl Task {
    fn begin(name: &'static str, browser: &Browser) -> Self {
        Self(name, Instant::now(), browser.clicks)
    }

    fn end(self, browser: &Browser) {
        let (took, clicks) = (self.1.elapsed(), browser.clicks - self.2);
        say(&format!("{}: {clicks} clicks, {:.1} s", self.0, took.as_secs_f64()));
        assert!(took < MOST && clicks <= MOST_CLICKS, "{}: {clicks} clicks, {took:?}", self.0);
    }
}

async fn begin(site: &Site, user: &str, text: &str) -> reqwest::Response {
    site.asking(user, &message(text)).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn last_failure_and_its_cause_are_found() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    for user in ["alice", "bob", "carol"] {
        site.turn(user, "hello").await.text();
    }
    site.turn("alice", "[[api_error:400]]").await;
    site.turn("bob", "[[fault:crash-mid]]").await;
    let task = Task::begin("find the session that failed last and why", &browser);
    browser.until_text("#attention li[data-kind=bad]", "bob").await;
    browser.click("#attention li[data-kind=bad] a").await;
    browser.until_text("#why", "exit code 1").await;
    task.end(&browser);
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_permission_is_found_and_answered() {
    let Some((mut browser, _program, site, _place)) = open("[permissions]\npolicy = \"ask\"").await else {
        return;
    };
    let running = begin(&site, "alice", "[[tool:Bash {\"command\":\"touch made\"}]]").await;
    let task = Task::begin("answer a waiting permission", &browser);
    browser.until_text("#attention", "alice waits for an answer").await;
    browser.click("#attention li[data-kind=asks] a").await;
    browser.until_text(".waits", "touch made").await;
    browser.click(".waits button.main").await;
    browser.until("nothing waits", "!document.querySelector('.waits')").await;
    task.end(&browser);
    running.text().await.unwrap();
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_who_spends_most_is_found() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    site.turn("alice", "hello").await.text();
    site.turn("bob", "[[bytes:50000]]").await.text();
    let task = Task::begin("see which user spends most today", &browser);
    browser.click("nav a[href='#/spend']").await;
    browser.until_text("#spend tbody tr:first-child th", "bob").await;
    task.end(&browser);
    browser.picture("spend").await;
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hog_is_found_and_stopped() {
    let config = "[limits]\nmemory_per_session = \"100MiB\"\n[permissions]\npolicy = \"allow\"\n\
                  [metrics]\nsample_interval = \"1s\"\n";
    let Some((mut browser, _program, site, _place)) = open(config).await else { return };
    site.turn("alice", "hello").await.text();
    let hog = r#"[[tool:Bash {"command":"head -c 70000000 /dev/zero | tail -c 70000000 | sleep 600"}]]"#;
    let running = begin(&site, "bob", hog).await;
    let task = Task::begin("stop a hog", &browser);
    browser.until_text("#attention li[data-kind=hog]", "bob").await;
    browser.picture("hog").await;
    browser.click("#attention li[data-kind=hog] button").await;
    browser.until_text("#notice", "was interrupted").await;
    browser.until_text("#states [data-state=busy]", "0").await;
    task.end(&browser);
    drop(running);
    browser.was_good(&site.http).await;
}

/// What a turn leaves behind works on without one. Where processors are busy, it gets a part of one.
#[tokio::test(flavor = "multi_thread")]
async fn hog_of_processors_is_found_and_stopped() {
    let config = "[permissions]\npolicy = \"allow\"\n[metrics]\nsample_interval = \"300ms\"\n";
    let Some((mut browser, _program, site, _place)) = open(config).await else { return };
    site.turn("alice", "hello").await.text();
    let hog = r#"[[tool:Bash {"command":"for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) > /dev/null 2>&1 & done"}]]"#;
    site.turn("bob", hog).await.text();
    let task = Task::begin("stop a hog of processors", &browser);
    browser.until_text("#attention li[data-kind=hog]", "bob").await;
    browser.until_text("#attention li[data-kind=hog]", "without a turn").await;
    assert!(!browser.text("#attention").await.contains("alice"));
    browser.click("#attention li[data-kind=hog] button").await;
    browser.until_text("#notice", "bob, default is evicted").await;
    browser.until("it is gone", "!document.querySelector('#attention li[data-kind=hog]')").await;
    task.end(&browser);
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_conversation_is_followed() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    site.turn("alice", "hello").await.text();
    let mut running = begin(&site, "bob", "Tell me a story [[deltas:10000]] [[delay:50]]").await;
    let task = Task::begin("follow a running conversation", &browser);
    browser.until_text("#states [data-state=busy]", "1").await;
    browser.click("#states [data-state=busy] button").await;
    browser.until("one is left", "document.querySelectorAll('#rows tr').length === 1").await;
    browser.click("#rows a").await;
    browser.until("text comes", "/\\d{3} \\d{3}/.test(document.querySelector('.said-all')?.innerText)").await;
    task.end(&browser);
    browser.picture("live").await;
    // Its reader gets all of it, and goes on.
    assert!(running.chunk().await.unwrap().is_some());
    let more = browser.eval("document.querySelector('.said-all').innerText.length").await;
    browser
        .until("more comes", &format!("document.querySelector('.said-all').innerText.length > {more} + 20"))
        .await;
    drop(running);
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reason_why_new_users_wait_is_found() {
    let Some((mut browser, _program, site, _place)) = open("[limits]\nmax_children = 2").await else {
        return;
    };
    let endless = "[[deltas:10000]] [[delay:50]]";
    let running = [begin(&site, "alice", endless).await, begin(&site, "bob", endless).await];
    let waiting = tokio::spawn(site.asking("carol", &message("hello")).send());
    let task = Task::begin("find out why new users wait", &browser);
    browser.until_text("#attention li[data-kind=queue]", "all 2 children are in use").await;
    browser.click("#attention li[data-kind=queue] a").await;
    browser.until_text("#waiting-why", "limits.max_children").await;
    task.end(&browser);
    browser.picture("load").await;
    drop(running);
    waiting.abort();
    browser.was_good(&site.http).await;
}
