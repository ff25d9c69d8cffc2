//! Charts of the last hours: points of the server, kept over a reload, with the values under the pointer.

use std::time::Duration;

use super::open;

/// The server ends a point every quarter minute, and a line needs two.
const TWO_POINTS: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn charts_outlast_a_reload_and_have_values() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    for text in ["hello", "[[sleep:300]]", "[[api_error:400]]"] {
        site.turn("alice", text).await;
    }
    browser.until_text("#hours-empty", "The first points come").await;
    let drawn = "document.querySelectorAll('#hours canvas').length === 2";
    browser.until_within(TWO_POINTS, "two points make a line", drawn).await;
    browser.until_text("figure[data-chart=latencies]", "turn, median").await;
    browser.eval("window.old = true; setTimeout(() => location.reload())").await;
    browser.until("they are there again", &format!("!window.old && {drawn}")).await;
    browser.hover("figure[data-chart=rates] .u-over").await;
    let value =
        "/answered\\s*[0-9.]+/.test(document.querySelector('figure[data-chart=rates] .u-legend').innerText)";
    browser.until("a value is under the pointer", value).await;
    browser.picture("charts").await;
    browser.click("#ranges button:first-child").await;
    browser.click("nav a[href='#/load']").await;
    browser.until("the others are drawn", "document.querySelectorAll('#load canvas').length === 2").await;
    // Lines that rise and fall: some points more, of minutes that differ.
    for (points, users) in [(3, 3), (4, 1), (5, 6), (6, 2)] {
        for user in 0..users {
            site.turn(&format!("user{user}"), "[[bytes:20000]]").await.text();
        }
        let count = format!(
            "fetch('/v1/overview').then((answer) => answer.json()).then(({{ history }}) => history.ends_at.length >= {points})"
        );
        let deadline = tokio::time::Instant::now() + TWO_POINTS;
        while browser.eval(&count).await != true {
            assert!(tokio::time::Instant::now() < deadline, "no {points} points in time");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    browser.until_text("#limits", "Children").await;
    browser.picture("load-lines").await;
    browser.click("nav a[href='#/spend']").await;
    browser.until("the sum is drawn", "document.querySelectorAll('#spend canvas').length === 1").await;
    browser.until_text("figure[data-chart=spent]", "spent").await;
    let sums = "fetch('/v1/overview').then((answer) => answer.json()).then(({ history }) => \
                history.spent_usd.reduce((sum, spent) => sum + spent, 0))";
    assert!(browser.eval(sums).await.as_f64() > Some(0.0), "what was spent is in the points");
    browser.picture("spend-lines").await;
    browser.click("nav a[href='#/load']").await;
    browser.darken(true).await;
    browser.resize(1024, 768, false).await;
    let fits = "document.documentElement.scrollWidth <= 1024 && document.querySelectorAll('#load canvas').length === 2";
    browser.until("they fit", fits).await;
    browser.picture("load-charts").await;
    browser.was_good(&site.http).await;
}
