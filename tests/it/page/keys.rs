//! Where keys are asked for: the page asks for one, keeps it in its tab, and shows what that key may see.

use super::in_row;
use crate::common::browser::Browser;
use crate::common::keyring::Keyring;
use crate::common::program::{Answer, Program, message, place};

pub(super) async fn use_key(browser: &mut Browser, key: &str) {
    if browser.eval("document.querySelector('#key').hidden").await == true {
        browser.click("#key-open").await;
    }
    browser.eval("document.querySelector('#key-value').value = ''").await;
    browser.click("#key-value").await;
    browser.write(key).await;
    browser.click("#key button[type=submit]").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_asked_for_and_decides_what_is_seen() {
    let place = place();
    let Some(mut browser) = Browser::start(&place).await else { return };
    let ring = Keyring::new(&place);
    let (alice, bob) = (ring.user("alice"), ring.user("bob"));
    let (service, admin) = (ring.key(&["--service"]).0, ring.key(&["--admin"]).0);
    let (_program, site) = Program::ready(&place, &ring.config()).await;
    for key in [&alice, &bob] {
        Answer::of(site.post().header("x-api-key", key).json(&message("hello"))).await.text();
    }
    browser.open(&site.http).await;
    browser.until_text("#key-why", "This service asks for a key.").await;
    browser.until("the cursor is there", "document.activeElement.id === 'key-value'").await;
    browser.picture("key").await;
    use_key(&mut browser, "plk_wrong").await;
    browser.until_text("#key-why", "this key is not known here").await;
    assert!(!browser.text("body").await.contains("alice"));

    // A user sees its own, and cannot act as another user.
    use_key(&mut browser, &alice).await;
    browser.until_text("#sessions-title", "Your sessions").await;
    browser.until("one row", "document.querySelectorAll('#rows tr').length === 1").await;
    assert_eq!(browser.eval("document.querySelector('#message-user-field').checkVisibility()").await, false);
    browser.click("#message-text").await;
    browser.write("again").await;
    browser.click("#message-send").await;
    browser.until_text("#answer", "echo 2: again").await;
    browser.click("#rows button:last-child").await;
    browser.until_text("#rows .state", "dormant").await;
    assert!(!browser.text("body").await.contains("bob"));

    // The key is kept in the tab, and nowhere else.
    let kept =
        "[sessionStorage.getItem('pilotlight.key'), localStorage.length, document.cookie, location.href]";
    let kept = browser.eval(kept).await;
    assert_eq!(kept, serde_json::json!([alice, 0, "", format!("{}/", site.http)]));
    assert!(browser.asked_for().iter().all(|url| !url.contains("plk_")), "never in an address");
    browser.eval("window.old = true; location.reload()").await;
    let again = "!window.old && document.querySelector('#sessions-title')?.innerText === 'Your sessions'";
    browser.until("the key is still there", again).await;

    // An admin sees and stops all, and has none.
    use_key(&mut browser, &admin).await;
    browser.until("two rows", "document.querySelectorAll('#rows tr').length === 2").await;
    assert_eq!(browser.eval("document.querySelector('#message').checkVisibility()").await, false);
    browser.until_text("#try", "has none of its own").await;
    browser.picture("admin").await;
    browser.click(&in_row("bob", "button:last-child")).await;
    browser.until_text(&in_row("bob", ".state"), "dormant").await;

    // A backend speaks for the user it names.
    use_key(&mut browser, &service).await;
    browser.until_text("#key-why", "Name the one").await;
    browser.write("bob").await;
    browser.click("#key button[type=submit]").await;
    browser.until("one row", "document.querySelectorAll('#rows tr').length === 1").await;
    browser.click("#rows button:first-child").await;
    browser.until_text("#rows .state", "idle").await;

    browser.click("#key-open").await;
    browser.click("#key-forget").await;
    browser.until_text("#key-why", "This service asks for a key.").await;
    assert_eq!(browser.eval("sessionStorage.length").await, 0);
    assert_eq!(browser.eval("document.querySelectorAll('#rows tr').length").await, 0);
    browser.was_good_but(&site.http, &["status of 401", "status of 400"]).await;
}
