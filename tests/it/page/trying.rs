//! The box to try a message: it streams, it is stopped, and whatever is said stays text.

use serde_json::json;

use super::{in_row, open};
use crate::common::program::Answer;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_streams_and_is_stopped() {
    streams_and_stops("").await;
}

/// It does so too where turns go on without their reader.
#[tokio::test(flavor = "multi_thread")]
async fn page_trial_works_with_detached_turns() {
    streams_and_stops("[http]\non_disconnect = \"detach\"").await;
}

async fn streams_and_stops(config: &str) {
    let Some((mut browser, _program, site, _place)) = open(config).await else { return };
    browser.until_text("#link", "Live").await;
    browser.click("#message-text").await;
    browser.write("[[deltas:8]] [[delay:150]]").await;
    browser.click("#message-send").await;
    browser.until_text("#answer", "000").await;
    assert!(!browser.text("#answer").await.contains("007"), "it is not held back until its end");
    assert_eq!(browser.text("#message-send").await, "Answering…");
    browser.until_text("#answer", "007").await;
    browser.until_text("#answer-facts", "First word after").await;
    browser.until_text(&in_row("you", ".state"), "idle").await;
    if config.is_empty() {
        browser.picture("answered").await;
    }

    browser.eval("document.querySelector('#message-text').value = ''").await;
    browser.click("#message-text").await;
    browser.write("[[deltas:10000]] [[delay:50]]").await;
    browser.click("#message-send").await;
    browser.until("it has begun", "document.querySelector('#answer').innerText.length > 3").await;
    browser.click("#message-stop").await;
    browser.until_text("#answer-facts", "The session keeps its child").await;
    browser.until_text(&in_row("you", ".state"), "idle").await;
    assert!(Answer::of(site.session("GET", "default", "you")).await.json()["pid"].is_number());

    browser.eval("document.querySelector('#message-text').value = ''").await;
    browser.click("#message-text").await;
    browser.write("[[api_error:400]]").await;
    browser.click("#message-send").await;
    browser.until_text("#notice", "The message got no answer").await;
    browser.was_good(&site.http).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_anybody_says_becomes_part_of_the_page() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    browser.until_text("#link", "Live").await;
    let evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    browser.eval(&format!("document.querySelector('#message-user').value = {}", json!(evil))).await;
    browser.eval(&format!("document.querySelector('#message-session').value = {}", json!(evil))).await;
    browser.click("#message-text").await;
    browser.write(evil).await;
    browser.click("#message-send").await;
    browser.until_text("#answer", evil).await;
    browser.until_text("#rows", evil).await;
    browser.until_text("#events", "<img").await;
    let inside = "document.querySelectorAll('main img, main script, main iframe').length";
    assert_eq!(browser.eval(inside).await, 0);
    assert_eq!(browser.eval("document.title").await, "pilotlight");
    // Nor could our own mistake let it: the browser takes no text for HTML here.
    let tried = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'taken'; } catch { return 'refused'; } })()";
    assert_eq!(browser.eval(tried).await, "refused");
    let label = format!("Evict {evil}, {evil}");
    let button = format!("#rows button[aria-label={}]", json!(label));
    browser.click(&button).await;
    browser.until_text("#notice", "is evicted").await;
    browser.was_good_but(&site.http, &["TrustedHTML"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keyboard_is_enough() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    browser.until_text("#link", "Live").await;
    browser.press("Tab", false).await;
    browser.until_text(":focus", "Skip to the sessions").await;
    browser.tab_to("#message-text").await;
    browser.write("by hand").await;
    browser.press("Enter", true).await;
    browser.until_text("#answer", "echo 1: by hand").await;
    browser.until_text(&in_row("you", ".state"), "idle").await;
    // On, around, and to the row's buttons.
    browser.tab_to("#rows button:last-child").await;
    let ring = browser.eval("getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(ring, "solid", "where the focus is, is seen");
    browser.press("Enter", false).await;
    browser.until_text(&in_row("you", ".state"), "dormant").await;
    let stays = "document.activeElement.matches('#rows button:last-child')";
    assert_eq!(browser.eval(stays).await, true, "the focus stays where it was");
    browser.picture("keyboard").await;
    let polite = "document.querySelector('#notice').ariaLive === 'polite'";
    assert_eq!(browser.eval(polite).await, true);
    let unnamed = "[...document.querySelectorAll('input, textarea, button')].filter((it) => \
                   !it.labels?.length && !it.ariaLabel && !it.innerText.trim() && it.checkVisibility()).length";
    assert_eq!(browser.eval(unnamed).await, 0, "everything that can be used has a name");
    browser.was_good(&site.http).await;
}
