//! The live page of a node, in a real browser: which nodes there are, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;

use crate::asker::Asker;
use crate::common::browser::Browser;
use crate::common::place::Place;
use crate::nodes::{LONG_LEASE, Nodes, SIM};

/// A long lease, and the pauses of the page.
const GONE_WITHIN: Duration = Duration::from_secs(45);

/// A browser that shows the page of the first node.
async fn open(cluster: &Nodes) -> Option<(Browser, String)> {
    let mut browser = Browser::start(&Arc::new(Place::new())).await?;
    let site = cluster.sites()[0].clone();
    browser.open(&site).await;
    browser.until("the nodes are shown", "document.querySelector('#nodes tbody tr')").await;
    Some((browser, site))
}

/// Waits until the row of a node says so.
async fn until_row(browser: &mut Browser, node: &str, wanted: &str) {
    let row = format!(
        "[...document.querySelectorAll('#nodes tbody tr')].find((row) => row.querySelector('b').innerText === '{node}')\
         ?.innerText.includes({})",
        json!(wanted)
    );
    browser.until_within(GONE_WITHIN, &format!("{node} is shown as {wanted}"), &row).await;
}

async fn until_attention(browser: &mut Browser, wanted: &str) {
    let says = format!("document.querySelector('#attention').innerText.includes({})", json!(wanted));
    browser.until_within(GONE_WITHIN, wanted, &says).await;
}

/// Names of the nodes and of their users, as the page adds them up.
async fn users(browser: &mut Browser) -> f64 {
    let sum = "[...document.querySelectorAll('#nodes tbody tr td:nth-child(3)')]\
               .reduce((sum, it) => sum + (Number(it.innerText) || 0), 0)";
    browser.eval(sum).await.as_f64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_nodes_drained_and_gone() {
    let Some(mut cluster) = Nodes::start(3, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let sites = cluster.sites();
    let names: Vec<_> = (0..6).map(|number| format!("user-{number}")).collect();
    for name in &names {
        assert!(Asker::new(name, "default").ask(&sites[0], &format!("words of {name}")).await.is_good());
    }
    let Some((mut browser, site)) = open(&cluster).await else { return };
    until_row(&mut browser, "n0", "this page").await;
    for node in &cluster.nodes {
        until_row(&mut browser, &node.name, "live").await;
        until_row(&mut browser, &node.name, &node.listen).await;
    }
    assert_eq!(users(&mut browser).await, 6.0);
    // The list has the sessions of all nodes.
    for name in &names {
        browser.until_text("#rows", &format!("words of {name}")).await;
    }
    assert_eq!(browser.text("#attention").await, "Nothing needs attention.");
    browser.picture("nodes-live").await;

    cluster.post(1, "drain").await;
    until_row(&mut browser, "n1", "draining").await;
    until_attention(&mut browser, "n1 is draining").await;
    cluster.nodes[2].kill().await;
    until_attention(&mut browser, "n2 does not answer").await;
    until_attention(&mut browser, "n2 is gone").await;
    until_row(&mut browser, "n2", "gone").await;
    until_attention(&mut browser, "has none left").await;
    browser.picture("nodes").await;
    // A way from what needs attention to the nodes.
    browser.click("#attention a[href='#nodes']").await;
    browser
        .until(
            "the nodes are in sight",
            "document.querySelector('#nodes').getBoundingClientRect().top < innerHeight",
        )
        .await;

    if browser.bring_axe().await {
        for (width, height, dark) in [(1280, 900, false), (360, 740, true), (360, 740, false)] {
            browser.darken(dark).await;
            browser.resize(width, height, width < 500).await;
            let found = browser.violations().await;
            assert!(found.is_empty(), "{width} pixels, dark: {dark}:\n{found}");
            assert_eq!(browser.sticks_out(width).await, json!([false, []]), "{width}");
            browser.picture(&format!("nodes-{width}-{}", if dark { "dark" } else { "light" })).await;
        }
        browser.resize(1280, 900, false).await;
    }

    cluster.post(1, "resume").await;
    until_row(&mut browser, "n1", "live").await;
    cluster.nodes[2].start().await;
    until_row(&mut browser, "n2", "live").await;
    browser.until_text("#attention", "Nothing needs attention.").await;
    // A look at a user's session would bring the user to a node.
    let single: Vec<_> =
        browser.asked_for().into_iter().filter(|url| url.contains("/v1/sessions/")).collect();
    assert!(single.is_empty(), "{single:?}");
    browser.was_good(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_shows_lost_leases_and_late_commits() {
    let config = format!("{SIM}[cluster]commit_timeout = \"200ms\"\n");
    let Some(cluster) = Nodes::start(1, &config).await else { return };
    let Some((mut browser, site)) = open(&cluster).await else { return };
    let asker = Asker::new("alice", "default");
    // The store may take longer than that on a crowded machine.
    let mut late = 4;
    let mut first = asker.ask(&site, "hello").await;
    while !first.is_good() {
        assert!(first.code() == "not_replicated" && late < 10, "{first:?}");
        late += 1;
        first = asker.ask(&site, "hello").await;
    }
    cluster.take_store();
    for _ in 0..4 {
        asker.ask(&site, "again").await;
    }
    until_attention(&mut browser, "n0 does not store its turns in time").await;
    browser.until_text("#nodes .facts", &format!("{late}, last at")).await;
    let grown = "/no store\\s+\\d+ s/.test(document.querySelector('#nodes .facts').innerText)";
    browser.until("the lag is shown", grown).await;
    cluster.give_store_back();
    browser
        .until("nothing waits", "/no store\\s+none/.test(document.querySelector('#nodes .facts').innerText)")
        .await;

    cluster.etcd.freeze();
    until_row(&mut browser, "n0", "no lease").await;
    until_attention(&mut browser, "this node has no lease").await;
    browser.picture("nodes-no-lease").await;
    cluster.etcd.thaw();
    until_row(&mut browser, "n0", "live").await;
    until_attention(&mut browser, "n0 lost its lease at").await;

    // As after a minute without a store.
    let old = "(async () => { const { overview } = await import('/page/overview.js'); overview.data.cluster.lag_seconds = 75; \
               (await import('/page/attention.js')).show(); return document.querySelector('#attention').innerText; })()";
    let shown = browser.eval(old).await;
    assert!(shown.as_str().unwrap().contains("n0 has a change that is in no store for 1 min"), "{shown}");
    browser.was_good(&site).await;
}

/// A program that can write to etcd can name a node, and hides nothing in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_hide_nothing() {
    let Some(cluster) = Nodes::start(1, &format!("{SIM}{LONG_LEASE}")).await else { return };
    let Some((mut browser, site)) = open(&cluster).await else { return };
    let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let record = json!({ "address": "10.0.0.9\u{202e}2848:\u{200b}", "version": "1\u{1b}[2J" });
    let put = json!({ "key": encode("/pilotlight/node/n9".to_owned()), "value": encode(record.to_string()) });
    cluster.etcd.ask("kv/put", &put).await;
    until_row(&mut browser, "n9", "10.0.0.9<U+202E>2848:<U+200B>").await;
    until_row(&mut browser, "n9", "1<U+1B>[2J").await;
    until_attention(&mut browser, "n9 does not answer").await;
    assert_eq!(browser.hidden().await, "");
    browser.was_good(&site).await;
}
