//! What strangers write hides nothing from the operator, and turns the direction of nothing else on the page.

use serde_json::json;

use super::open;
use crate::common::program::{Site, message};

async fn say(site: &Site, user: &str, session: &str, text: &str) {
    let mut body = message(text);
    body["session_id"] = session.into();
    let request = site.post().header("x-pilotlight-user", user.as_bytes()).json(&body);
    request.send().await.unwrap().text().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_texts_hide_nothing() {
    let config = "[permissions]\npolicy = \"allow\"";
    let Some((mut browser, _program, site, _place)) = open(config).await else { return };
    browser.until_text("#link", "Live").await;
    let (user, session) = ("ali\u{202e}ce\u{200b}", "ses\u{2066}\u{1b}[2Jsion");
    let evil = "a\u{202e}gnp\u{9b}.\u{200b}exe";
    // A file, a tool's output and its name, the end of standard error, words of the conversation.
    let name = json!({ "file_path": format!("{evil}.txt"), "content": "x" });
    say(&site, user, session, &format!("fir\u{202e}st [[tool:Write {name}]]")).await;
    let command = json!({ "command": format!("printf '{evil}\\033[2J' | tee /proc/$PPID/fd/2") });
    say(&site, user, session, &format!("[[tool:Bash {command}]] [[say:{evil}]]")).await;
    say(&site, user, session, "[[fault:crash-mid]]").await;

    browser.until_text("#attention li[data-kind=bad]", "ali<U+202E>ce<U+200B>").await;
    browser.until_text("#attention", "ses<U+2066><U+1B>[2Jsion").await;
    browser.until_text("#rows", "first").await;
    browser.until_text("#events", "ali<U+202E>ce<U+200B>, ses<U+2066>").await;
    assert_eq!(browser.hidden().await, "");
    browser.click("#attention li[data-kind=bad] a").await;
    browser.until_text("#why pre", "gnp").await;
    browser.until_text(".files", "a<U+202E>gnp<U+9B>.<U+200B>exe.txt").await;
    browser.until_text(".turns", "Bash").await;
    browser.until_text(".said-all", "a<U+202E>gnp").await;
    browser.until_text(".facts", "ali<U+202E>ce").await;
    assert_eq!(browser.hidden().await, "");
    browser.eval("location.hash = '#/spend'").await;
    browser.until_text("#spend tbody", "ali<U+202E>ce<U+200B>").await;
    assert_eq!(browser.hidden().await, "");
    browser.was_good(&site.http).await;
}

/// Letters that are written from right to left need no mark for it.
#[tokio::test(flavor = "multi_thread")]
async fn right_to_left_names_turn_nothing_else() {
    let Some((mut browser, _program, site, _place)) = open("").await else { return };
    browser.until_text("#link", "Live").await;
    say(&site, "שלום", "עולם", "[[fault:crash-mid]]").await;
    browser.until_text("#attention", "שלום").await;
    // What follows the name lies to the right of it.
    let order = "(() => { const link = document.querySelector('#attention li[data-kind=bad] a'); \
                 const box = (node) => { const range = document.createRange(); range.selectNodeContents(node); \
                 return range.getBoundingClientRect(); }; const [name, session] = link.querySelectorAll('b, .quiet'); \
                 const rest = [...link.childNodes].find((it) => it.data?.includes('failed at')); \
                 return box(name).right <= box(session).left && box(session).right <= box(rest).right; })()";
    browser.until("each is where it belongs", order).await;
    let isolated = "[...document.querySelectorAll('#attention b, #rows b, #rows .quiet, #events b')].every((it) => \
                    getComputedStyle(it).unicodeBidi === 'isolate')";
    browser.until("each is by itself", isolated).await;
    browser.was_good(&site.http).await;
}
