//! On a phone, in the dark, and with more than fits: readable, and nothing sticks out.

use serde_json::json;

use super::open;
use crate::common::browser::Browser;
use crate::common::program::{Answer, Site};

/// A few sessions in different states, with long names.
async fn populate(site: &Site) {
    for user in [
        "alice@example.org",
        "bob",
        "carol",
        "dave-with-a-name-that-does-not-want-to-end-anywhere-soon-at-all",
    ] {
        site.turn(user, "hello").await.text();
    }
    for text in ["a short one", "[[sleep:120]]", "[[api_error:400]]", "[[sleep:30]] again"] {
        site.turn("alice@example.org", text).await;
    }
    site.turn("bob", "[[fault:crash-mid]]").await;
    site.turn("bob", "and on").await;
    let long = "a-conversation-without-any-blank-in-it-".repeat(4);
    assert_eq!(Answer::of(site.session("POST", &format!("{long}/warm"), "carol")).await.status, 200);
    assert_eq!(Answer::of(site.session("DELETE", "default", "carol")).await.status, 200);
}

/// The contrast of an element's text with the page's ground, as the guidelines for accessibility reckon it.
async fn contrast(browser: &mut Browser, selector: &str) -> f64 {
    let reckoned = format!(
        "(() => {{ const light = (color) => {{ const [r, g, b] = color.match(/[\\d.]+/g).map((part) => {{ \
         const share = part / 255; return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4; }}); \
         return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05; }}; \
         const [one, other] = [light(getComputedStyle(document.querySelector({})).color), \
         light(getComputedStyle(document.body).backgroundColor)]; \
         return Math.max(one, other) / Math.min(one, other); }})()",
        json!(selector)
    );
    browser.eval(&reckoned).await.as_f64().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_readable_on_any_screen() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    populate(&site).await;
    browser.until_text("#events", "crashed: exit code 1").await;
    browser.until("memory is measured", "document.querySelector('#states').innerText.includes('MiB')").await;
    for dark in [false, true] {
        browser.darken(dark).await;
        let ground = browser.eval("getComputedStyle(document.body).backgroundColor").await;
        let is_dark = ground.as_str().unwrap().contains("22,");
        assert_eq!(is_dark, dark, "{ground}");
        for selector in
            ["#rows b", ".quiet", ".events .bad span", "#rows tr[data-state=dormant] .state", "thead th"]
        {
            let contrast = contrast(&mut browser, selector).await;
            assert!(contrast >= 4.5, "{selector} has a contrast of {contrast:.1}, dark: {dark}");
        }
        for (name, width, height) in [("desktop", 1280, 900), ("tablet", 820, 1100), ("phone", 360, 740)] {
            browser.resize(width, height, width < 500).await;
            assert_eq!(browser.sticks_out(width).await, json!([false, []]), "{name}");
            browser.picture(&format!("{name}-{}", if dark { "dark" } else { "light" })).await;
        }
        browser.resize(1280, 900, false).await;
    }
    browser.was_good(&site.http).await;
}
