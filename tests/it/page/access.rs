//! What people with a screen reader, a keyboard or weak eyes need, as axe-core checks it, on each part of the page.

use super::open;
use crate::common::program::message;

#[tokio::test(flavor = "multi_thread")]
async fn axe_finds_nothing_on_any_part() {
    let Some((mut browser, _program, site, _place)) = open("[permissions]\npolicy = \"ask\"").await else {
        return;
    };
    if !browser.bring_axe().await {
        return;
    }
    site.turn("alice", "Write a poem").await.text();
    site.turn("alice", "[[fault:crash-mid]]").await;
    let asking =
        site.asking("bob", &message("[[tool:Bash {\"command\":\"touch made\"}]]")).send().await.unwrap();
    browser.until_text("#attention", "bob waits for an answer").await;
    for dark in [false, true] {
        browser.darken(dark).await;
        for (width, height) in [(1280, 900), (360, 740)] {
            browser.resize(width, height, width < 500).await;
            for (place, ready) in [
                ("#/", "#attention"),
                ("#/load", "#limits meter"),
                ("#/spend", "#spend tbody tr"),
                ("#/session/alice/default", "#why"),
                ("#/session/bob/default", ".waits pre"),
            ] {
                browser.eval(&format!("location.hash = '{place}'")).await;
                browser
                    .until("it is shown", &format!("document.querySelector('{ready}')?.checkVisibility()"))
                    .await;
                let found = browser.violations().await;
                assert!(found.is_empty(), "{place}, {width} pixels, dark: {dark}:\n{found}");
            }
        }
    }
    drop(asking);
}
